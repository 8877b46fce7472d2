"""Weights of a table's rows and labels: stored as they are, weighted training rates, and one line for each error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlen.data.prepare import prepare
from dlen.data.sources.frame import frame_source
from dlen.data.sources.table import Table
from dlen.data.store import Store
from tests.data.helpers import arrays, left_in, make_table, numbers_of, refusal, whole

SPLITS = ("train", "validation", "test")
SPEC: dict[str, Any] = {
    "fields": {"n": {"kind": "numeric"}, "user": {}},
    "tasks": {
        "click": "click",
        "buy": {"label": "buy", "observed_where": "click"},
        "cart": {"label": "buy", "observed_where": "click", "train_on": "all"},
        "long": {"label": "play > 20", "weight": "play"},
    },
    "weight": "w",
    "split": {"by": "fraction", "validation": 0.2, "test": 0.2},
}
ROWS = 300


def log() -> pl.DataFrame:
    rng = np.random.default_rng(1)
    return pl.DataFrame(
        {
            "n": np.arange(ROWS),
            "user": rng.integers(0, 20, ROWS),
            "click": rng.integers(0, 2, ROWS),
            "buy": rng.integers(0, 2, ROWS),
            "play": rng.integers(0, 160, ROWS) / 4,
            "w": rng.choice([0.0, 0.5, 3.0], ROWS),
        }
    )


def prepared(folder: Path, spec: dict[str, Any], frame: pl.DataFrame | None = None) -> Store:
    return prepare(frame_source(log() if frame is None else frame, spec, folder / "log", "t"), folder / "data")


def refused(folder: Path, spec: dict[str, Any], frame: pl.DataFrame | None = None) -> str:
    text = (log() if frame is None else frame).write_csv()
    message = refusal(lambda: prepare(make_table(folder, spec, text=text), folder / "data"))
    assert left_in(folder / "data") == []
    return message


def test_weights_are_those_of_the_log_in_every_split(tmp_path: Path) -> None:
    store, frame = prepared(tmp_path, SPEC), log()
    for name in SPLITS:
        rows = frame[numbers_of(store, name)]
        weights = whole(store.split(name)).weights
        assert weights.shape == (len(rows), 5)
        np.testing.assert_array_equal(weights[:, 0], rows["w"])
        np.testing.assert_array_equal(weights[:, 4], rows["play"])
        assert (weights[:, 1:4] == 1).all()
    assert [t.weight for t in store.schema.tasks] == [1.0] * 4
    assert store.content["notes"]["weights"] == "weight: w, tasks.long.weight: play"


def test_training_rates_are_weighted(tmp_path: Path) -> None:
    store = prepared(tmp_path, SPEC)
    rows = log()[numbers_of(store, "train")].to_dicts()
    sums = {name: [0.0, 0.0] for name in SPEC["tasks"]}
    for row in rows:
        w, click, buy, play = row["w"], row["click"], row["buy"], row["play"]
        events = {"click": (click, True), "buy": (buy, click), "cart": (click and buy, True), "long": (play > 20, True)}
        for name, (happened, counts) in events.items():
            weight = w * (play if name == "long" else 1) * bool(counts)
            sums[name][0] += weight * happened
            sums[name][1] += weight
    for task in store.schema.tasks:
        assert task.rate == pytest.approx(sums[task.name][0] / sums[task.name][1], rel=1e-6)


def test_a_table_without_weights_stores_none(tmp_path: Path) -> None:
    plain = {k: v for k, v in SPEC.items() if k != "weight"}
    plain = {**plain, "tasks": {**plain["tasks"], "long": {"label": "play > 20", "weight": 3}}, "ignore": ["w"]}
    store = prepared(tmp_path, plain)
    for name in SPLITS:
        assert f"{name}/weights.bin" not in arrays(store)
        batch = whole(store.split(name))
        assert batch.weights.numel() == 0
        assert batch.row_weights is None
    assert store.schema.tasks[3].weight == 3
    assert "weights" not in store.content["notes"]


def test_new_rows_need_no_weights(tmp_path: Path) -> None:
    store = prepared(tmp_path, SPEC)
    path = tmp_path / "new.parquet"
    log().select("n", "user").write_parquet(path)
    (split,) = Table(str(tmp_path / "log" / "t.yaml"), "t").read(path, store)
    assert len(split) == ROWS
    assert whole(split).row_weights is None


def test_weights_from_a_joined_table(tmp_path: Path) -> None:
    pl.DataFrame({"user": range(20), "worth": np.arange(20) / 8}).write_csv(tmp_path / "users.csv")
    spec = {**SPEC, "weight": "worth", "ignore": ["w"], "joins": {"users": {"file": "users.csv", "by": "user"}}}
    store = prepare(make_table(tmp_path, spec, text=log().write_csv()), tmp_path / "data")
    rows = log()[numbers_of(store, "test")]
    np.testing.assert_array_equal(whole(store.split("test")).weights[:, 0], rows["user"] / 8)


@pytest.mark.parametrize("column", ["w", "play"])
@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("", "is empty, but "),
        ("-0.5", "'-0.5' is not a weight, which is a number from 0 to 1e+09"),
        ("1e10", "'1e10' is not a weight"),
        ("nan", "not a finite number"),
        ("much", "'much' is not a number"),
    ],
)
def test_a_cell_that_is_no_weight(column: str, cell: str, problem: str, tmp_path: Path) -> None:
    text = pl.Series(column, ["" if v is None else str(v) for v in log()[column]])
    frame = log().with_columns(text.scatter(41, cell))
    tasks = {**SPEC["tasks"], "long": {"label": "click", "weight": "play"}}
    message = refused(tmp_path, {**SPEC, "tasks": tasks}, frame)
    assert message.startswith(f"{tmp_path / 't.csv'}, row 43: column {column}: ")
    assert problem in message


def test_a_bad_weight_can_be_left_out(tmp_path: Path) -> None:
    frame = log().with_columns(log()["w"].scatter(41, -1.0))
    source = frame_source(frame, SPEC, tmp_path / "log", "t")
    store = prepare(Table(str(source.path), "t", bad_rows=1), tmp_path / "data")
    assert 41 not in [n for name in SPLITS for n in numbers_of(store, name)]
    assert sum(len(store.split(name)) for name in SPLITS) == ROWS - 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight": "v"}, "no column 'v', named by weight"),
        ({"weight": 2}, "weight: 2 is not text"),
        ({"tasks": {"click": {"label": "click", "weight": "v"}}}, "no column 'v', named by tasks.click.weight"),
        (
            {"tasks": {"click": {"label": "click", "weight": -1}}},
            "tasks.click.weight: -1 is not a finite number from 0 or the",
        ),
        (
            {"tasks": {"click": {"label": "click", "weight": ""}}},
            "tasks.click.weight: '' is not a finite number from 0 or",
        ),
        ({"fields": {"n": {"kind": "numeric"}, "w": {}}}, "fields.w: column w holds the weights of weight"),
        (
            {"fields": {"n": {"kind": "numeric"}, "seen": {"count": {"by": "play"}}}},
            "fields.seen: column play holds the weights of tasks.long.weight",
        ),
    ],
)
def test_what_cannot_be_meant(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    assert named in refused(tmp_path, {**SPEC, "ignore": "rest", **change})


def test_a_task_whose_positives_have_no_weight(tmp_path: Path) -> None:
    frame = log().with_columns(w=(1 - pl.col("click")).cast(pl.Float64))
    assert "task click: all positives in train have weight 0" in refused(tmp_path, SPEC, frame)
