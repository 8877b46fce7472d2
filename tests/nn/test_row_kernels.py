"""The Triton kernels against torch's own operations: on a GPU, or with TRITON_INTERPRET=1 where Triton is installed."""

from __future__ import annotations

import os
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dlen.nn.embedding import row_kernels
from dlen.training.optimizers import RowAdagrad, RowAdam, RowOptimizer, numbered

ON_GPU = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(
    find_spec("triton") is None or not (ON_GPU or os.environ.get("TRITON_INTERPRET")),
    reason="needs a GPU, or Triton and TRITON_INTERPRET=1",
)
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
ROWS = 60


def kernels() -> Any:
    if not ON_GPU:
        from dlen.nn import row_kernels as module

        return module
    return row_kernels("cuda")


@pytest.mark.parametrize("width", [1, 5, 16, 20, 128])
def test_looks_rows_up(width: int) -> None:
    table = torch.randn(ROWS, width, device=DEVICE)
    for ids in (torch.randint(ROWS, (7, 3)), torch.randint(ROWS, (300,)).int(), torch.zeros(0, 4, dtype=torch.int32)):
        ids = ids.to(DEVICE)
        torch.testing.assert_close(kernels().look_up(ids, table), F.embedding(ids, table), rtol=0, atol=0)


OPTIMIZERS: dict[str, tuple[type[RowOptimizer], dict[str, Any]]] = {
    "adam": (RowAdam, {"lr": 0.1}),
    "adam, decay": (RowAdam, {"lr": 0.01, "betas": (0.0, 0.99), "weight_decay": 0.3}),
    "adagrad": (RowAdagrad, {"lr": 0.1}),
    "adagrad, decay": (RowAdagrad, {"lr": 0.1, "weight_decay": 0.3}),
}


@pytest.mark.parametrize("width", [1, 5, 16, 128])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_rows_as_the_operations_on_a_cpu_do(name: str, width: int) -> None:
    make, settings = OPTIMIZERS[name]
    table = nn.Parameter(torch.randn(ROWS, width))
    other = nn.Parameter(deepcopy(table.detach()).to(DEVICE))
    wanted, found = make([table], **settings), make([other], **settings)
    for step in range(5):
        rows = torch.randint(ROWS // 2, (200 + step,))  # the other half has no gradient
        rows[:150] = 3  # a row that is met often
        values = torch.randn(len(rows), width)
        table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=False)
        wanted.step()
        segments = kernels().Segments(*numbered(rows.int().to(DEVICE)), values.to(DEVICE))
        group = found.param_groups[0]
        if not found.state[other]:
            found._start(other, group)
            if isinstance(found, RowAdam):
                found.state[other]["step"] = torch.zeros((), dtype=torch.float64, device=DEVICE)
        with torch.no_grad():
            found._update_fused(kernels(), segments, other, group)
    torch.testing.assert_close(other.detach().cpu(), table.detach(), rtol=1e-4, atol=1e-5)
    for key, value in wanted.state[table].items():
        torch.testing.assert_close(
            torch.as_tensor(found.state[other][key]).cpu().float(), torch.as_tensor(value).float(), rtol=1e-4, atol=1e-5
        )
    assert torch.equal(other.detach().cpu()[ROWS // 2 :], table.detach()[ROWS // 2 :])


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_an_optimiser_on_a_gpu_takes_the_kernels_and_saves_a_state_for_any_device() -> None:
    table = nn.Parameter(torch.randn(ROWS, 16))
    other = nn.Parameter(table.detach().cuda())
    for parameter in (table, other):
        optimizer = RowAdam([parameter], lr=0.1)
        for seed in range(3):
            torch.manual_seed(seed)
            ids, wanted = torch.randint(ROWS, (50,)), torch.randn(50, 16)
            rows = F.embedding(ids.to(parameter.device), parameter, sparse=True)
            optimizer.zero_grad()
            (rows * wanted.to(parameter.device)).sum().backward()
            optimizer.step()
        state = optimizer.state_dict()["state"][0]
        assert state["step"] == 3
    torch.testing.assert_close(other.detach().cpu(), table.detach(), rtol=1e-4, atol=1e-5)
