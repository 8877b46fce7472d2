"""The benchmark: the same trials for every model, ranks with ties, and the whole command on tiny data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlen.benchmarking.benchmark import candidates
from dlen.benchmarking.tables import DataSet, Entry, critical_difference, markdown
from dlen.comparing.statistics import Difference
from tests.conftest import ROOT, run_here

SMALL_FEED = ["data.rows=4000", "data.users=40", "data.items=30"]
SPACE = {
    "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "model.head.tower": {"choices": [[8], [16, 8]]},
    "model.head.match": {"low": 2, "high": 8, "when": {"model.head.tower": ["[8]"]}},
}
TINY: dict[str, Any] = {
    "base": "single task",
    "trials": 2,
    "space": {"optimizer.lr": {"low": 1e-3, "high": 1e-2, "log": True}},
    "spaces": {"logistic": {}},
    "data": {
        "feed": ["data=feed", *SMALL_FEED],
        "another": ["data=feed_violated", *SMALL_FEED],
        "elsewhere": ["data=kuairand", "data.raw_dir=nowhere"],
    },
    "models": {
        "logistic": ["model=logistic"],
        "single task": ["model=single_task", "model.backbone.expert=[8]"],
        "MMoE": ["model=mmoe", "model.backbone.expert=[8]"],
        "ESMM": ["model=esmm"],
    },
}
QUICK = ("benchmark=tiny", "seeds=2", "trainer.max_epochs=1", "trainer.accelerator=cpu", "loader.batch_size=512")


def test_trials_are_the_defaults_and_then_the_same_points_for_every_model() -> None:
    found = candidates(SPACE, 6, ["click"])
    assert len(found) == len(set(found)) == 6
    assert found[0] == ()
    assert found == candidates(SPACE, 6, ["like", "share"])
    assert found[:3] == candidates(SPACE, 3, ["click"])  # a larger budget repeats nothing
    for settings in found[1:]:
        values = dict(setting.split("=") for setting in settings)
        assert 1e-4 <= float(values["optimizer.lr"]) <= 1e-2
        assert ("model.head.match" in values) == (values["model.head.tower"] == "[8]")
    assert candidates({}, 6, ["click"]) == [()]


def entry(model: str, group: int, auc: float) -> Entry:
    figures = {"gauc": 0.6, "ne": 0.9, "model/dense_parameters": 1000.0, "fit/seconds": float("nan")}
    difference = Difference(-0.001, 2, 0.001, 0.001, -0.003, 0.001)
    return Entry(model, group, [auc, auc], difference, None, figures, "", 1, [], [])


def test_models_of_a_group_share_the_mean_of_their_places() -> None:
    data = DataSet("feed", {}, [entry("a", 1, 0.8), entry("b", 1, 0.79), entry("c", 2, 0.7), entry("d", 3, 0.6)], [])
    assert data.ranks() == {"a": 1.5, "b": 1.5, "c": 3.0, "d": 4.0}


def test_average_ranks_are_of_the_models_that_every_data_set_has() -> None:
    identity = {"data": "x", "test_rows": 10}
    first = DataSet("first", identity, [entry("a", 1, 0.8), entry("b", 2, 0.7), entry("c", 2, 0.6)], ["d"])
    second = DataSet("second", identity, [entry("b", 1, 0.9), entry("a", 2, 0.8), entry("d", 2, 0.7)], [])
    page = markdown([first, second], {"third": "no such file"}, "a", [0, 1])
    overall = page.split("## first")[0]
    assert re.search(r"\| a \| 1\.75 \| 1 \| 2\.5 \|", overall)
    assert re.search(r"\| b \| 1\.75 \| 2\.5 \| 1 \|", overall)
    assert "| c |" not in overall
    assert "third: no such file" in page


def test_the_critical_difference_is_that_of_the_literature() -> None:
    """Demšar 2006, section 3.2.2: four classifiers on 14 data sets; table 5 (a) has the quantiles."""
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    for models, quantile in ((2, 1.960), (5, 2.728), (10, 3.164)):
        assert critical_difference(models, 1) == pytest.approx(quantile * (models * (models + 1) / 6) ** 0.5, rel=1e-3)
    assert critical_difference(1, 5) == 0.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a benchmark that has run once."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "conf/benchmark").mkdir(parents=True)
    (folder / "conf/benchmark/tiny.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    ran = run_here("benchmark.py", ["--config-dir", "conf", *QUICK], folder)
    assert ran.returncode == 0, ran.stderr
    assert "elsewhere is left out" in ran.stderr
    return folder


def content(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "runs/benchmark/benchmark.json").read_text())
    return result


@pytest.mark.slow
def test_a_benchmark_ranks_the_models_on_each_data_set(place: Path) -> None:
    found = content(place)
    assert [data["name"] for data in found["data_sets"]] == ["feed", "another"]
    assert list(found["missing"]) == ["elsewhere"]
    for data in found["data_sets"]:
        assert data["unfit"] == ["ESMM"]
        assert {e["model"] for e in data["entries"]} == {"logistic", "single task", "MMoE"}
        groups = [e["group"] for e in data["entries"]]
        assert groups == sorted(groups)
        for e in data["entries"]:
            assert (e["to_first"] is None) == (groups.index(e["group"]) == data["entries"].index(e))
            assert (e["gain"] is None) == (e["model"] == "single task")
            assert e["trials"] == (1 if e["model"] == "logistic" else 2)
            assert len(e["auc"]) == 2
            if e["searched"]:
                assert e["searched"] in e["settings"]
    page = (place / "runs/benchmark/benchmark.md").read_text()
    assert "## All data sets" in page


@pytest.mark.slow
def test_the_settings_with_the_best_validation_are_chosen(place: Path) -> None:
    folders = [path.parent for path in (place / "runs/compare/cache").glob("*/metrics.json")]
    searched = [f for f in folders if yaml.safe_load((f / "config.yaml").read_text())["seed"] == 0]
    runs = [json.loads((folder / "metrics.json").read_text()) for folder in searched]
    for data in content(place)["data_sets"]:
        of_data = [run for run in runs if run["data_fingerprint"] == data["identity"]["data_fingerprint"]]
        for e in data["entries"]:
            (chosen,) = [run for run in of_data if run["test/auc/mean"] == e["auc"][0]]
            tried = [run["val/auc/weighted"] for run in of_data if run["model"] == chosen["model"]]
            assert len(tried) == e["trials"]
            assert chosen["val/auc/weighted"] == max(tried)


@pytest.mark.slow
def test_another_model_costs_only_its_own(place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (place / "runs/compare/cache").glob("*/metrics.json")}
    first = content(place)
    wider = {
        **TINY,
        "models": {**TINY["models"], "shared bottom": ["model=shared_bottom", "model.backbone.expert=[8]"]},
    }
    (place / "conf/benchmark/tiny.yaml").write_text(yaml.safe_dump(wider, sort_keys=False))
    ran = run_here("benchmark.py", ["--config-dir", "conf", *QUICK, "data_sets=[feed]"], place)
    assert ran.returncode == 0, ran.stderr
    after = {path: path.stat().st_mtime_ns for path in (place / "runs/compare/cache").glob("*/metrics.json")}
    assert {path: after[path] for path in before} == before
    assert 3 <= len(after) - len(before) + 1 <= 4  # two trials and another seed of the better one
    old = {e["model"]: e["auc"] for e in first["data_sets"][0]["entries"]}
    new = {e["model"]: e["auc"] for e in content(place)["data_sets"][0]["entries"]}
    assert new == {**old, "shared bottom": new["shared bottom"]}


@pytest.mark.parametrize(
    ("change", "arguments", "names"),
    [
        ({}, ["models=[MMoE]"], "benchmark.base"),
        ({}, ["models=[MMoE,nothing]"], "nothing"),
        ({}, ["data_sets=[nothing]"], "nothing"),
        ({"trials": 0}, [], "benchmark.trials"),
        ({"models": {"MMoE": "model=mmoe"}}, [], "MMoE"),
        ({"spaces": {"nothing": {}}}, [], "nothing"),
        ({"space": {"optimizer.lr": {"low": 2}}}, [], "benchmark.space"),
        ({"data": {"elsewhere": ["data=kuairand", "data.raw_dir=nowhere"]}}, [], "benchmark.data"),
    ],
)
def test_what_is_wrong_is_one_line(change: dict[str, Any], arguments: list[str], names: str, tmp_path: Path) -> None:
    (tmp_path / "conf/benchmark").mkdir(parents=True)
    (tmp_path / "conf/benchmark/tiny.yaml").write_text(yaml.safe_dump({**TINY, **change}, sort_keys=False))
    ran = run_here("benchmark.py", ["--config-dir", "conf", *QUICK, *arguments], tmp_path)
    last = ran.stderr.strip().splitlines()[-1]
    assert ran.returncode == 2
    assert names in last
    assert not (tmp_path / "runs").exists()


def test_the_shipped_benchmark_names_models_and_data_that_exist() -> None:
    shipped = yaml.safe_load((ROOT / "conf/benchmark/field.yaml").read_text())
    for settings in shipped["models"].values():
        model = settings[0].removeprefix("model=")
        assert (ROOT / f"conf/model/{model}.yaml").exists()
    for settings in shipped["data"].values():
        data = settings[0].removeprefix("data=")
        assert (ROOT / f"conf/data/{data}.yaml").exists()
    presets = {path.stem for path in (ROOT / "conf/model").glob("*.yaml")} - {"moe", "pal", "mran"}
    assert {settings[0].removeprefix("model=") for settings in shipped["models"].values()} == presets
