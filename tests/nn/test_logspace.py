"""Logarithms of probabilities against decimal arithmetic and closed forms."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch

from dlen.nn.logspace import at_least_float32, log1mexp, log_odds

POINTS = [-1e-30, -1e-12, -1e-7, -1e-3, -0.1, -0.69, -math.log(2), -0.70, -1.0, -5.0, -20.0, -80.0, -300.0, -700.0]


def exact_log1mexp(x: float) -> float:
    with localcontext() as context:
        context.prec = 400
        return float((1 - Decimal(x).exp()).ln())


@pytest.mark.parametrize("x", POINTS)
def test_log1mexp_in_float64(x: float) -> None:
    got = log1mexp(torch.tensor(x, dtype=torch.float64)).item()
    assert got == pytest.approx(exact_log1mexp(x), rel=1e-13, abs=0)


@pytest.mark.parametrize("x", [p for p in POINTS if p > -80])
def test_log1mexp_in_float32(x: float) -> None:
    rounded = torch.tensor(x, dtype=torch.float32)
    assert log1mexp(rounded).item() == pytest.approx(exact_log1mexp(rounded.item()), rel=2e-6, abs=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_log1mexp_is_finite_at_and_above_zero_and_far_below(dtype: torch.dtype) -> None:
    x = torch.tensor([1e-3, 0.0, -1e-30, -1e-7, -0.5, -0.8, -80.0, -700.0, -60000.0], dtype=dtype, requires_grad=True)
    out = log1mexp(x)
    out.sum().backward()
    assert x.grad is not None
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    assert (out <= 0).all()


def test_log1mexp_gradient_is_the_closed_form() -> None:
    x = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
    log1mexp(x).sum().backward()
    assert x.grad is not None
    wanted = [-1 / math.expm1(-p) for p in POINTS]
    torch.testing.assert_close(x.grad, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)


def test_log_odds_undoes_the_sigmoid() -> None:
    logits = torch.linspace(-30, 30, 601, dtype=torch.float64)
    log_p = torch.tensor([-math.log1p(math.exp(-z)) for z in logits.tolist()], dtype=torch.float64)
    small = logits < 15  # beyond that, log p has few digits of 1 - p
    torch.testing.assert_close(log_odds(log_p)[small], logits[small], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_odds(log_p), logits, rtol=0, atol=1e-2)


def test_log_odds_keeps_the_order_of_scores_near_zero_in_float32() -> None:
    log_p = torch.tensor([-9.0, -8.5003, -8.5, -8.4997, -1e-3, -1e-6])
    assert (log_odds(log_p).diff() > 0).all()


def test_only_half_precision_is_cast() -> None:
    assert at_least_float32(torch.zeros(2, dtype=torch.float16)).dtype == torch.float32
    assert at_least_float32(torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert at_least_float32(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64
