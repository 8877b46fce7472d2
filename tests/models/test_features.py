"""Features: one tensor, and which part belongs to which field."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from dlen.models import Ranker
from dlen.models.features import Features, FeatureSpec
from dlen.nn.embedding import EmbeddingTable
from tests.helpers import make_batch, make_schema

DIM = 3


def features(**settings: bool) -> tuple[Features, EmbeddingTable]:
    schema = make_schema()
    table = EmbeddingTable(schema, DIM, **settings)
    return Features(table(make_batch(schema, 5)), FeatureSpec.of(schema, table)), table


def test_fields_are_named_in_the_order_of_their_vectors() -> None:
    made, table = features(first_order=True)
    spec, batch = made.spec, make_batch(make_schema(), 5)
    assert spec.fields == ("user", "item", "tags", "matches")
    assert spec.sides == ("user", "item", "item", "cross")
    assert spec.numbers == ("age", "price")
    assert made.flat.shape == (5, spec.width) == (5, 4 * DIM + 2)
    assert torch.equal(made.field("item"), table.weight[batch.ids[:, 1].long(), :DIM])
    assert torch.equal(made.numbers, batch.numeric)
    assert torch.equal(made.flat, torch.cat([made.fields.flatten(1), made.numbers], 1))
    assert made.first_order is not None
    assert made.first_order.shape == (5, 3)


def test_without_leaves_the_others_as_they_are() -> None:
    made, _ = features(first_order=True)
    rest = made.without(["item"])
    assert rest.spec.fields == ("user", "tags", "matches")
    for name in rest.spec.fields:
        assert torch.equal(rest.field(name), made.field(name))
    assert torch.equal(rest.numbers, made.numbers)
    assert rest.first_order is not None
    assert made.first_order is not None
    assert torch.equal(rest.first_order, made.first_order)
    with pytest.raises(ValueError, match="no embedded field place"):
        made.without(["place"])


def test_private_vectors_are_cut_into_one_input_for_each_task() -> None:
    made, _ = features(private=True)
    assert made.first_order is None
    own = made.by_task(3)
    assert own.shape == (3, 5, made.spec.task_width) == (3, 5, 4 * DIM + 2)
    vectors = made.fields.view(5, 4, 3, DIM)
    for task in range(3):
        assert torch.equal(own[task], torch.cat([vectors[:, :, task].flatten(1), made.numbers], 1))
    shared, _ = features()
    assert torch.equal(shared.by_task(2)[1], shared.flat)


def test_a_shared_part_is_an_input_of_its_own_and_part_of_each_tasks_input() -> None:
    made, table = features(private=True, shared_part=True, first_order=True)
    assert (table.parts, table.dim, table.shared_part) == (4, 4 * DIM, True)
    parts, own = made.by_part(), made.by_task(3)
    assert parts.shape == (4, 5, made.spec.part_width) == (4, 5, 4 * DIM + 2)
    assert own.shape == (3, 5, made.spec.task_width) == (3, 5, 2 * (4 * DIM + 2))
    vectors = made.fields.view(5, 4, 4, DIM)
    for part in range(4):
        assert torch.equal(parts[part], torch.cat([vectors[:, :, part].flatten(1), made.numbers], 1))
    for task in range(3):
        assert torch.equal(own[task], torch.cat([parts[task], parts[3]], 1))
    assert made.first_order is not None
    assert made.first_order.shape == (5, 3)


def test_a_ranker_may_keep_fields_from_its_backbone_and_head() -> None:
    schema = make_schema()
    model = Ranker(schema, embedding=partial(EmbeddingTable, dim=DIM), without=["item"]).eval()
    batch, moved = make_batch(schema, 5), make_batch(schema, 5)
    moved.ids[:, 1] = moved.ids[:, 1].flip(0)
    assert not torch.equal(batch.ids, moved.ids)
    assert torch.equal(model(batch).log_p, model(moved).log_p)
