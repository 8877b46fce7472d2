"""The embedding table against a slow loop over rows, fields and values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dlen.batch import Batch
from dlen.nn.embedding import EmbeddingTable, deferred_tables
from dlen.schema import Field, Kind, Pooling, Schema
from tests.helpers import FIELDS, make_batch, make_schema, tasks_with_rates

DIM = 3


def bags(batch: Batch) -> Iterator[tuple[int, int, list[tuple[int, float]]]]:
    """(field, row, values with weights) of every bag, in the documented order."""
    start = 0
    for field, lengths in enumerate(batch.bag_lengths.tolist()):
        for row, length in enumerate(lengths):
            part = slice(start, start + length)
            yield field, row, list(zip(batch.bag_ids[part].tolist(), batch.bag_weights[part].tolist(), strict=True))
            start += length


def coefficients(schema: Schema, batch: Batch) -> list[list[dict[int, float]]]:
    """The weight of each table row, for each row and id field, single-valued fields first."""
    single = [[{i: 1.0} for i in row] for row in batch.ids.tolist()]
    kinds = schema.of_kind(Kind.IDS)
    for field, row, values in bags(batch):
        total = sum(w for _, w in values) if kinds[field].pooling is Pooling.MEAN else 1.0
        entry: dict[int, float] = {}
        for index, weight in values:
            entry[index] = entry.get(index, 0.0) + weight / total
        single[row].append(entry)
    return single


def slow_output(schema: Schema, batch: Batch, table: list[list[float]]) -> Tensor:
    rows = []
    for parts, numbers in zip(coefficients(schema, batch), batch.numeric.tolist(), strict=True):
        row = [sum(w * table[i][d] for i, w in part.items()) for part in parts for d in range(DIM)]
        rows.append(row + numbers)
    return torch.tensor(rows)


@pytest.mark.parametrize("seed", range(3))
def test_output_equals_a_slow_loop(seed: int) -> None:
    schema = make_schema()
    batch = make_batch(schema, 20, seed)
    assert (batch.bag_lengths == 0).any()
    embedding = EmbeddingTable(schema, DIM, std=1.0)
    out = embedding(batch)
    assert out.shape == (20, embedding.out_dim)
    torch.testing.assert_close(out, slow_output(schema, batch, embedding.weight.tolist()), rtol=1e-5, atol=1e-5)


def test_mean_divides_by_the_weights_and_sum_does_not() -> None:
    schema = make_schema(fields=(Field("a", Kind.IDS, vocab_size=3), Field("b", Kind.IDS, "user", 2, Pooling.SUM)))
    batch = make_batch(schema, 2)
    batch.bag_lengths = torch.tensor([[2, 0], [0, 2]])
    batch.bag_ids = torch.tensor([0, 2, 3, 4], dtype=torch.int32)
    batch.bag_weights = torch.tensor([1.0, 3.0, 0.5, 2.0])
    embedding = EmbeddingTable(schema, 1)
    embedding.weight.data = torch.tensor([[1.0], [10.0], [100.0], [1000.0], [10000.0]])
    torch.testing.assert_close(embedding(batch), torch.tensor([[301 / 4, 0.0], [0.0, 20500.0]]))


def test_a_batch_whose_bags_are_all_empty() -> None:
    schema = make_schema()
    batch = make_batch(schema, 4, longest_bag=0)
    embedding = EmbeddingTable(schema, DIM)
    out = embedding(batch)
    assert len(batch.bag_ids) == 0
    assert (out[:, 2 * DIM : 4 * DIM] == 0).all()
    out.square().sum().backward()
    assert embedding.weight.grad is not None


def test_gradient_is_sparse_and_equals_a_slow_loop() -> None:
    schema = make_schema()
    batch = make_batch(schema, 5, seed=4)
    embedding = EmbeddingTable(schema, DIM)
    out = embedding(batch)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    out.backward(upstream)
    grad = embedding.weight.grad
    assert grad is not None
    assert grad.is_sparse
    wanted = torch.zeros_like(embedding.weight)
    for row, parts in enumerate(coefficients(schema, batch)):
        for field, part in enumerate(parts):
            for index, weight in part.items():
                wanted[index] += weight * upstream[row, field * DIM : (field + 1) * DIM]
    torch.testing.assert_close(grad.to_dense(), wanted, rtol=1e-5, atol=1e-6)
    in_batch = set(batch.ids.flatten().tolist()) | set(batch.bag_ids.tolist())
    assert len(in_batch) < schema.num_embeddings
    assert set(grad.coalesce().indices()[0].tolist()) == in_batch


@pytest.mark.parametrize("kind", [Kind.ID, Kind.IDS, Kind.NUMERIC])
def test_fields_of_one_kind_alone(kind: Kind) -> None:
    schema = make_schema(fields=tuple(f for f in FIELDS if f.kind is kind))
    batch = make_batch(schema, 6)
    embedding = EmbeddingTable(schema, DIM)
    torch.testing.assert_close(embedding(batch), slow_output(schema, batch, embedding.weight.tolist()))


def test_fields_do_not_share_rows() -> None:
    schema = make_schema()
    embedding = EmbeddingTable(schema, DIM)
    assert len(embedding.weight) == 7 + 13 + 11 + 5
    assert schema.offsets["tags"] == 7
    assert schema.offsets["item"] == 20
    assert schema.offsets["matches"] == 31


@pytest.mark.parametrize("outputs", [1, 3, 5])
def test_first_order_sums_equal_a_slow_loop_and_stand_behind_the_vectors(outputs: int) -> None:
    schema = make_schema(tasks_with_rates(*[0.1] * outputs))
    batch = make_batch(schema, 20, 1)
    embedding = EmbeddingTable(schema, DIM, first_order=True)
    assert not embedding.weight[:, DIM:].any()  # initialised to 0
    assert embedding.weight.shape[1] % 4 == DIM % 4
    torch.nn.init.normal_(embedding.weight)
    out = embedding(batch)
    assert out.shape == (20, embedding.out_dim + outputs)
    table = embedding.weight.tolist()
    torch.testing.assert_close(out[:, : embedding.out_dim], slow_output(schema, batch, table), rtol=1e-5, atol=1e-5)
    sums = [
        [
            sum(w * table[i][DIM + o] for part in parts for i, w in part.items()) / 2 for o in range(outputs)
        ]  # four fields
        for parts in coefficients(schema, batch)
    ]
    torch.testing.assert_close(out[:, embedding.out_dim :], torch.tensor(sums), rtol=1e-5, atol=1e-5)


def test_a_deferred_table_with_first_order_numbers_is_drawn_as_one_with_memory() -> None:
    torch.manual_seed(3)
    whole = EmbeddingTable(make_schema(), DIM, first_order=True).weight
    torch.manual_seed(3)
    with deferred_tables():
        parts = [values for _, values in EmbeddingTable(make_schema(), DIM, first_order=True).initial()]
    assert torch.equal(torch.cat(parts), whole)
