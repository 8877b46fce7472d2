"""Rates that ids get by themselves: those that the YAML could ask for, where a time orders the rows."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlen.data.prepare import prepare
from dlen.data.sources import table_id_rates
from dlen.data.store import Store
from dlen.schema import Kind
from tests.data.helpers import make_table, refusal, whole

N = 400
Row = dict[str, Any]
SPEC: dict[str, Any] = {
    "fields": {
        "user": {"side": "user"},
        "item": {"side": "item"},
        "before": {"share": "item"},
        "gender": {"side": "user"},
        "request": {},
        "place": {},
    },
    "tasks": {"click": "click", "buy": "buy"},
    "split": {"by": "time", "column": "time", "validation": 0.2, "test": 0.2},
    "position": "place",
}
RATED = ["user_rate_click", "user_rate_buy", "item_rate_click", "item_rate_buy"]


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten ids are many in these small logs."""
    monkeypatch.setattr(table_id_rates, "_FEWEST_IDS", 10)


def draw(seed: int = 0) -> list[Row]:
    """A log not ordered by time: 20 users, 30 items, two genders, and a request that never comes again."""
    rng = random.Random(seed)
    return [
        {
            "user": f"u{rng.randrange(20)}",
            "item": f"i{rng.randrange(30)}",
            "before": f"i{rng.randrange(30)}",
            "gender": rng.choice("mf"),
            "request": f"r{n}",
            "place": rng.randrange(15),
            "time": rng.randrange(1000),
            "click": rng.randrange(2),
            "buy": rng.randrange(2),
        }
        for n in range(N)
    ]


def spec_with(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(SPEC) | changes


def store_of(folder: Path, rows: list[Row], spec: dict[str, Any]) -> Store:
    return prepare(make_table(folder, spec, "t.csv", pl.DataFrame(rows).write_csv()), folder / "data")


def numbers(store: Store) -> dict[str, np.ndarray]:
    """Numeric fields by name, (rows,) of all splits together."""
    names = [f.name for f in store.schema.of_kind(Kind.NUMERIC)]
    splits = [whole(store.split(name)).numeric.numpy() for name in ("train", "validation", "test")]
    return dict(zip(names, np.concatenate(splits).T, strict=True))


@pytest.mark.parametrize("rows", ["all", "train"])
def test_ids_get_the_rates_that_the_yaml_could_ask_for(tmp_path: Path, rows: str) -> None:
    store = store_of(tmp_path / "found", draw(), spec_with(rates={"rows": rows}))
    found = numbers(store)
    assert list(found) == RATED
    assert store.content["notes"]["rates_of_ids"].startswith("user, item, from earlier rows; ")
    asked = spec_with(rates={"rows": rows})
    for name in ("user", "item"):
        asked["fields"][f"{name}_rate"] = {"rate": {"of": ["click", "buy"], "by": name}}
    explicit = numbers(store_of(tmp_path / "asked", draw(), asked))
    for name in RATED:
        np.testing.assert_array_equal(found[name], explicit[name])


@pytest.mark.parametrize(
    "change",
    [
        {"rates": {"ids": "none"}},
        {"rates": {"time": "none"}},
        {"split": {"by": "fraction", "validation": 0.2, "test": 0.2}, "ignore": "rest"},
        {"fields": {**SPEC["fields"], "joined": {"kind": "time", "column": "joined"}}},
        {"fields": {**SPEC["fields"], "seen": {"count": {"by": "user"}}}},
    ],
    ids=["told so", "no time", "no split by time", "two times", "own count"],
)
def test_no_rates(tmp_path: Path, change: dict[str, Any]) -> None:
    """Without a known time, rates would be those of other folds; and who writes rates has chosen."""
    rows = [row | {"joined": row["time"] % 7} for row in draw()]
    spec = {"ignore": ["joined"]} | spec_with(**change)
    if "joined" in spec["fields"]:
        del spec["ignore"]
    assert not [name for name in numbers(store_of(tmp_path, rows, spec)) if name != "seen"]


def test_a_name_that_is_taken_and_regressions(tmp_path: Path) -> None:
    spec = spec_with()
    spec["fields"]["item_rate_buy"] = {"column": "place"}
    spec["position"] = "item_rate_buy"
    del spec["fields"]["place"]
    spec["tasks"]["seconds"] = {"label": "time", "kind": "regression"}
    spec["split"] = {"by": "column", "column": "gender", "validation": ["m"], "test": ["f"]}
    del spec["fields"]["gender"]
    rows = [row | {"gender": random.Random(n).choice("mfxx"), "at": row["time"]} for n, row in enumerate(draw())]
    found = numbers(store_of(tmp_path, rows, spec | {"rates": {"time": "at"}}))
    assert list(found) == RATED[:2]  # those of users, of binary tasks alone


@pytest.mark.parametrize("with_time", [True, False])
def test_new_rows_need_no_time(tmp_path: Path, with_time: bool) -> None:
    """The test rows again. Without a time they come after all others, which is where counts of training rows end."""
    spec = spec_with(rates={"rows": "train"})
    store = store_of(tmp_path, draw(), spec)
    frame = pl.DataFrame(sorted(draw(), key=lambda row: row["time"])[int(N * 0.8) :]).drop("click", "buy")
    (frame if with_time else frame.drop("time")).write_csv(tmp_path / "new.csv")
    (split,) = list(make_table(tmp_path, spec).read(tmp_path / "new.csv", store))
    expected = whole(store.split("test")).numeric.numpy()
    found = whole(split).numeric.numpy()
    assert sorted(map(tuple, found.round(4))) == sorted(map(tuple, expected.round(4)))


def test_the_first_rows_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log whose first rows hold few users."""
    monkeypatch.setattr(table_id_rates, "_LOOKED_AT", 50)
    monkeypatch.setattr("dlen.data.sources.table_file.CHUNK", 60)
    rows = sorted(draw(), key=lambda row: (row["user"] > "u14", row["time"]))
    rows = [row | {"user": "u1"} if n < 120 else row for n, row in enumerate(rows)]
    assert list(numbers(store_of(tmp_path, rows, SPEC))) == RATED[2:]


def test_the_time_is_a_column_that_is_used(tmp_path: Path) -> None:
    """Also where nothing needs it; and it has to be there."""
    spec = spec_with(rates={"ids": "none", "time": "time"}, split={"by": "hash", "column": "user"})
    assert not numbers(store_of(tmp_path, draw(), spec))
    spec["rates"]["time"] = "tiem"
    assert "no column 'tiem', named by rates.time" in refusal(lambda: store_of(tmp_path, draw(), spec))


def test_a_wrong_setting(tmp_path: Path) -> None:
    said = refusal(lambda: store_of(tmp_path, draw(), spec_with(rates={"ids": "test"})))
    assert "rates.ids: 'test' is not one of auto, none" in said
