"""A Polars frame as a data source."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlen.data.prepare import prepare
from dlen.data.sources.frame import frame_source
from dlen.data.sources.table import Table
from dlen.errors import UserError

SPEC: dict[str, Any] = {
    "fields": {"item": {"kind": "id", "side": "item"}, "age": {"kind": "numeric"}},
    "tasks": {"click": "click"},
    "split": {"by": "fraction", "validation": 0.2, "test": 0.2},
}


def frame(rows: int = 300) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    columns = {"item": rng.integers(0, 9, rows), "age": rng.normal(size=rows), "click": rng.integers(0, 2, rows)}
    return pl.DataFrame(columns)


def test_it_is_the_table_of_its_own_files(tmp_path: Path) -> None:
    store = prepare(frame_source(frame(), SPEC, tmp_path / "new", "mine"), tmp_path)
    again = prepare(Table(str(tmp_path / "new" / "mine.yaml"), "mine"), tmp_path)
    assert store.folder == again.folder  # the store of data=table
    labels = [label for name in ("train", "validation", "test") for label in store.split(name).labels[:, 0].tolist()]
    assert sum(labels) == frame()["click"].sum()
    assert len(labels) == 300


def test_the_same_frame_is_not_prepared_again_and_another_is(tmp_path: Path) -> None:
    first = prepare(frame_source(frame(), SPEC, tmp_path, "mine"), tmp_path)
    same = prepare(frame_source(frame(), SPEC, tmp_path, "mine"), tmp_path)
    other = prepare(frame_source(frame(301), SPEC, tmp_path, "mine"), tmp_path)
    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".writing")]


def test_a_spec_may_have_dates_and_numbers_of_numpy(tmp_path: Path) -> None:
    days = pl.date_range(date(2026, 1, 1), date(2026, 10, 27), eager=True)
    split = {"by": "time", "column": "day", "validation_from": date(2026, 9, 1), "test_from": date(2026, 10, 1)}
    spec = {**SPEC, "fields": SPEC["fields"] | {"day": {"kind": "time"}}, "split": split}
    store = prepare(frame_source(frame().with_columns(day=days), spec, tmp_path / "new", "mine"), tmp_path)
    assert [len(store.split(name)) for name in ("train", "validation", "test")] == [243, 30, 27]


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="files: remove it"):
        frame_source(frame(), {**SPEC, "files": "x.csv"}, tmp_path, "mine")
    with pytest.raises(UserError, match=r"mine\.yaml: fields\.item\.knd: unknown key; did you mean kind"):
        frame_source(frame(), {**SPEC, "fields": {"item": {"knd": "id"}}}, tmp_path, "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        frame_source(frame(), SPEC, tmp_path / "file", "mine")
