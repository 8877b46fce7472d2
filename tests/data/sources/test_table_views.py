"""Columns that are known only afterwards: stored in bins, evidence in training, and never asked of new rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from dlen.data.prepare import prepare
from dlen.schema import Schema, View
from tests.data.helpers import check_resident_copy, make_table, refusal, whole

N = 400
SPEC: dict[str, Any] = {
    "fields": {"user": {"side": "user"}, "watched": {"kind": "view", "column": "seconds", "buckets": 8, "of": "long"}},
    "tasks": {"long": "long", "like": "like"},
    "split": {"by": "fraction", "validation": 0.2, "test": 0.2},
}


def draw() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    seconds = rng.gamma(2.0, 10.0, N).round(1)
    seconds[::9] = 0.0
    return pl.DataFrame(
        {
            "user": rng.integers(0, 20, N),
            "seconds": [None if n % 13 == 0 else float(s) for n, s in enumerate(seconds)],
            "long": (seconds > 15).astype(int),
            "like": rng.integers(0, 2, N),
        }
    )


def test_bins_are_those_of_the_training_rows(tmp_path: Path) -> None:
    rows = draw()
    store = prepare(make_table(tmp_path, SPEC, "t.csv", rows.write_csv()), tmp_path / "data")
    assert store.schema.views == (View("watched", len(store.content["statistics"]["watched"]["edges"]) + 1, ("long",)),)
    assert [f.name for f in store.schema.fields] == ["user"]
    assert Schema.from_dict(store.schema.to_dict()) == store.schema
    edges = store.content["statistics"]["watched"]["edges"]
    wanted = sorted(255 if s is None else sum(s >= edge for edge in edges) for s in rows["seconds"].to_list())
    found = [int(b) for name in ("train", "validation", "test") for b in whole(store.split(name)).views[:, 0]]
    assert sorted(found) == wanted


def test_batches_follow_their_rows(tmp_path: Path) -> None:
    store = prepare(make_table(tmp_path, SPEC, "t.csv", draw().write_csv()), tmp_path / "data")
    split = store.split("train")
    index = torch.randperm(len(split))[:50]
    assert torch.equal(split.batch(index).views, whole(split).views[index])
    check_resident_copy(split, index)


def test_new_rows_need_no_view(tmp_path: Path) -> None:
    source = make_table(tmp_path, SPEC, "t.csv", draw().write_csv())
    store, rows = prepare(source, tmp_path / "data"), draw()
    new = tmp_path / "new.csv"
    new.write_text(rows.select("user").write_csv())
    batch = whole(next(iter(source.read(new, store))))
    assert len(batch) == N
    assert batch.known_views is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"of": "nothing"}, "fields.watched.of"),
        ({"kind": "numeric"}, "fields.watched.of: is for kind: view"),
        ({"buckets": 300}, "fields.watched.buckets: a view has at most 250"),
        ({"column": "like"}, "the labels of like are computed from column like"),
        ({"column": "long", "of": []}, "set of: [long]"),
        ({"column": "nowhere"}, "no column 'nowhere'"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    spec = {**SPEC, "fields": {**SPEC["fields"], "watched": {**SPEC["fields"]["watched"], **changes}}, "ignore": "rest"}
    assert said in refusal(lambda: prepare(make_table(tmp_path, spec, "t.csv", draw().write_csv()), tmp_path / "data"))


def test_an_unreadable_cell_is_told(tmp_path: Path) -> None:
    text = draw().write_csv().replace("\n3,", "\n3,x", 1)
    assert "seconds" in refusal(lambda: prepare(make_table(tmp_path, SPEC, "t.csv", text), tmp_path / "data"))
