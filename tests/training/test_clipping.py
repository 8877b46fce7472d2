"""Gradient clipping with row-sparse tables against torch's clipping of dense gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dlen.training import optimizers
from dlen.training.clipping import clip_gradients
from dlen.training.optimizers import RowAdam

ROWS, DIM = 9, 3


def parameters(seed: int, sparse: bool) -> list[nn.Parameter]:
    """Two dense parameters and a table, whose gradient has repeated rows."""
    draw = torch.Generator().manual_seed(seed)
    dense = [nn.Parameter(torch.randn(4, 5, generator=draw)), nn.Parameter(torch.randn(5, generator=draw))]
    for parameter in dense:
        parameter.grad = torch.randn(parameter.shape, generator=draw)
    table = nn.Parameter(torch.randn(ROWS, DIM, generator=draw))
    ids, values = torch.randint(0, ROWS - 2, (12,), generator=draw), torch.randn(12, DIM, generator=draw)
    gradient = torch.sparse_coo_tensor(ids[None], values, (ROWS, DIM), check_invariants=True)
    table.grad = gradient if sparse else gradient.to_dense()
    return [*dense, table]


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("limit", [0.1, 1.0, 1e6])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_equals_dense_clipping(algorithm: str, limit: float, on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if on_gpu:  # its way of summing rows, which needs no synchronisation, on the CPU
        monkeypatch.setattr(optimizers, "_distinct_rows", lambda rows, values: optimizers._row_sums(rows, values)[:2])
    for seed in range(5):
        ours, theirs = parameters(seed, sparse=True), parameters(seed, sparse=False)
        clip_gradients(ours, limit, algorithm)
        if algorithm == "norm":
            nn.utils.clip_grad_norm_(theirs, limit)
        else:
            nn.utils.clip_grad_value_(theirs, limit)
        assert ours[2].grad is not None
        assert ours[2].grad.is_sparse
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.grad is not None
            torch.testing.assert_close(mine.grad.to_dense(), other.grad)


def test_untouched_rows_stay_untouched() -> None:
    table = parameters(3, sparse=True)[2]
    before = table.detach().clone()
    clip_gradients([table], 0.5)
    RowAdam([table], lr=0.1).step()
    assert torch.equal(table[ROWS - 2 :], before[ROWS - 2 :])
    assert not torch.equal(table[: ROWS - 2], before[: ROWS - 2])


def test_no_gradients() -> None:
    clip_gradients([nn.Parameter(torch.ones(2))], 1.0)
