"""The AUC gate of ``make quality``: what counts as better, worse and equal."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from tests.conftest import ROOT

# Two models with three seeds, judged with a third: the two-sided quantile at 0.05 / 3 of Student's t with four degrees
# of freedom, by bisection of its closed form (Abramowitz and Stegun 26.7.4), pooled deviation sqrt((1 + 9) / 2) / 1000.
BEFORE = {
    "calm": {"mean": 0.7, "deviation": 0.001, "seeds": 3},
    "wild": {"mean": 0.7, "deviation": 0.003, "seeds": 3},
}


def quantile_of_four(tail: float) -> float:
    """Quantile of Student's t with four degrees of freedom and upper tail ``tail``."""
    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        theta = math.atan(middle / 2)
        inside = math.sin(theta) * (1 + math.cos(theta) ** 2 / 2)
        low, high = (middle, high) if (1 - inside) / 2 > tail else (low, middle)
    return low


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    found: Callable[..., list[dict[str, Any]]] = import_module("quality").judged
    return found


def test_even_lies_within_the_spread_of_seeds(judged: Callable[..., list[dict[str, Any]]]) -> None:
    pooled = math.sqrt((0.001**2 + 0.003**2) / 2)
    for model, deviation in (("calm", pooled), ("wild", 0.003)):
        allowed = quantile_of_four(0.025 / 3) * deviation * math.sqrt(2 / 3)
        for change, verdict in ((0.99, "even"), (-0.99, "even"), (1.01, "better"), (-1.01, "worse")):
            now = {model: {"mean": 0.7 + change * allowed, "deviation": 0.0, "seeds": 3}}
            (row,) = judged("table", BEFORE, now, 3)
            assert row["verdict"] == verdict
            assert float(row["tolerance"]) == pytest.approx(allowed, abs=5e-5)


def test_seeds_without_spread_leave_a_least_tolerance(judged: Callable[..., list[dict[str, Any]]]) -> None:
    before = {"same": {"mean": 0.7, "deviation": 0.0, "seeds": 3}}
    for mean, verdict in ((0.70019, "even"), (0.69979, "worse")):
        rows = judged("table", before, {"same": {"mean": mean, "deviation": 0.0, "seeds": 3}}, 1)
        assert [row["verdict"] for row in rows] == [verdict]
    rows = judged("table", before, {"new": {"mean": 0.5, "deviation": 0.0, "seeds": 3}}, 1)
    assert [row["verdict"] for row in rows] == ["new"]
