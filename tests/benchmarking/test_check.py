"""The check of a benchmark's file: what agrees, what does not, and files that are not to be trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlen import __version__
from dlen.benchmarking.check import verdict
from dlen.benchmarking.claims import Claim
from dlen.benchmarking.tables import DataSet, Entry, write_benchmark
from dlen.files import content_checksum
from tests.conftest import TINY, run_here

SETTINGS = ["data=feed", "data.rows=600", "data.users=20", "data.items=20", "model=mmoe", *TINY]
RUN = {
    "seed": 1,
    "version": __version__,
    "code": "a",
    "data_test": "60 rows, 0",
    "machine/cpu": "x",
    "machine/threads": 1,
    "test/auc/mean": 0.7,
    "test/gauc/click": 0.6,
}
FIGURES = {"gauc": 0.6, "ne": 0.9, "model/dense_parameters": 1000.0, "fit/seconds": 1.0}


def claim(auc: list[float]) -> Claim:
    return Claim("feed", "MMoE", SETTINGS, RUN, auc, "test/auc/mean")


@pytest.mark.parametrize(
    ("auc", "now", "agrees", "says"),
    [
        ([0.7, 0.702], {}, True, "all 2 test metrics are identical"),
        ([0.7, 0.702], {"machine/cpu": "y"}, True, "all 2 test metrics are identical"),
        ([0.7, 0.702], {"machine/cpu": "y", "test/auc/mean": 0.701}, True, "machine/cpu was x and is y"),
        ([0.7, 0.702], {"config_hash": "c", "test/gauc/click": 0.61}, True, "config_hash was not recorded and is c"),
        ([0.7, 0.702], {"machine/gpu": "g", "test/auc/mean": 0.701}, True, "varying order"),
        ([0.7, 0.702], {"machine/cpu": "y", "test/auc/mean": 0.75}, False, "does not agree"),
        ([0.7, 0.702], {"test/auc/mean": 0.7000001}, False, "are the same"),
        ([0.7], {"machine/cpu": "y", "test/auc/mean": 0.7000001}, False, "one seed has no spread"),
    ],
)
def test_what_agrees_with_a_claim(auc: list[float], now: dict[str, Any], agrees: bool, says: str) -> None:
    found, line = verdict(claim(auc), {**RUN, **now})
    assert found == agrees
    assert line.startswith("feed, MMoE, seed 1: mean AUC ")
    assert says in line


def written(folder: Path, change: Callable[[dict[str, Any]], object] = lambda content: None) -> str:
    """The file of a benchmark of one model and two seeds, changed by somebody who knows the checksum."""
    runs = [{**RUN, "seed": seed} for seed in (1, 2)]
    entry = Entry("MMoE", 1, [0.7, 0.702], None, None, FIGURES, "", 1, SETTINGS, runs)
    write_benchmark(folder, [DataSet("feed", {"data": "feed", "test_rows": 60}, [entry], [])], {}, "MMoE", [1, 2])
    path = folder / "benchmark.json"
    content = json.loads(path.read_text())
    assert content.pop("crc32") == content_checksum(content)
    change(content)
    path.write_text(json.dumps({**content, "crc32": content_checksum(content)}))
    return str(path)


def entry_of(content: dict[str, Any]) -> Any:
    return content["data_sets"][0]["entries"][0]


@pytest.mark.parametrize(
    ("change", "arguments", "names"),
    [
        (lambda c: None, [], "test rows are others here"),
        (lambda c: None, ["models=[nothing]"], "nothing"),
        (lambda c: None, ["data_sets=[nothing]"], "nothing"),
        (lambda c: None, ["seeds=[0]"], "seeds"),
        (lambda c: None, ["workers=0"], "workers"),
        (lambda c: c.update(version="0.1.0"), [], "dlen 0.1.0"),
        (lambda c: entry_of(c)["settings"].append("model._target_=os.system"), [], "os.system"),
        (lambda c: entry_of(c)["settings"].extend(["trust=[os]", "model._target_=os.system"]), [], "os.system"),
        (lambda c: entry_of(c)["settings"].append("--config-dir=elsewhere"), [], "--config-dir"),
        (lambda c: entry_of(c)["settings"].append("model=nothing"), [], "model=nothing"),
        (lambda c: entry_of(c)["runs"][0].pop("seed"), [], "not the file of a benchmark"),
        (lambda c: entry_of(c)["runs"][0].update({"test/auc/mean": "x"}), [], "not the file of a benchmark"),
        (lambda c: entry_of(c).update(settings=None), [], "not the file of a benchmark"),
        (lambda c: c.update(data_sets=5), [], "not the file of a benchmark"),
    ],
)
def test_what_cannot_be_checked_is_one_line(
    change: Callable[[dict[str, Any]], object], arguments: list[str], names: str, tmp_path: Path
) -> None:
    ran = run_here("benchmark.py", [f"check={written(tmp_path, change)}", *arguments], tmp_path)
    assert ran.returncode == 2
    (line,) = [text for text in ran.stderr.splitlines() if text.startswith("error: ")]
    assert names in line


def test_settings_of_hydra_in_a_file_decide_nothing(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "model").mkdir(parents=True)
    (tmp_path / "elsewhere" / "model" / "theirs.yaml").write_text("_target_: os.system\n")
    place = f"hydra.searchpath=[file://{tmp_path / 'elsewhere'}]"
    path = written(tmp_path, lambda c: entry_of(c)["settings"].extend([place, f"+{place}", "model=theirs"]))
    ran = run_here("benchmark.py", [f"check={path}"], tmp_path)
    assert "model=theirs: there is no such choice" in ran.stderr


def test_an_edited_file_is_noticed(tmp_path: Path) -> None:
    path = Path(written(tmp_path))
    path.write_text(path.read_text().replace("0.702", "0.712"))
    ran = run_here("benchmark.py", [f"check={path}"], tmp_path)
    assert (ran.returncode, "has been edited" in ran.stderr) == (2, True)


@pytest.mark.slow
def test_a_rerun_has_the_metrics_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "conf/benchmark").mkdir(parents=True)
    lists = {"data": {"feed": SETTINGS[:4]}, "models": {"single task": ["model=single_task"], "MMoE": ["model=mmoe"]}}
    tiny = {"base": "MMoE", "trials": 1, "seeds": 2, "space": {}, "spaces": {}, **lists}
    (tmp_path / "conf/benchmark/tiny.yaml").write_text(json.dumps(tiny))
    ran = run_here("benchmark.py", ["--config-dir", "conf", "benchmark=tiny", *TINY], tmp_path)
    assert ran.returncode == 0, ran.stderr
    chosen = ["check=runs/benchmark/benchmark.json", "models=[MMoE,single task]", "seeds=[1]"]
    for _ in range(2):  # a finished rerun does not stand for the next
        ran = run_here("benchmark.py", chosen, tmp_path)
        assert ran.returncode == 0, ran.stderr
        assert sorted(re.findall(r"^feed, (.+), seed 1: mean AUC .+ identical$", ran.stdout, re.MULTILINE)) == [
            "MMoE",
            "single task",
        ]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/check/**/metrics.json")}
    assert len(times) == 2
    ran = run_here("benchmark.py", [*chosen, "optimizer.lr=0.1", "models=[MMoE]"], tmp_path)
    assert "config_hash was" in ran.stdout + ran.stderr
    assert ran.returncode == ("does not agree" in ran.stderr)
