"""MLPs of one shape as one product per layer, against one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dlen.nn.mlp import MLP, each_linear, each_mlp


def gradients(loss: Tensor, modules: list[nn.Module], x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [x, *(p for module in modules for p in module.parameters())]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(), (5,), (4, 3)])
@pytest.mark.parametrize("number", [1, 3])
def test_each_mlp_on_its_own_input(number: int, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mlps = [MLP(6, sizes).to(torch.float64 if dtype == torch.float64 else None) for _ in range(number)]
    outputs = [nn.Linear(mlp.out_dim, 2, dtype=None if dtype == torch.bfloat16 else dtype) for mlp in mlps]
    x = torch.randn(number, 7, 6, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        at_once = each_linear(outputs, each_mlp(mlps, x))
        in_turn = torch.stack([output(mlp(of_own)) for output, mlp, of_own in zip(outputs, mlps, x, strict=True)])
    assert at_once.dtype == in_turn.dtype == dtype
    torch.testing.assert_close(at_once, in_turn)
    weights, tolerance = torch.randn_like(at_once), 1e-2 if dtype == torch.bfloat16 else 1e-12
    modules: list[nn.Module] = [*mlps, *outputs]
    for one, other in zip(
        gradients((at_once * weights).sum(), modules, x), gradients((in_turn * weights).sum(), modules, x), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_dropout_is_drawn_for_each_mlp() -> None:
    torch.manual_seed(0)
    mlps = [MLP(4, (64,), 0.5) for _ in range(2)]
    mlps[1].load_state_dict(mlps[0].state_dict())
    first, second = each_mlp(mlps, torch.ones(2, 1, 4))
    assert not torch.equal(first, second)
    for mlp in mlps:
        mlp.eval()
    first, second = each_mlp(mlps, torch.ones(2, 1, 4))
    assert torch.equal(first, second)
