"""Row-sparse optimisers against torch's own and a slow loop, and several optimisers combined into one."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LambdaLR

from dlen.models import DLEN, STEM, MMoE, Ranker, SingleTask
from dlen.models.predictions import task_losses
from dlen.training import optimizers
from dlen.training.optimizers import Combined, RowAdagrad, RowAdam, adagrad, adam, touched_rows
from tests.helpers import make_batch, make_schema

ROWS, DIM = 12, 3
MAKERS = [adam, adagrad]


def ids(step: int) -> Tensor:
    """Ids with repeats from the first nine rows."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 9, (14,), generator=generator)


def table() -> nn.Parameter:
    return nn.Parameter(torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(9)))


def set_gradient(weight: nn.Parameter, step: int) -> Tensor:
    """Set a sparse gradient with repeated rows, and return its values, one per id."""
    values = torch.randn(14, DIM, generator=torch.Generator().manual_seed(100 + step))
    weight.grad = torch.sparse_coo_tensor(ids(step)[None], values, (ROWS, DIM), check_invariants=True)
    return values


@pytest.mark.parametrize(("lr", "betas"), [(1e-3, (0.9, 0.999)), (0.05, (0.8, 0.95))])
def test_row_adam_equals_torch_sparse_adam(lr: float, betas: tuple[float, float]) -> None:
    ours, theirs = table(), table()
    row_adam, sparse_adam = RowAdam([ours], lr=lr, betas=betas), SparseAdam([theirs], lr=lr, betas=betas)
    for step in range(10):
        set_gradient(ours, step)
        set_gradient(theirs, step)
        row_adam.step()
        sparse_adam.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(ours, table(), atol=lr)


def test_row_adagrad_equals_a_slow_loop() -> None:
    weight, lr, eps = table(), 0.1, 1e-8
    optimizer = RowAdagrad([weight], lr=lr, eps=eps)
    wanted, sums = weight.tolist(), [0.0] * ROWS
    for step in range(8):
        values = set_gradient(weight, step).tolist()
        optimizer.step()
        gradient: dict[int, list[float]] = {}
        for row, value in zip(ids(step).tolist(), values, strict=True):
            old = gradient.get(row, [0.0] * DIM)
            gradient[row] = [a + b for a, b in zip(old, value, strict=True)]
        for row, g in gradient.items():
            sums[row] += sum(x * x for x in g) / DIM
            wanted[row] = [w - lr * x / (math.sqrt(sums[row]) + eps) for w, x in zip(wanted[row], g, strict=True)]
        torch.testing.assert_close(weight.data, torch.tensor(wanted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [RowAdam, RowAdagrad])
def test_untouched_rows_stay_bit_equal(make: Callable[[list[nn.Parameter]], Optimizer]) -> None:
    weight = table()
    optimizer = make([weight])
    for step in range(5):
        before = weight.detach().clone()
        set_gradient(weight, step)
        optimizer.step()
        touched = torch.zeros(ROWS, dtype=torch.bool).index_fill_(0, ids(step), True)
        assert torch.equal(weight[~touched], before[~touched])
        assert (weight[touched] != before[touched]).any(1).all()


@pytest.mark.parametrize("make", [RowAdam, RowAdagrad])
def test_a_gradient_without_rows_changes_nothing(make: Callable[[list[nn.Parameter]], Optimizer]) -> None:
    weight = table()
    no_ids, no_values = torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, DIM)
    weight.grad = torch.sparse_coo_tensor(no_ids, no_values, (ROWS, DIM), check_invariants=True)
    make([weight]).step()
    assert torch.equal(weight, table())


def test_padded_rows_repeat_the_last_one() -> None:
    weight = table()
    values = set_gradient(weight, 3)
    assert weight.grad is not None
    rows, sums = touched_rows(weight.grad)
    padded_rows, padded_sums = optimizers._padded_rows(ids(3), values)
    assert rows.tolist() == sorted(set(ids(3).tolist()))
    assert padded_rows.tolist() == [*rows.tolist(), *[rows[-1].item()] * (len(ids(3)) - len(rows))]
    torch.testing.assert_close(padded_sums[: len(rows)], sums)
    torch.testing.assert_close(padded_sums[len(rows) :], sums[-1:].expand(len(ids(3)) - len(rows), DIM))
    assert optimizers._padded_rows(ids(3)[:0], values[:0])[0].shape == (0,)


@pytest.mark.parametrize("make", [RowAdam, RowAdagrad])
def test_a_step_with_padded_rows_is_the_same_step(
    make: Callable[..., Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps() -> Tensor:
        weight = table()
        optimizer = make([weight], lr=0.05, weight_decay=0.1)
        for step in range(5):
            set_gradient(weight, step)
            optimizer.step()
        return weight.detach()

    wanted = steps()
    monkeypatch.setattr(optimizers, "_distinct_rows", optimizers._padded_rows)  # the path used on a GPU
    torch.testing.assert_close(steps(), wanted)


def test_weight_decay_of_touched_rows_equals_that_of_dense_adam() -> None:
    every_row = torch.arange(ROWS)[None]
    ours, theirs = table(), table()
    row_adam, dense = RowAdam([ours], lr=0.01, weight_decay=0.3), Adam([theirs], lr=0.01, weight_decay=0.3)
    for step in range(6):
        theirs.grad = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(step))
        ours.grad = torch.sparse_coo_tensor(every_row, theirs.grad, (ROWS, DIM), check_invariants=True)
        row_adam.step()
        dense.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("terms", [0, 1, 2, 4])
def test_adagrad_keeps_parts_of_a_row_and_the_terms_after_them_apart(terms: int) -> None:
    widths, wide = [2, 2, *[1] * terms], 4 + terms
    whole = nn.Parameter(torch.randn(ROWS, wide, generator=torch.Generator().manual_seed(3)))
    pieces = [nn.Parameter(piece.clone()) for piece in whole.detach().split(widths, 1)]
    together = RowAdagrad([{"params": [whole], "parts": 2, "dim": 4}], lr=0.1)
    apart = RowAdagrad(pieces, lr=0.1)
    for step in range(4):
        values = torch.randn(14, wide, generator=torch.Generator().manual_seed(step))
        whole.grad = torch.sparse_coo_tensor(ids(step)[None], values, (ROWS, wide), check_invariants=True)
        for piece, own in zip(pieces, values.split(widths, 1), strict=True):
            piece.grad = torch.sparse_coo_tensor(ids(step)[None], own, (ROWS, own.shape[1]), check_invariants=True)
        together.step()
        apart.step()
        torch.testing.assert_close(whole.detach(), torch.cat([p.detach() for p in pieces], 1))
    assert together.state_bytes() == sum(state["sum"].nbytes for state in together.state.values())


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("model", [SingleTask, STEM])
def test_a_task_alone_trains_its_own_part_of_private_vectors(
    make: Callable[..., Optimizer], model: Callable[..., Ranker]
) -> None:
    schema = make_schema()
    ranker = model(schema, embedding_dim=4, first_order=True)
    optimizer, table = make(ranker, lr=0.1, embedding_lr=0.1), ranker.embedding
    labels, one = torch.ones(6, len(schema.tasks)), torch.zeros(6, len(schema.tasks))
    one[:, 0] = 1
    before = table.weight.detach().clone()
    ranker.head.loss(ranker(make_batch(schema, 6)), labels, one, torch.ones(len(schema.tasks))).backward()
    optimizer.step()
    moved = (table.weight.detach() != before).any(0)
    length = table.dim // table.parts
    mine = [*range(length), *(range(table.dim - length, table.dim) if table.shared_part else ())]
    assert moved[:length].any()
    others = [column for column in range(len(moved)) if column not in (*mine, table.dim)]
    assert not moved[others].any()


def test_adagrad_decays_by_a_slow_loop() -> None:
    weight, lr, decay = table(), 0.1, 0.5
    values = set_gradient(weight, 0)
    RowAdagrad([weight], lr=lr, weight_decay=decay).step()
    wanted = table().detach().clone()
    for row in set(ids(0).tolist()):
        g = values[ids(0) == row].sum(0) + decay * wanted[row]
        wanted[row] -= lr * g / g.square().mean().sqrt()
    torch.testing.assert_close(weight.detach(), wanted, rtol=1e-5, atol=1e-6)


def small_ranker() -> Ranker:
    torch.manual_seed(0)
    return MMoE(make_schema(), embedding_dim=3, num_experts=2, expert=(8, 6), tower=(4,))


def train(model: Ranker, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        batch = make_batch(model.schema, 16, seed=step)
        optimizer.zero_grad()
        task_losses(model(batch), batch.labels, torch.ones_like(batch.labels)).sum().backward()
        optimizer.step()


def same_weights(one: Ranker, other: Ranker) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_combined_equals_its_parts_on_their_own() -> None:
    together, apart = small_ranker(), small_ranker()
    train(together, adam(together, lr=0.01, embedding_lr=0.02), range(4))
    dense = [p for p in apart.parameters() if p is not apart.embedding.weight]
    parts = [Adam(dense, lr=0.01, fused=True), SparseAdam([apart.embedding.weight], lr=0.02)]
    for step in range(4):
        batch = make_batch(apart.schema, 16, seed=step)
        for part in parts:
            part.zero_grad()
        task_losses(apart(batch), batch.labels, torch.ones_like(batch.labels)).sum().backward()
        for part in parts:
            part.step()
    for a, b in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_one_step_evaluates_the_closure_once_and_counts_once() -> None:
    model = small_ranker()
    optimizer = adam(model, lr=0.01, embedding_lr=0.02)
    assert isinstance(optimizer, Combined)
    batch, calls = make_batch(model.schema, 16), []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task_losses(model(batch), batch.labels, torch.ones_like(batch.labels)).sum()
        loss.backward()
        calls.append(loss)
        return loss

    returned = optimizer.step(closure)
    assert len(calls) == 1
    assert returned is calls[0]
    for part in optimizer.parts:
        assert part.state
        assert {int(state["step"]) for state in part.state.values()} == {1}


@pytest.mark.parametrize("make", MAKERS)
def test_state_round_trip_continues_bit_equal(make: Callable[..., Optimizer]) -> None:
    model = small_ranker()
    optimizer = make(model, lr=0.01, embedding_lr=0.02)
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file)
    other = small_ranker()
    other.load_state_dict(weights)
    resumed, fresh = make(other, lr=0.5, embedding_lr=0.5), small_ranker()
    resumed.load_state_dict(state)
    fresh.load_state_dict(weights)
    train(model, optimizer, range(3, 6))
    train(other, resumed, range(3, 6))
    train(fresh, make(fresh, lr=0.01, embedding_lr=0.02), range(3, 6))
    assert same_weights(model, other)
    assert not same_weights(model, fresh)


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("resumed", [False, True])
def test_learning_rates_of_the_whole_act_on_the_parts(make: Callable[..., Optimizer], resumed: bool) -> None:
    model = small_ranker()
    optimizer = make(model, lr=0.01, embedding_lr=0.02)
    train(model, optimizer, range(2))
    if resumed:
        optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, range(2, 4))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_scheduler_on_the_whole_acts_on_the_parts() -> None:
    model = small_ranker()
    optimizer = adam(model, lr=0.01, embedding_lr=0.02)
    assert isinstance(optimizer, Combined)
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(2):
        train(model, optimizer, range(step, step + 1))
        scheduler.step()
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == pytest.approx([0.0025, 0.005])


@pytest.mark.parametrize("rows", [RowAdam, RowAdagrad])
@pytest.mark.parametrize("kind", [MMoE, DLEN])
def test_a_step_asks_its_device_for_no_value(
    kind: Callable[..., Ranker], rows: Callable[..., Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, which has no values: reading one there would synchronise a GPU."""
    monkeypatch.setattr(optimizers, "_distinct_rows", optimizers._padded_rows)  # the path used on a GPU
    schema = make_schema()
    model, batch = kind(schema, embedding_dim=3).to("meta"), make_batch(schema, 16).to("meta")
    optimizer = Combined(
        [Adam([p for p in model.parameters() if p is not model.embedding.weight]), rows([model.embedding.weight])]
    )
    for _ in range(2):
        optimizer.zero_grad()
        predictions = model(batch)
        weights = torch.ones(len(schema.tasks), device="meta")
        model.head.loss(predictions, batch.labels, torch.ones_like(batch.labels), weights).backward()
        optimizer.step()
    with pytest.raises(RuntimeError, match="meta"):
        predictions.log_p.sum().item()  # the check can fail
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.unique(batch.ids)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("decays", ["weight_decay", "embedding_weight_decay"])
def test_each_weight_decay_reaches_its_own_part(make: Callable[..., Optimizer], decays: str) -> None:
    plain, decayed = small_ranker(), small_ranker()
    train(plain, make(plain, lr=0.01, embedding_lr=0.02), range(1))
    train(decayed, make(decayed, lr=0.01, embedding_lr=0.02, **{decays: 10.0}), range(1))
    dense = [torch.equal(a, b) for a, b in zip(plain.backbone.parameters(), decayed.backbone.parameters(), strict=True)]
    table_alone = decays == "embedding_weight_decay"
    assert torch.equal(plain.embedding.weight, decayed.embedding.weight) != table_alone
    assert all(dense) == table_alone
