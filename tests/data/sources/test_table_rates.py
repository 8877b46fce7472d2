"""Rates and counts of a table: features never use the row's own or a later label; new rows get them too."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlen.data.prepare import prepare
from dlen.data.sources import table_file
from dlen.data.sources.table import Table
from dlen.data.store import Store
from dlen.schema import Kind
from tests.data.helpers import make_table, numbers_of, refusal, whole

N = 160
Row = dict[str, Any]
SPEC: dict[str, Any] = {
    "fields": {
        "n": {"kind": "numeric"},
        "user": {"kind": "id", "side": "user"},
        "item": {"kind": "id", "side": "item"},
        "at": {"kind": "time", "column": "time", "parts": ["hour"]},
        "item_rate": {"rate": {"of": ["click", "buy"], "by": "item", "smoothing": 4}, "side": "item"},
        "pair_rate": {"rate": {"of": "seconds > 30", "by": ["user", "city"]}},
        "user_rows": {"count": {"by": "user"}, "side": "user"},
        "item_rows": {"count": {"by": "item"}, "side": "item"},
        "pair_rows": {"count": {"by": ["user", "city"]}},
    },
    "tasks": {"click": "click", "buy": {"label": "buy", "observed_where": "click"}},
    "split": {"by": "time", "column": "time", "validation": 0.2, "test": 0.2},
    "ignore": [],
}
RATES = ["item_rate_click", "item_rate_buy", "pair_rate", "user_rows", "item_rows", "pair_rows"]


def draw(seed: int = 0) -> list[Row]:
    """A log not ordered by time, with ties; n is the row number."""
    rng = random.Random(seed)
    return [
        {
            "n": n,
            "user": rng.choice(["a", "b", "c", ""]),
            "item": rng.choice("pqrst"),
            "city": rng.choice(["x", "y", ""]),
            "time": 86_400 * 3 + 3_600 * rng.randrange(120),
            "click": (click := rng.randrange(2)),
            "buy": click * rng.randrange(2),
            "seconds": rng.randrange(60),
        }
        for n in range(N)
    ]


def spec_of(kind: str, **rates: Any) -> dict[str, Any]:
    """By time, or ``folds``: the same log without a time."""
    spec = copy.deepcopy(SPEC)
    if kind == "folds":
        spec["split"] = {"by": "fraction", "validation": 0.2, "test": 0.2}
        rates["time"] = "none"
    return spec | ({"rates": rates} if rates else {})


def store_of(folder: Path, rows: list[Row], spec: dict[str, Any]) -> Store:
    return prepare(make_table(folder, spec, "t.csv", pl.DataFrame(rows).write_csv()), folder / "data")


def stored(store: Store) -> dict[int, list[float]]:
    """Rates and counts as stored, by row number."""
    names = [f.name for f in store.schema.of_kind(Kind.NUMERIC)]
    columns = [names.index(f) for f in RATES]
    return {
        n: values
        for name in ("train", "validation", "test")
        for n, values in zip(
            numbers_of(store, name), whole(store.split(name)).numeric[:, columns].tolist(), strict=True
        )
    }


def features(store: Store, split: str = "") -> dict[int, dict[str, float]]:
    """Rates and counts before scaling, by row number."""
    by_row = {}
    names = [f.name for f in store.schema.of_kind(Kind.NUMERIC)]
    for name in [split] if split else ["train", "validation", "test"]:
        numeric = whole(store.split(name)).numeric.double().numpy()
        for row, values in zip(numbers_of(store, name), numeric, strict=True):
            kept = {f: store.content["statistics"][f] for f in RATES}
            by_row[row] = {f: values[names.index(f)] * kept[f]["deviation"] + kept[f]["mean"] for f in RATES}
    return by_row


def slow_rate(seen: list[Row], key: tuple[str, ...], by: list[str], of: str, smoothing: float) -> float:
    def counts(rows: list[Row]) -> tuple[int, int]:
        rows = [r for r in rows if of != "buy" or r["click"]]
        return sum(r["seconds"] > 30 if of == "long" else r[of] for r in rows), len(rows)

    seen = [r for r in seen if all(r[b] for b in by)]
    all_s, all_n = counts(seen)
    s, n = counts([r for r in seen if tuple(r[b] for b in by) == key])
    overall = (all_s + 1) / (all_n + 2)
    rate = (s + smoothing * overall) / (n + smoothing)
    return math.log(rate / (1 - rate)) - math.log(overall / (1 - overall))


def slow_features(rows: list[Row], row: Row, every: int) -> dict[str, float]:
    """Features from earlier rows, for a log with a time."""
    seen = [r for r in rows if r["time"] // every < row["time"] // every]
    item, pair, user = (row["item"],), (row["user"], row["city"]), row["user"]
    of_pair = [r for r in seen if (r["user"], r["city"]) == pair]
    return {
        "item_rate_click": slow_rate(seen, item, ["item"], "click", 4),
        "item_rate_buy": slow_rate(seen, item, ["item"], "buy", 4),
        "item_rows": math.log1p(sum(r["item"] == row["item"] for r in seen)),
        "pair_rate": slow_rate(seen, pair, ["user", "city"], "long", 20) if all(pair) else 0.0,
        "pair_rows": math.log1p(len(of_pair)) if all(pair) else 0.0,
        "user_rows": math.log1p(sum(r["user"] == user for r in seen)) if user else 0.0,
    }


@pytest.mark.parametrize("every", ["row", "day"])
def test_every_row_of_every_split_sees_earlier_rows(tmp_path: Path, every: str) -> None:
    rows = draw()
    store = store_of(tmp_path, rows, spec_of("time", every=every))
    for n, values in features(store).items():
        expected = slow_features(rows, rows[n], 1 if every == "row" else 86_400)
        assert values == pytest.approx(expected, abs=1e-4), n


def test_labels_of_training_rows_alone(tmp_path: Path) -> None:
    """With rates.rows: train, no label of validation and test enters any feature."""
    rows, spec = draw(), spec_of("time", rows="train")
    store = store_of(tmp_path, rows, spec)
    training = [rows[n] for n in numbers_of(store, "train")]
    for n, values in features(store).items():
        assert values == pytest.approx(slow_features(training, rows[n], 1), abs=1e-4)


@pytest.mark.parametrize("chunk", [7, 50])
def test_small_chunks_give_the_same_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    rows = draw()
    whole_store = store_of(tmp_path / "whole", rows, SPEC)
    monkeypatch.setattr(table_file, "CHUNK", chunk)
    small = features(store_of(tmp_path / "small", rows, SPEC))
    for n, values in features(whole_store).items():
        assert small[n] == pytest.approx(values)


@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**20), st.sampled_from(["row", "day", "folds"]))
def test_no_own_label_and_no_later_one_ever_enters(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kind: str
) -> None:
    """Change the labels of a row and of later ones: its features and those of all earlier rows are equal to the bit."""
    rng, rows, folder = random.Random(seed), draw(seed), tmp_path_factory.mktemp("log")
    spec = spec_of(kind) if kind == "folds" else spec_of("time", every=kind)
    spec["split"]["allow_one_class"] = True
    store = store_of(folder / "a", rows, spec)
    before = stored(store)
    chosen = rng.choice(rows)
    if kind == "folds":
        chosen = rows[rng.choice(numbers_of(store, "train"))]
        changed = [r for r in rows if r is chosen or r["n"] not in numbers_of(store, "train")]
        same = {chosen["n"]}  # and no tested row contributes to any feature
    else:
        every = 1 if kind == "row" else 86_400
        changed = [r for r in rows if r["time"] // every >= chosen["time"] // every]
        same = {r["n"] for r in rows if r["time"] // every <= chosen["time"] // every}
    other = [dict(r) for r in rows]
    for r in changed:
        click = rng.randrange(2)
        other[r["n"]] |= {"click": click, "buy": click * rng.randrange(2), "seconds": rng.randrange(60)}
    if all(len({r["click"] for r in other if r["n"] in numbers_of(store, s)}) == 2 for s in ("train",)):
        after = stored(store_of(folder / "b", other, spec))
        assert {n: after[n] for n in same} == {n: before[n] for n in same}


def test_a_label_does_enter_the_features_of_later_rows(tmp_path: Path) -> None:
    """Otherwise the property above would hold for features that no label enters."""
    rows = draw()
    first = min(rows, key=lambda r: r["time"])
    other = [r | {"click": 1 - r["click"], "buy": 0} if r is first else r for r in rows]
    before, after = (stored(store_of(tmp_path / name, log, SPEC)) for name, log in (("a", rows), ("b", other)))
    later = [r["n"] for r in rows if r["time"] > first["time"]]
    assert (
        sum(after[n] != before[n] for n in later) > len(later) / 2
    )  # those of other keys without a history do not change
    assert {n: v for n, v in after.items() if n not in later} == {n: v for n, v in before.items() if n not in later}


def test_folds_give_each_training_row_the_others_and_tested_rows_all(tmp_path: Path) -> None:
    rows = draw()
    store = store_of(tmp_path, rows, spec_of("folds"))
    training = [rows[n] for n in numbers_of(store, "train")]
    for n, values in features(store, "test").items():
        expected = slow_rate(training, (rows[n]["item"],), ["item"], "click", 4)
        assert values["item_rate_click"] == pytest.approx(expected, abs=1e-4)
    all_rows = {i: sum(r["item"] == i for r in training) for i in "pqrst"}
    left_out = [
        all_rows[rows[n]["item"]] - round(math.expm1(values["item_rows"]))
        for n, values in features(store, "train").items()
    ]
    assert min(left_out) > 0  # at least the row itself
    assert np.mean(left_out) == pytest.approx(np.mean(list(all_rows.values())) / 5, rel=0.4)


@pytest.mark.parametrize("kind", ["row", "folds"])
def test_new_rows_are_told_as_those_of_the_log(tmp_path: Path, kind: str) -> None:
    """The test split's rows, read again from a separate file without labels."""
    rows = draw()
    spec = spec_of(kind) if kind == "folds" else SPEC
    store = store_of(tmp_path, rows, spec)
    places = numbers_of(store, "test")
    path = tmp_path / "new.csv"
    pl.DataFrame([rows[n] for n in places]).drop("click", "buy", "seconds").write_csv(path)
    (split,) = list(make_table(tmp_path, spec).read(path, store))
    np.testing.assert_allclose(whole(split).numeric, whole(store.split("test")).numeric, atol=1e-5)
    assert whole(split).ids.tolist() == whole(store.split("test")).ids.tolist()


def test_a_column_of_rising_numbers_is_a_time_and_parquet_times_are(tmp_path: Path) -> None:
    rows = draw()
    spec = copy.deepcopy(SPEC)
    del spec["fields"]["at"]
    by_column = features(store_of(tmp_path / "a", rows, spec))
    frame = pl.DataFrame(rows).with_columns(pl.from_epoch("time", "s"))
    frame.write_parquet(tmp_path / "t.parquet")
    made = prepare(make_table(tmp_path, spec | {"files": "t.parquet"}, "t.parquet"), tmp_path / "data")
    for n, values in features(made).items():
        assert values == pytest.approx(slow_features(rows, rows[n], 1), abs=1e-4)
        assert by_column[n] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": {"rate": {"of": "click"}}}, "fields.x.rate.by: must name a field or column"),
        ({"x": {"rate": {"by": "item"}}}, "fields.x.rate.of: must name a task, or be an expression"),
        ({"x": {"count": {"by": "item", "of": "click"}}}, "fields.x.count.of: a count"),
        ({"x": {"rate": {"of": "click", "by": "itme"}}}, "no column 'itme', named by fields.x"),
        ({"x": {"rate": {"of": "clik == ", "by": "item"}}}, "fields.x.rate.of: neither a task nor an expression"),
        (
            {"x": {"rate": {"of": ["click", "clik"], "by": "item"}}},
            "'clik' is not one of click, buy; did you mean click?",
        ),
        ({"x": {"rate": {"of": "clik", "by": "item"}}}, "no column 'clik', named by fields.x"),
        ({"x": {"rate": {"of": "click", "by": ["item", "item"]}}}, "fields.x.rate.by: ['item', 'item'] is neither"),
        (
            {"x": {"rate": {"of": "click", "by": "item", "smoothing": 0}}},
            "fields.x.rate.smoothing: 0 is not a finite number from 0.001",
        ),
        ({"x": {"rate": {"of": "click", "by": "item", "smooth": 3}}}, "unknown key; did you mean smoothing?"),
        ({"x": {"rate": {"of": "click", "by": "item"}, "kind": "id"}}, "fields.x.kind: cannot be combined with rate"),
        (
            {"x": {"rate": {"of": "click", "by": "item"}, "count": {"by": "item"}}},
            "count: cannot be combined with rate",
        ),
        ({"x": {"rate": "click"}}, "fields.x.rate: must be a mapping of settings"),
        ({"x": {"count": {"by": "item", "smoothing": 3}}}, "fields.x.count.smoothing: a count"),
        ({"x": {"rate": {"of": "click", "by": "item", "smoothing": 1e-300}}}, "is not a finite number from 0.001"),
        (
            {"x": {"rate": {"of": "click", "by": "user_rows"}}},
            "user_rows is computed from the log",
        ),
        (
            {"x": {"rate": {"of": "click", "by": ["item", "click"]}}},
            "fields.x: column click determines task click",
        ),
        (
            {"x": {"rate": {"of": "seconds > 3", "by": "seconds"}}},
            "fields.x: column seconds determines an expression of this field",
        ),
        ({"x": {"kind": "rate"}}, "'rate' is not one of id, ids, sequence, numeric, vector, time"),
        ({"item_rate_click": {"kind": "id", "column": "item"}}, "fields.item_rate_click: "),
        ({"x": {"rate": {"of": "seconds", "by": "item"}}}, "field x: the label is neither 0 nor 1 (seconds = "),
    ],
)
def test_wrong_rates(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    spec = copy.deepcopy(SPEC)
    spec["fields"] |= change
    assert said in refusal(lambda: store_of(tmp_path, draw(), spec))


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"folds": 10**30}, "is not a whole number from 2 to 1000"),
        ({"every": "week"}, "rates.every: 'week' is not one of row, day"),
        ({"rows": "test"}, "rates.rows: 'test' is not one of all, train"),
        ({"folds": 1}, "rates.folds: 1 is not a whole number from 2 to 1000"),
        ({"time": "tiem"}, "no column 'tiem', named by fields."),
        ({"time": "time", "every": "day"}, "rates.every: day needs rates.time to name a field of kind time"),
        ({"times": "at"}, "rates.times: unknown key; did you mean time?"),
    ],
)
def test_wrong_settings_of_all_rates(tmp_path: Path, rates: dict[str, Any], said: str) -> None:
    assert said in refusal(lambda: store_of(tmp_path, draw(), SPEC | {"rates": rates}))


def test_a_table_with_several_times_names_the_one_of_the_rows(tmp_path: Path) -> None:
    """By the time at which its user joined, a row would see later rows."""
    spec = copy.deepcopy(SPEC)
    spec["fields"] = {"joined": {"kind": "time"}, **spec["fields"]}
    rows = [row | {"joined": 86_400} for row in draw()]
    said = refusal(lambda: store_of(tmp_path / "both", rows, spec))
    assert "rates.time: must name the time at which a row happened, one of joined, at" in said
    del spec["fields"]["at"]
    said = refusal(lambda: store_of(tmp_path / "split", rows, spec))
    assert "one of joined, time" in said
    store_of(tmp_path / "named", rows, spec | {"rates": {"time": "time"}})
    without = {name: field for name, field in spec["fields"].items() if not {"rate", "count"} & set(field)}
    store_of(tmp_path / "without", rows, spec | {"fields": without, "ignore": "rest"})


def test_a_row_without_a_time(tmp_path: Path) -> None:
    rows = draw()
    spec = copy.deepcopy(SPEC) | {"split": {"by": "fraction", "validation": 0.2, "test": 0.2}}
    rows[7]["time"] = None
    message = refusal(lambda: store_of(tmp_path, rows, spec))
    assert "t.csv, row 9: column time: is empty" in message


@pytest.mark.parametrize("bad", [3, N - 1])
@pytest.mark.parametrize("column", ["seconds", "time"])
def test_rows_that_are_left_out_are_in_no_split_and_in_no_rate(tmp_path: Path, bad: int, column: str) -> None:
    """Rows that only a rate cannot read, including the last row of the file."""
    rows = draw()
    spec = copy.deepcopy(SPEC) | {"split": {"by": "hash", "column": "n", "validation": 0.2, "test": 0.2}}
    del spec["fields"]["at"]
    spec["rates"] = {"time": "time"}
    text = pl.DataFrame([{k: str(v) for k, v in r.items()} | ({column: "?"} if r["n"] == bad else {}) for r in rows])
    make_table(tmp_path, spec, "t.csv", text.write_csv())
    store = prepare(Table(str(tmp_path / "spec.yaml"), bad_rows=1), tmp_path / "data")
    kept = [r for r in rows if r["n"] != bad]
    assert sorted(n for s in ("train", "validation", "test") for n in numbers_of(store, s)) == [r["n"] for r in kept]
    for n, values in features(store).items():
        assert values == pytest.approx(slow_features(kept, rows[n], 1), abs=1e-4)


def test_lists_are_keys_alike_in_csv_and_parquet(tmp_path: Path) -> None:
    rows = [r | {"tags": ["a", "b"] if r["item"] in "pq" else ["c"]} for r in draw()]
    spec = copy.deepcopy(SPEC)
    spec["fields"]["tags"] = {"kind": "ids"}
    spec["fields"]["item_rate"]["rate"]["by"] = "tags"
    frame = pl.DataFrame(rows)
    as_text = prepare(
        make_table(tmp_path / "a", spec, "t.csv", frame.with_columns(pl.col("tags").list.join("|")).write_csv()),
        tmp_path / "data",
    )
    table = make_table(tmp_path / "b", spec | {"files": "t.parquet"}, "t.parquet")
    frame.write_parquet(tmp_path / "b" / "t.parquet")
    as_lists = prepare(table, tmp_path / "data2")
    assert stored(as_lists) == stored(as_text)


@pytest.mark.parametrize("column", [pl.Series([b"\xff"] * N), pl.Series([1] * N).cast(pl.Duration("us"))])
def test_what_cannot_be_a_key_is_one_line(tmp_path: Path, column: pl.Series) -> None:
    spec = copy.deepcopy(SPEC) | {"files": "t.parquet"}
    spec["fields"]["item_rate"]["rate"]["by"] = "odd"
    table = make_table(tmp_path, spec, "t.parquet")
    pl.DataFrame(draw()).with_columns(odd=column).write_parquet(tmp_path / "t.parquet")
    assert "column odd: has type" in refusal(lambda: prepare(table, tmp_path / "data"))
