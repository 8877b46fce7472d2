"""Regression tasks of a table: numbers as in the log, standardised in batches, and one line for each error."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from dlen.data.prepare import prepare, summary
from dlen.data.sources.frame import frame_source
from dlen.data.sources.table import Table
from dlen.data.split import ResidentSplit
from dlen.data.store import Store
from dlen.training.checks import check_measurable
from tests.data.helpers import arrays, left_in, make_table, numbers_of, refusal, whole

SPLITS = ("train", "validation", "test")
SPEC: dict[str, Any] = {
    "fields": {"n": {"kind": "numeric"}, "user": {}},
    "tasks": {
        "watch": {"label": "watch", "kind": "regression", "loss": "weighted_logistic"},
        "click": "click",
        "play": {"label": "play", "kind": "regression", "observed_where": "click", "transform": "log1p", "weight": 2},
        "asked": {"label": "play", "kind": "regression", "observed": "user > 9", "weight": "w"},
    },
    "split": {"by": "fraction", "validation": 0.2, "test": 0.2},
    "ignore": "rest",
}
ROWS = 300


def log() -> pl.DataFrame:
    rng = np.random.default_rng(1)
    play = [None if rng.random() < 0.1 else float(v) for v in rng.integers(-50, 2000, ROWS) / 4]
    return pl.DataFrame(
        {
            "n": np.arange(ROWS),
            "user": rng.integers(0, 20, ROWS),
            "click": rng.integers(0, 2, ROWS),
            "play": play,
            "watch": rng.integers(0, 60, ROWS),
            "w": rng.choice([0.0, 1.0, 2.5], ROWS),
        }
    )


def prepared(folder: Path, spec: dict[str, Any] = SPEC) -> Store:
    return prepare(frame_source(log(), spec, folder / "log", "t"), folder / "data")


def refused(folder: Path, spec: dict[str, Any], frame: pl.DataFrame | None = None) -> str:
    text = (log() if frame is None else frame).write_csv()
    message = refusal(lambda: prepare(make_table(folder, spec, text=text), folder / "data"))
    assert left_in(folder / "data") == []
    return message


def log1p(value: float) -> float:
    return math.copysign(math.log1p(abs(value)), value)


def test_numbers_are_standardised_by_the_training_rows_that_train_them(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    training = log()[numbers_of(store, "train")].to_dicts()
    play = np.array([log1p(r["play"]) for r in training if r["click"] and r["play"] is not None])
    asked = [(r["play"], r["w"]) for r in training if r["user"] > 9 and r["play"] is not None]
    mean, square = (np.average([v**p for v, _ in asked], weights=[w for _, w in asked]) for p in (1, 2))
    scales = {"play": (play.mean(), play.std()), "asked": (mean, math.sqrt(square - mean**2))}
    scales["watch"] = (0.0, np.mean([r["watch"] for r in training]))
    for task in store.schema.tasks:
        if task.is_regression:
            assert (task.mean, task.deviation) == pytest.approx(scales[task.name], rel=1e-6)
            assert task.rate == 0.5
    assert [t.weight for t in store.schema.tasks] == [1, 1, 2, 1]
    for name in SPLITS:
        rows = log()[numbers_of(store, name)].to_dicts()
        batch = whole(store.split(name))
        for found, row in zip(batch.labels.tolist(), rows, strict=True):
            play_of = math.nan if row["play"] is None else row["play"]
            seen = {"watch": row["watch"], "play": log1p(play_of), "asked": play_of if row["user"] > 9 else math.nan}
            wanted = [(seen[task] - scales[task][0]) / scales[task][1] for task in ("watch", "play", "asked")]
            assert [found[0], found[2], found[3]] == pytest.approx(wanted, rel=1e-4, abs=1e-5, nan_ok=True)
            assert found[1] == row["click"]
        resident = ResidentSplit(store.split(name), torch.device("cpu")).batch(torch.arange(len(batch)))
        assert torch.equal(resident.labels.nan_to_num(9), batch.labels.nan_to_num(9))
    assert "training mean of log1p of play: " in summary(store)
    check_measurable(store)


def test_a_regression_does_not_stand_for_a_task_without_positives(tmp_path: Path) -> None:
    rows = log().with_columns(click=(pl.col("n") < 100).cast(pl.Int64) * (pl.col("n") % 2))
    spec = SPEC | {"split": {"by": "time", "column": "n", "validation": 0.2, "test": 0.2, "allow_one_class": True}}
    store = prepare(frame_source(rows, spec, tmp_path / "log", "t"), tmp_path / "data")
    assert "no task with positives and negatives (click 0 of 60)" in refusal(lambda: check_measurable(store))


def test_a_table_without_regression_stores_no_numbers(tmp_path: Path) -> None:
    store = prepared(tmp_path, {**SPEC, "tasks": {"click": "click"}})
    assert not [name for name in arrays(store) if name.endswith("/values.bin")]
    assert store.split("train").scale is None


def test_the_identity_of_labels_is_of_the_numbers_too(tmp_path: Path) -> None:
    one = prepared(tmp_path / "one")
    changed = log().with_columns(pl.col("watch") + 1)
    two = prepare(frame_source(changed, SPEC, tmp_path / "two", "t"), tmp_path / "data")
    assert one.labels_identity("test") != two.labels_identity("test")
    assert one.labels_identity("test") == prepared(tmp_path / "three").labels_identity("test")


def test_new_rows_need_no_numbers(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    log().select("n", "user").write_parquet(tmp_path / "new.parquet")
    (split,) = Table(str(tmp_path / "log" / "t.yaml"), "t").read(tmp_path / "new.parquet", store)
    assert whole(split).labels.shape == (ROWS, 4)


def task(**settings: Any) -> dict[str, Any]:
    return {"tasks": {**SPEC["tasks"], "new": {"label": "play", "kind": "regression", **settings}}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (task(kind="number"), "tasks.new.kind: 'number' is not one of binary, regression"),
        (
            task(loss="hubber"),
            "tasks.new.loss: 'hubber' is not one of mse, huber, weighted_logistic; did you mean huber?",
        ),
        (
            task(label="play > 3"),
            "tasks.new.label: 'play > 3' is an expression of 0 and 1; a regression needs a column",
        ),
        (task(dislike=True), "tasks.new.dislike: is of a task of 0 and 1, and new is a regression"),
        (task(joint="both", observed_where="click"), "tasks.new.joint: is of a task of 0 and 1"),
        (task(train_on="all"), "tasks.new.train_on: is of a task of 0 and 1"),
        (task(loss="weighted_logistic", transform="log1p"), "tasks.new.transform: weighted_logistic predicts the mean"),
        ({"tasks": {"click": {"label": "click", "loss": "huber"}}}, "tasks.click.loss: is of a regression"),
        ({"tasks": {"click": {"label": "click", "transform": "log1p"}}}, "tasks.click.transform: is of a regression"),
        (task(kind="binary", label="click", observed_where="play"), "tasks.new.observed_where: play is a regression"),
        (
            {"fields": {"n": {}, "watch": {"kind": "numeric"}}},
            "fields.watch: the label of tasks.watch is computed from",
        ),
        (
            {"fields": {"n": {}, "r": {"rate": {"of": "watch", "by": "user"}}}},
            "fields.r.rate.of: watch is a regression",
        ),
        (task(loss="weighted_logistic"), "is below 0, but the loss of tasks.new, weighted_logistic, needs sizes"),
        (task(label="click", observed="click == 1"), "task new: all training rows with weight have the same label"),
        (task(observed="n < 0"), "task new has no observed rows in train"),
    ],
)
def test_what_cannot_be_meant(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    assert named in refused(tmp_path, {**SPEC, **change})


def test_a_cell_that_is_no_number(tmp_path: Path) -> None:
    cells = pl.Series("watch", [str(v) for v in log()["watch"]]).scatter(41, "long")
    message = refused(tmp_path, SPEC, log().with_columns(cells))
    assert message == f"{tmp_path / 't.csv'}, row 43: column watch: 'long' is not a number"


@pytest.mark.parametrize("label", [1.001e12, -1e15, 1e38, 3e38])
def test_a_label_that_is_too_large_is_named_by_its_row_and_may_be_left_out(label: float, tmp_path: Path) -> None:
    frame = log().with_columns(log()["play"].scatter(41, label))
    message = refused(tmp_path, SPEC, frame)
    why = "beyond 1e+12, the most for tasks.play; use a larger unit, or an empty cell if it is unknown"
    assert message == f"{tmp_path / 't.csv'}, row 43: column play: {str(label)!r} is {why}"
    source = Table(str(tmp_path / "spec.yaml"), bad_rows=1)
    store = prepare(source, tmp_path / "data")
    assert {n for name in SPLITS for n in numbers_of(store, name)} == set(range(ROWS)) - {41}
