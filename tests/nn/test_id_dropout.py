"""Count-aware id dropout: which ids are replaced, by what, and how often."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from dlen.batch import Batch
from dlen.nn.id_dropout import IdDropout
from dlen.schema import Kind, Schema
from tests.helpers import make_batch, make_schema

TIMES = 4000


def counts_of(schema: Schema) -> Tensor:
    return torch.arange(schema.num_embeddings) % 7 * 3


def field_of(schema: Schema) -> list[str]:
    """The field of each row of the table."""
    return [f.name for f in schema.fields for _ in range(f.vocab_size)]


def bag_fields(schema: Schema, batch: Batch) -> list[str]:
    """The field of each value, in the documented order."""
    names = [f.name for f in schema.of_kind(Kind.IDS)]
    return [name for name, lengths in zip(names, batch.bag_lengths.tolist(), strict=True) for _ in range(sum(lengths))]


@pytest.mark.slow
def test_each_id_gives_way_to_its_fields_unknown_id_as_often_as_its_count_says() -> None:
    schema, torch_seed = make_schema(), 0
    batch, counts, owner = make_batch(schema, 30), counts_of(schema), field_of(schema)
    dropout = IdDropout(schema, counts, k=3.0, most=0.4, fields={"item": 12.0, "tags": 0.0})
    torch.manual_seed(torch_seed)
    singles, values = torch.zeros(batch.ids.shape), torch.zeros(batch.bag_ids.shape)
    singles_of = [f.name for f in schema.of_kind(Kind.ID)]
    unknown = torch.tensor([schema.offsets[n] for n in singles_of])
    unknown_values = torch.tensor([schema.offsets[n] for n in bag_fields(schema, batch)])
    for _ in range(TIMES):
        found = dropout(batch)
        assert bool(((found.ids == batch.ids) | (found.ids == unknown)).all())
        assert bool(((found.bag_ids == batch.bag_ids) | (found.bag_ids == unknown_values)).all())
        singles += found.ids != batch.ids
        values += found.bag_ids != batch.bag_ids
    k = {"user": 3.0, "tags": 0.0, "item": 12.0, "matches": 3.0}
    for ids, replaced in ((batch.ids, singles), (batch.bag_ids, values)):
        for index, times in zip(ids.flatten().tolist(), replaced.flatten().tolist(), strict=True):
            name = owner[index]
            strength, n = k[name], int(counts[index])
            chance = min(0.4, strength / (strength + n)) if strength else 0.0
            if index == schema.offsets[name]:
                chance = 0.0  # already the unknown id
            assert abs(times / TIMES - chance) < 5 * (chance * (1 - chance) / TIMES) ** 0.5 + 1e-9


def test_nothing_else_of_a_batch_changes_and_the_batch_itself_does_not() -> None:
    schema = make_schema()
    batch, again = make_batch(schema, 50), make_batch(schema, 50)
    found = IdDropout(schema, torch.zeros(schema.num_embeddings))(batch)
    assert bool((found.ids != batch.ids).any())
    for name in ("numeric", "bag_lengths", "bag_weights", "labels", "truth"):
        assert getattr(found, name) is getattr(batch, name)
    assert torch.equal(batch.ids, again.ids)
    assert torch.equal(batch.bag_ids, again.bag_ids)


@pytest.mark.parametrize("why", ["evaluation", "k of 0"])
def test_it_returns_the_batch_itself(why: str) -> None:
    schema = make_schema()
    dropout = IdDropout(schema, counts_of(schema), k=0.0 if why == "k of 0" else 3.0).train(why != "evaluation")
    batch = make_batch(schema, 5)
    state = torch.get_rng_state()
    assert dropout(batch) is batch
    assert torch.equal(torch.get_rng_state(), state)


def test_it_has_no_part_in_a_checkpoint() -> None:
    assert not IdDropout(make_schema(), counts_of(make_schema())).state_dict()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": -1.0}, "k must be a number from 0, got -1.0"),
        ({"k": "three"}, "k must be a number from 0, got 'three'"),
        ({"k": float("nan")}, "k must be a number from 0, got nan"),
        ({"most": 1.0}, "most must be a probability below 1, got 1.0"),
        ({"most": True}, "most must be a probability below 1, got True"),
        ({"fields": {"age": 3.0}}, "fields: 'age' is not a field with ids; those are user, tags, item, matches"),
        ({"fields": {"item": -2}}, "fields.item must be a number from 0, got -2"),
    ],
)
def test_wrong_settings(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        IdDropout(make_schema(), counts_of(make_schema()), **settings)  # type: ignore[arg-type]


def test_counts_of_another_schema() -> None:
    with pytest.raises(ValueError, match="36 ids, got 3"):
        IdDropout(make_schema(), torch.zeros(3))
