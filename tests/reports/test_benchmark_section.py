"""The sections of a benchmark on a report's page, from the file that the benchmark itself writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlen.benchmarking.tables import DataSet, Entry, write_benchmark
from dlen.comparing.statistics import Difference
from dlen.reports.benchmark import benchmark_sections
from dlen.reports.page import check
from dlen.reports.report import _KINDS, _other_sections
from dlen.reports.runs import Matches, find

NAN = float("nan")


def entry(model: str, group: int, auc: list[float], gain: Difference | None, searched: str = "") -> Entry:
    figures = {"gauc": NAN, "ne": 0.9, "model/dense_parameters": 1234.0, "fit/seconds": 5.0}
    return Entry(model, group, auc, None, gain, figures, searched, 8, [], [])


def written(folder: Path, data_sets: int) -> Path:
    """A benchmark in which B gains .02 over A on each data set, and C is left out of the last one."""
    first = entry("B", 1, [0.75, 0.77], Difference(0.02, 2, 0.004, 0.003, 0.01, 0.03), "model.dropout=0.1")
    entries = [first, entry("A", 2, [0.74], None), entry("C", 2, [0.70], Difference(-0.04, 1, NAN, NAN, NAN, NAN))]
    data = [
        DataSet(f"log{n}", {"data": "x", "test_rows": 9}, entries if n else entries[:2], [] if n else ["C"])
        for n in range(data_sets)
    ]
    write_benchmark(folder, data, {"elsewhere": "no such file"}, "A", [0, 1])
    return folder


def test_a_benchmark_has_ranks_and_a_section_per_data_set(tmp_path: Path) -> None:
    sections = benchmark_sections(written(tmp_path / "mine", 2))
    assert [section.title for section in sections] == [
        "Benchmark (mine)",
        "Benchmark: log0 (mine)",
        "Benchmark: log1 (mine)",
    ]
    for section in sections:
        check(section)
    # Ranks: B is first twice; A is second, and then shares places 2 and 3 with C, which is not on every data set
    assert sections[0].tables[0].rows == [["B", 1.0, 1.0, 1.0], ["A", 2.25, 2.0, 2.5]]
    table = sections[2].tables[0]
    assert "GAUC" not in table.header  # no data set has users
    best = dict(zip(table.header, table.rows[0], strict=True))
    assert best["mean AUC"] == pytest.approx(0.76)
    assert (best["gain over A"], best["low"], best["high"]) == (0.02, 0.01, 0.03)
    assert best["settings"] == "model.dropout=0.1, best of 8"
    assert table.rows[1][3] is None  # the base has no gain
    (plot,) = sections[2].plots
    assert [trace["name"] for trace in plot.figure["data"]] == ["B", "C"]
    assert "C" in sections[1].note


def test_one_data_set_needs_no_ranks(tmp_path: Path) -> None:
    assert [section.title for section in benchmark_sections(written(tmp_path / "mine", 1))] == [
        "Benchmark: log0 (mine)"
    ]


@pytest.mark.parametrize("data_sets", [1, 2])
def test_an_edited_file_is_told(data_sets: int, tmp_path: Path) -> None:
    path = written(tmp_path / "mine", data_sets) / "benchmark.json"
    assert "edited" not in benchmark_sections(path.parent)[0].note
    path.write_text(path.read_text().replace("0.77", "0.78"))
    assert "edited" in benchmark_sections(path.parent)[0].note


def test_a_report_finds_benchmarks_and_skips_damaged_ones(tmp_path: Path) -> None:
    written(tmp_path / "good", 1)
    damaged = written(tmp_path / "damaged", 1) / "benchmark.json"
    damaged.write_text(json.dumps({"data_sets": [{"name": "x"}], "base": "A"}))
    matches: Matches = find(str(tmp_path), _KINDS)
    assert {folder.name for folder in matches.folders["benchmark.json"]} == {"good", "damaged"}
    assert [section.title for section in _other_sections(matches)] == ["Benchmark: log0 (good)"]
    assert len(matches.unreadable) == 1
