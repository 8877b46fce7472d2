"""A step of static shapes trains as the ordinary step does, and its batches have the same values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor

from dlen.batch import Batch
from dlen.data.columns import Columns
from dlen.data.sequences import SplitSequences
from dlen.data.split import ResidentSplit, Split, StoredTable, split_of
from dlen.models import DLEN, PLE, MMoE, Ranker
from dlen.schema import Field, Kind, Schema
from dlen.targets import Targets
from dlen.training import optimizers
from dlen.training.optimizers import adagrad, adam
from dlen.training.static_step import StaticStep, likely_totals
from tests.helpers import FIELDS, make_schema

ROWS, SIZE = 90, 16
CPU = torch.device("cpu")
PLAIN = tuple(field for field in FIELDS if field.kind is not Kind.IDS)


def draw(schema: Schema, fields: tuple[Field, ...], rows: int, longest: int) -> Columns:
    """Random values of some fields; every bag of the first rows is empty."""
    rng = np.random.default_rng(rows)
    starts, sizes = schema.offsets, {f.name: f.vocab_size for f in fields}
    singles, bags = ([f.name for f in fields if f.kind is kind] for kind in (Kind.ID, Kind.IDS))
    ids = [starts[name] + rng.integers(0, sizes[name], rows) for name in singles]
    lengths = rng.integers(0, longest + 1, (rows, len(bags))).astype(np.int16)
    lengths[:3] = 0
    owners = np.tile(np.arange(len(bags)), rows).repeat(lengths.ravel())
    values = np.array([starts[bags[o]] + rng.integers(sizes[bags[o]]) for o in owners], dtype=np.int32)
    numeric = rng.normal(size=(rows, sum(f.kind is Kind.NUMERIC for f in fields)))
    return Columns(np.stack(ids, 1), numeric, lengths, values, rng.uniform(0.5, 2, len(values)))


def with_bags(schema: Schema, longest: int = 5) -> Split:
    labels = np.random.default_rng(1).integers(0, 2, (ROWS, len(schema.tasks)))
    return split_of(draw(schema, schema.fields, ROWS, longest), labels)


def with_groups(schema: Schema) -> Split:
    """The item's fields belong to groups of rows."""
    rng = np.random.default_rng(2)
    own, shared = schema.fields[:3], schema.fields[3:]
    groups = split_of(draw(schema, shared, 7, 9), np.zeros((7, 0)))
    assert isinstance(groups.table, StoredTable)
    labels = rng.integers(0, 2, (ROWS, len(schema.tasks)))
    return split_of(draw(schema, own, ROWS, 4), labels, groups.table, rng.integers(0, 7, ROWS))


KINDS: dict[str, tuple[tuple[Field, ...], Callable[[Schema], Split]]] = {
    "single ids": (PLAIN, with_bags),
    "bags": (FIELDS, with_bags),
    "groups": (FIELDS, with_groups),
}


def batches(seed: int) -> list[Tensor]:
    """Row numbers of six batches, the last one smaller."""
    rows = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))
    return list(rows.split(SIZE))


def loss_of(model: Ranker) -> Callable[[Batch], Tensor]:
    targets = Targets(model.schema)

    def loss(batch: Batch) -> Tensor:
        weights = torch.ones(len(model.schema.tasks), device=batch.labels.device)
        labels, mask = targets.training_labels(batch.labels), targets.trained(batch.labels)
        return model.head.loss(model(batch), labels, mask, weights)

    return loss


def ordinary(model: Ranker, split: Split, make: Callable[..., torch.optim.Optimizer]) -> list[float]:
    optimizer, loss_of_batch, losses = make(model, lr=0.01, embedding_lr=0.1), loss_of(model), []
    for index in batches(0) + batches(1):
        optimizer.zero_grad()
        loss = loss_of_batch(split.batch(index))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("make", [adam, adagrad])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("maker", [MMoE, DLEN, PLE])
def test_trains_as_the_ordinary_step(
    maker: type[Ranker], kind: str, make: Callable[..., torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, make_split = KINDS[kind]
    schema = make_schema(fields=fields)
    split = make_split(schema)
    torch.manual_seed(0)
    model = maker(schema, expert=[8], tower=[4])  # type: ignore[call-arg]
    static = deepcopy(model)
    wanted = ordinary(model, split, make)
    monkeypatch.setattr(optimizers, "_distinct_rows", optimizers._padded_rows)  # the path used on a GPU
    step = StaticStep(loss_of(static), make(static, lr=0.01, embedding_lr=0.1), ResidentSplit(split, CPU), SIZE)
    losses = [float(step(index)) for index in batches(0) + batches(1)]
    # Sums of rows and values run in another order, so the last bits differ.
    assert losses == pytest.approx(wanted, rel=1e-5)
    assert losses[-1] < losses[0]
    for name, weight in static.named_parameters():
        torch.testing.assert_close(weight, model.get_parameter(name), rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["bags", "groups"])
def test_padded_batches_have_one_shape_and_touch_no_other_id(kind: str) -> None:
    fields, make_split = KINDS[kind]
    split = make_split(make_schema(fields=fields))
    totals = likely_totals(split, SIZE)
    for index in batches(0)[:-1]:
        batch, padded = split.batch(index), split.batch(index, totals, padded=True)
        assert padded.bag_ids.shape == padded.bag_weights.shape == (sum(totals),) == (int(padded.bag_lengths.sum()),)
        assert set(padded.bag_ids.tolist()) == set(batch.bag_ids.tolist())
        assert padded.bag_weights[padded.bag_weights > 0].tolist() == batch.bag_weights.tolist()
        more = padded.bag_lengths - batch.bag_lengths
        of_bag = padded.bag_weights.split(padded.bag_lengths.flatten().tolist())
        assert [int((weights == 0).sum()) for weights in of_bag] == more.flatten().tolist()
        for part in [more] if kind == "bags" else more[:, None]:  # padded evenly: one block of a GPU sums each bag
            assert part.max() - part.min() <= 1


def test_rows_without_any_value_are_padded_too() -> None:
    split = with_bags(make_schema())
    padded = split.batch(torch.arange(3), (20, 0), padded=True)
    assert padded.bag_weights.tolist() == [0] * 20


def test_a_batch_that_does_not_fit_trains_the_ordinary_way() -> None:
    schema = make_schema()
    split, model = with_bags(schema), MMoE(schema, expert=[8], tower=[4])
    other = deepcopy(model)
    wanted = ordinary(model, split, adam)
    step = StaticStep(loss_of(other), adam(other, lr=0.01, embedding_lr=0.1), ResidentSplit(split, CPU), SIZE)
    needed = sorted(split.count_values(index) for index in batches(0)[:-1])
    step.totals = (needed[2][0], 0)  # three of five batches have no more
    assert [step.fits(index) for index in batches(0)].count(True) == 3
    assert [float(step(index)) for index in batches(0) + batches(1)] == pytest.approx(wanted, rel=1e-5)


def test_likely_totals_are_exact_for_rows_of_one_length_and_above_every_batch_for_others() -> None:
    schema = make_schema(fields=PLAIN)
    assert likely_totals(with_bags(schema), 1000) == (0, 0)
    split = with_bags(make_schema())
    mean = split.count_values(torch.arange(ROWS))[0] / ROWS
    deviation = np.std([split.count_values(torch.tensor([row]))[0] for row in range(ROWS)])
    assert likely_totals(split, 400) == (int(np.ceil(400 * mean + 6 * 20 * deviation)), 0)


def test_a_graph_is_captured_after_three_steps_and_then_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for CUDA: what is run and what is captured; that a GPU captures it is for `bench/gpu.py`."""
    schema = make_schema()
    done: list[str] = []

    class Graph:
        def replay(self) -> None:
            done.append("replay")

    @contextmanager
    def capture(graph: Graph) -> Iterator[None]:
        done.append("capture")
        yield
        assert done.pop() == "step"  # recorded, not run

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    model = MMoE(schema, expert=[8], tower=[4])
    resident = ResidentSplit(with_bags(schema), CPU)
    step = StaticStep(loss_of(model), adam(model, lr=0.01, embedding_lr=0.1), resident, SIZE, graph=True)

    def trained(batch: Batch, loss_of: Callable[[Batch], Tensor]) -> Tensor:
        done.append("step")
        return batch.labels.sum()

    monkeypatch.setattr(step, "_train", trained)
    for index in batches(0) + batches(1):
        step(index)
    assert done == ["step"] * 3 + ["capture"] + ["replay"] * 2 + ["step"] + ["replay"] * 5 + ["step"]


def test_sequences_are_refused() -> None:
    schema = make_schema()
    split, model = with_bags(schema), MMoE(schema, expert=[8], tower=[4])
    split.sequences = SplitSequences.__new__(SplitSequences)
    resident = ResidentSplit.__new__(ResidentSplit)
    resident.host = split
    with pytest.raises(ValueError, match="sequences"):
        StaticStep(loss_of(model), adam(model, lr=0.1, embedding_lr=0.1), resident, SIZE)
