"""Logarithms of probabilities against decimal arithmetic and closed forms."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch

from dlen.nn.logspace import at_least_float32, log1mexp, log_lift, log_odds

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


def joint_by_bisection(a: float, b: float, ratio: float) -> float:
    """P(a, b) at which the odds ratio is ``ratio``, in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        p, q, r = Decimal(a), Decimal(b), Decimal(ratio)
        low, high = max(Decimal(0), p + q - 1), min(p, q)
        for _ in range(190):
            middle = (low + high) / 2
            too_low = middle * (1 - p - q + middle) < r * (p - middle) * (q - middle)
            low, high = (middle, high) if too_low else (low, middle)
        return float(low)


@pytest.mark.parametrize("ratio", [-12.0, -6.0, -1.0, -0.01, 0.0, 0.01, 1.0, 6.0, 12.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_log_lift_is_that_of_the_odds_ratio(ratio: float, dtype: torch.dtype) -> None:
    tolerance = 1e-9 if dtype is torch.float64 else 1e-3
    for a in (1e-6, 0.01, 0.3, 0.5, 0.9, 0.9999):
        for b in (1e-5, 0.02, 0.5, 0.75, 0.999):
            log_a, log_b = (torch.tensor(v, dtype=dtype).log() for v in (a, b))
            log_both = log_lift(log_a, log_b, torch.tensor(ratio, dtype=dtype)) + log_a + log_b
            exact = joint_by_bisection(log_a.double().exp().item(), log_b.double().exp().item(), math.exp(ratio))
            assert log_both.double().exp().item() == pytest.approx(exact, rel=tolerance, abs=1e-12), (a, b)


def test_log_lift_is_nothing_without_dependence() -> None:
    log_a, log_b = torch.rand(50).log(), torch.rand(50).log()
    assert (log_lift(log_a, log_b, torch.zeros(50)) == 0).all()


def test_log_lift_has_finite_gradients_at_the_ends() -> None:
    ends = torch.tensor([-80.0, -20.0, -1e-3, -1e-7, 0.0])
    a, b, ratio = (
        t.flatten().clone().requires_grad_()
        for t in torch.meshgrid(ends, ends, torch.tensor([-40.0, -3, 0, 3, 40]), indexing="ij")
    )
    log_lift(a, b, ratio).sum().backward()
    for part in (a, b, ratio):
        assert part.grad is not None
        assert part.grad.isfinite().all()
