"""Sections of a page about one benchmark, from the file that benchmark.py writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from dlen.comparing.statistics import Difference
from dlen.comparing.tables import BENCHMARK_FIGURES, best_of
from dlen.files import is_intact, read_mapping
from dlen.reports.comparison import numbers_of
from dlen.reports.dots import difference_dots
from dlen.reports.page import Cell, Section, Table


def benchmark_sections(folder: Path) -> list[Section]:
    """The average ranks, and the groups and gains on each data set, as written by ``benchmark.py``."""
    content = read_mapping(folder / "benchmark.json")
    sections = [_data_section(data, content["base"], folder.name) for data in content["data_sets"]]
    if len(sections) > 1:
        sections.insert(0, _ranks_section(content, folder.name))
    if sections and not is_intact(content):
        sections[0].note += " benchmark.json does not match its checksum: it has been edited."
    return sections


def _ranks_section(content: Mapping[str, Any], name: str) -> Section:
    """Average rank of each model, and its rank on each data set."""
    data_sets, averages = content["data_sets"], content["average_ranks"]
    rows: list[list[Cell]] = [
        [model, average, *(data["ranks"][model] for data in data_sets)]
        for model, average in sorted(averages.items(), key=lambda pair: pair[1])
    ]
    header = ["model", "average rank", *(data["name"] for data in data_sets)]
    note = (
        f"Average ranks that differ by less than {content['critical_difference']:.2f} are not distinguishable "
        "(Nemenyi's test). Models that were left out on a data set are not in this table."
    )
    table = Table("", header, rows, ["", "{:.2f}", *["{:g}"] * len(data_sets)])
    return Section(f"Benchmark ({name})", tables=[table], note=note)


def _data_section(data: Mapping[str, Any], base: str, name: str) -> Section:
    """The models of one data set."""
    entries = data["entries"]
    known = {k: shown for k, shown in BENCHMARK_FIGURES.items() if any(e["figures"][k] is not None for e in entries)}
    rows: list[list[Cell]] = []
    gains: dict[str, dict[str, Difference]] = {}
    for entry in entries:
        gain = None if entry["gain"] is None else Difference(**numbers_of(entry["gain"]))
        interval = [None] * 3 if gain is None else [gain.mean, gain.low, gain.high]
        figures = [entry["figures"][key] for key in known]
        settings = best_of(entry["searched"], entry["trials"])
        rows.append([entry["group"], entry["model"], fmean(entry["auc"]), *interval, *figures, settings])
        if gain is not None:
            gains[entry["model"]] = {"mean": gain}
    header = ["group", "model", "mean AUC", f"gain over {base}", "low", "high"]
    header += [*(title for title, _ in known.values()), "settings"]
    layouts = ["{:d}", "", "{:.4f}", *["{:+.4f}"] * 3, *(layout for _, layout in known.values()), ""]
    note = "Models of a group are not clearly behind the first of it. Settings were chosen on validation."
    if data["unfit"]:
        note += f" Left out, as the data do not meet their needs: {', '.join(data['unfit'])}."
    plot = difference_dots(gains, base, "Paired differences. Error bars: 95 % interval over seeds and test rows.")
    return Section(
        f"Benchmark: {data['name']} ({name})", [plot] if plot else [], [Table("", header, rows, layouts)], note
    )
