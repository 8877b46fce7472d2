"""Fields with vectors of their own length against a slow loop over rows, fields and values."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from dlen.batch import Batch
from dlen.models import DLEN, MMoE, SingleTask
from dlen.nn.embedding import EmbeddingTable
from dlen.nn.id_dropout import IdDropout
from dlen.nn.mixed import MixedTables, make_tables
from dlen.schema import Field, Kind, Schema
from dlen.training.optimizers import adagrad, adam
from dlen.training.size import size_figures
from tests.helpers import WITH_DIMS, WITH_SEQUENCES, make_batch, make_schema, tasks_with_rates
from tests.nn.test_embedding import coefficients

DIM = 3
CASES = {
    "every kind": WITH_DIMS,
    "single": tuple(replace(f, dim=2) if f.name == "item" else f for f in WITH_SEQUENCES),
    "first bag": tuple(replace(f, dim=1) if f.name == "tags" else f for f in WITH_SEQUENCES),
    "last bag": tuple(replace(f, dim=3) if f.name == "matches" else f for f in WITH_SEQUENCES),
    "lists alone": tuple(replace(f, dim=2) if f.name == "searches" else f for f in WITH_SEQUENCES),
    "all": tuple(f if f.share or f.kind is Kind.NUMERIC else replace(f, dim=2) for f in WITH_SEQUENCES),
    "without numbers": tuple(f for f in WITH_DIMS if f.kind is not Kind.NUMERIC),
}


def drawn(schema: Schema, *, parts: int = 1, first_order: bool = False) -> MixedTables:
    """Tables in which every number is random, also the first-order terms."""
    torch.manual_seed(0)
    made = make_tables(partial(EmbeddingTable, dim=DIM, first_order=first_order, private=parts > 1), schema)
    assert isinstance(made, MixedTables)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def owner(schema: Schema, row: int) -> Field:
    """The field that a row of the numbering belongs to."""
    return next(f for f in schema.owners if schema.rows(f.name).start <= row < schema.rows(f.name).stop)


def slow_vector(schema: Schema, tables: MixedTables, row: int) -> Tensor:
    """The vector of an id: its d numbers, for each task, times the matrix of its field."""
    field, dims = owner(schema, row), sorted({0, *(f.dim for f in schema.fields)})
    table = dims.index(field.dim)
    before = sum(f.vocab_size for f in schema.owners if f.dim < field.dim)
    weight = tables.tables[table].weight
    assert isinstance(weight, Tensor)
    if not field.dim:
        return weight[row - before][: tables.dim]
    own = [f.name for f in schema.owners if f.dim == field.dim]
    matrices = tables.projections[table - 1][own.index(field.name)]
    parts = weight[row - before][: field.dim * tables.parts].view(tables.parts, field.dim)
    return torch.cat([part @ matrix for part, matrix in zip(parts, matrices, strict=True)])


def slow_output(schema: Schema, batch: Batch, tables: MixedTables) -> Tensor:
    rows = []
    for parts, numbers in zip(coefficients(schema, batch), batch.numeric, strict=True):
        vectors = [
            sum((w * slow_vector(schema, tables, i) for i, w in part.items()), torch.zeros(tables.dim))
            for part in parts
        ]
        rows.append(torch.cat([*vectors, numbers]))
    return torch.stack(rows)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("parts", [1, 3])
def test_output_and_gradient_equal_a_slow_loop(case: str, parts: int) -> None:
    schema = make_schema(fields=CASES[case])
    tables, batch = drawn(schema, parts=parts), make_batch(schema, 9, seed=1)
    out, wanted = tables(batch), slow_output(schema, batch, tables)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    parameters = list(tables.parameters())
    of_loop = torch.autograd.grad(wanted, parameters, upstream, allow_unused=True, materialize_grads=True)
    out.backward(upstream)
    used = set(batch.ids.flatten().tolist()) | set(batch.bag_ids.tolist())
    first, touched = 0, set()
    for parameter, gradient in zip(parameters, of_loop, strict=True):
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found.to_dense(), gradient, rtol=1e-4, atol=1e-5)
        if parameter.dim() == 2:  # a table
            assert parameter.grad is None or found.is_sparse
            touched |= {first + row for row in found.to_sparse().coalesce().indices()[0].tolist()}
            first += len(parameter)
    assert touched == used
    assert len(used) < schema.num_embeddings


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("parts", [1, 3])
def test_lists_equal_a_slow_loop(case: str, parts: int) -> None:
    schema = make_schema(fields=CASES[case])
    tables, batch = drawn(schema, parts=parts), make_batch(schema, 9)
    for place, (found, sequence) in enumerate(zip(tables.of_sequences(batch), batch.sequences, strict=True)):
        slow = [[slow_vector(schema, tables, i) for i in at_place] for at_place in sequence.ids.tolist()]
        wanted = torch.stack([torch.stack(vectors) for vectors in slow])
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        padded = torch.cat([sequence.ids, torch.zeros_like(sequence.ids[:2])])
        served = tables.of_lists(padded, place)
        torch.testing.assert_close(served[:-2], wanted, rtol=1e-5, atol=1e-5)
        assert served.isfinite().all()


@pytest.mark.parametrize("case", CASES)
def test_first_order_sums_equal_a_slow_loop(case: str) -> None:
    schema = make_schema(tasks_with_rates(0.1, 0.2), CASES[case])
    tables, batch = drawn(schema, first_order=True), make_batch(schema, 9)
    dims = sorted({0, *(f.dim for f in schema.fields)})

    def terms(row: int) -> Tensor:
        field = owner(schema, row)
        weight = tables.tables[dims.index(field.dim)].weight
        assert isinstance(weight, Tensor)
        row -= sum(f.vocab_size for f in schema.owners if f.dim < field.dim)
        return weight[row][field.dim or DIM :][:2]

    wanted = [
        sum((w * terms(i) for part in parts for i, w in part.items()), torch.zeros(2)) / 2  # four fields
        for parts in coefficients(schema, batch)
    ]
    torch.testing.assert_close(tables(batch)[:, -2:], torch.stack(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_rows_whose_lists_are_all_empty(case: str) -> None:
    schema = make_schema(fields=CASES[case])
    tables, batch = drawn(schema), make_batch(schema, 4, longest_bag=0)
    out = tables(batch)
    assert not out[:, 2 * DIM : 4 * DIM].any()
    assert all(
        part.shape == (0, s.ids.shape[1], DIM)
        for part, s in zip(tables.of_sequences(batch), batch.sequences, strict=True)
    )
    out.sum().backward()
    assert [len(tables(make_batch(schema, rows))) for rows in (0, 1)] == [0, 1]


def test_fields_without_a_dim_pay_nothing() -> None:
    schema = make_schema(fields=WITH_SEQUENCES)
    assert type(make_tables(EmbeddingTable, schema)) is EmbeddingTable
    torch.manual_seed(3)
    made = make_tables(partial(EmbeddingTable, dim=DIM), schema).weight
    torch.manual_seed(3)
    assert torch.equal(made, EmbeddingTable(schema, DIM).weight)


def test_an_id_takes_its_own_number_of_parameters() -> None:
    schema = make_schema(fields=WITH_DIMS)
    model = MMoE(schema, embedding_dim=8, num_experts=2, expert=(5,), tower=(4,))
    plain = MMoE(make_schema(fields=WITH_SEQUENCES), embedding_dim=8, num_experts=2, expert=(5,), tower=(4,))
    terms = 4  # three tasks, padded
    rows = {8: 5 + 3, 2: 7 + 11 + 5, 1: 13}  # matches and watched_how; user, item and searches; tags
    found, before = size_figures(model), size_figures(plain)
    assert found["model/embedding_parameters"] == sum(n * (d + terms) for d, n in rows.items())
    more = {key: found[key] - before[key] for key in found}
    assert more["model/dense_parameters"] == 3 * 2 * 8 + 1 * 8
    assert more["model/flops_per_row"] == 2 * (2 * 2 * 8 + 1 * 8)  # user, item and tags


@pytest.mark.parametrize(("make", "state"), [(adam, {"first": 1, "second": 1}), (adagrad, {"sum": 0})])
def test_the_optimizers_state_is_as_narrow_as_the_rows(make: type, state: dict[str, int]) -> None:
    model = DLEN(make_schema(fields=WITH_DIMS), embedding_dim=8, hidden=[5], first_order=False)
    optimizer = make(model, lr=0.1, embedding_lr=0.1)
    before = [p.detach().clone() for p in model.embedding.parameters()]
    model(make_batch(model.schema, 9)).log_p.sum().backward()
    optimizer.step()
    assert all((p != b).any() for p, b in zip(model.embedding.parameters(), before, strict=True))
    dense, rows = optimizer.parts
    widths = {len(table): table.shape[1] for table in rows.state}
    assert widths == {8: 8, 23: 2, 13: 1}
    for table, kept in rows.state.items():
        assert {n: v.shape[1] for n, v in kept.items() if n != "step"} == {
            n: table.shape[1] if whole else 1 for n, whole in state.items()
        }
    assert isinstance(model.embedding, MixedTables)
    assert {id(p) for p in model.embedding.projections} <= {id(p) for g in dense.param_groups for p in g["params"]}


def test_random_vectors_are_as_long_as_those_of_other_fields() -> None:
    fields = (Field("user", Kind.ID, "user", 4000), Field("item", Kind.ID, "item", 4000, dim=4))
    tables = make_tables(partial(EmbeddingTable, dim=64), make_schema(fields=fields))
    batch = make_batch(make_schema(fields=fields), 2000)
    user, item = tables(batch).view(-1, 2, 64).std((0, 2))
    assert 0.7 < item / user < 1.4


def test_private_vectors_keep_the_tasks_apart() -> None:
    schema = make_schema(fields=WITH_DIMS)
    model, batch = SingleTask(schema, embedding_dim=4), make_batch(schema, 9)
    log_p = model(batch).log_p
    touched = []
    for task in range(3):
        model.zero_grad()
        log_p[:, task].sum().backward(retain_graph=True)
        of_task = set()
        for name, parameter in model.embedding.named_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad.to_dense()
            by_part = gradient.unflatten(1, (3, -1)) if gradient.dim() == 2 else gradient
            for part in by_part.transpose(0, 1).flatten(1).any(1).nonzero().flatten().tolist():
                of_task.add((name, part))
        touched.append(of_task)
    assert all({part for _, part in parts} == {task} for task, parts in enumerate(touched))


def test_rare_ids_become_the_unknown_id_of_their_field() -> None:
    schema = make_schema(fields=WITH_DIMS)
    dropout = IdDropout(schema, torch.ones(schema.num_embeddings, dtype=torch.int64), k=1.0)
    batch = make_batch(schema, 2000)
    after = dropout(batch)
    changed = after.ids != batch.ids
    unknown = torch.tensor([schema.offsets["user"], schema.offsets["item"]]).expand(2000, 2)
    assert torch.equal(after.ids[changed].long(), unknown[changed])
    assert abs(float(changed.double().mean()) - 0.5 * (6 / 7 + 10 / 11) / 2) < 0.05


def test_a_dim_above_that_of_the_model() -> None:
    with pytest.raises(ValueError, match=r"embedding\.dim must be at least 2, the dim of field \w+ in the data, got 1"):
        MMoE(make_schema(fields=WITH_DIMS), embedding_dim=1)
    MMoE(make_schema(fields=WITH_DIMS), embedding_dim=2)


def test_a_dim_of_ids_that_belong_to_another_field() -> None:
    for field in (Field("age", Kind.NUMERIC, dim=2), replace(WITH_SEQUENCES[6], dim=2)):
        fields = tuple(f for f in WITH_SEQUENCES if f.name != field.name)
        with pytest.raises(ValueError, match=f"field {field.name}: dim is for fields with ids of their own, got 2"):
            make_schema(fields=(*fields, field))
