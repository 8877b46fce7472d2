"""``dim`` of a table's fields: it moves rows of the embedding table, and changes nothing else that is prepared."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from dlen.data.store import Store
from dlen.schema import Kind, Schema
from tests.data.helpers import refusal, whole
from tests.data.sources.test_table_sequences import SPEC, draw, store_of

FIELDS: dict[str, Any] = SPEC["fields"] | {"tags": {"kind": "ids", "column": "liked2"}}


def store(folder: Path, **dims: int) -> Store:
    folder.mkdir()
    fields = deepcopy(FIELDS)
    for name, dim in dims.items():
        fields[name]["dim"] = dim
    rows = [row | {"liked2": row["liked"]} for row in draw()]
    return store_of(folder, rows, SPEC | {"fields": fields})


def codes(store: Store) -> list[torch.Tensor]:
    """The codes of every id field of all rows, in the order of their columns."""
    batch, schema = whole(store.split("train")), store.schema
    found = [batch.ids[:, n] - schema.offsets[f.name] for n, f in enumerate(schema.of_kind(Kind.ID))]
    (tags,) = schema.of_kind(Kind.IDS)
    found.append(batch.bag_ids - schema.offsets[tags.name])
    for sequence, lists in zip(batch.sequences, schema.sequences.values(), strict=True):
        found += [sequence.ids[:, n] - schema.offsets[f.name] for n, f in enumerate(lists)]
    return found


def test_only_the_rows_of_the_table_move(tmp_path: Path) -> None:
    plain, changed = store(tmp_path / "a"), store(tmp_path / "b", user=2, how=1, tags=2)
    assert {f.name: f.dim for f in changed.schema.fields if f.dim} == {"user": 2, "how": 1, "tags": 2}
    assert changed.schema == Schema.from_dict(changed.schema.to_dict())
    assert [f.name for f in changed.schema.owners][-3:] == ["how", "user", "tags"]
    assert plain.schema.offsets != changed.schema.offsets
    for before, after in zip(codes(plain), codes(changed), strict=True):
        assert torch.equal(before, after)
    assert plain.unknown == changed.unknown
    for field in plain.schema.owners:
        before, after = (s.counts[s.schema.rows(field.name)] for s in (plain, changed))
        assert torch.equal(before, after), field.name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user": {"dim": -1}}, "fields.user.dim: -1 is not a whole number"),
        ({"user": {"dim": "4"}}, "fields.user.dim: '4' is not a whole number"),
        ({"n": {"kind": "numeric", "dim": 4}}, "fields.n.dim: is for ids; remove it from a field of kind numeric"),
        ({"last": {"share": "item", "dim": 4}}, "fields.last.dim: the vectors are those of item; set it there"),
        ({"seen": {"history": {"of": "item", "by": "user"}, "dim": 4}}, "fields.seen.dim: cannot be combined"),
    ],
)
def test_wrong_dims(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    assert said in refusal(lambda: store_of(tmp_path, draw(), SPEC | {"fields": SPEC["fields"] | change}))
