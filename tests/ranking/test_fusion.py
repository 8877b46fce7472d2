"""Fusion against its formulas on plain probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlen.ranking.fusion import Form, Fusion, fuse, values_of, worth

P = st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3)
WEIGHTS = st.lists(st.floats(0.0, 3.0), min_size=3, max_size=3)


@given(P, st.floats(0.01, 0.99), WEIGHTS, st.floats(0.0, 2.0), st.sampled_from(list(Form)))
def test_the_formulas(p: list[float], up: float, weights: list[float], power: float, form: Form) -> None:
    if form is Form.SUM and not any(weights):
        weights = [1.0, 0.0, 0.0]
    joined = np.prod(np.power(p, weights)) if form is Form.PRODUCT else np.dot(p, weights)
    log_p, log_up = torch.tensor([p], dtype=torch.float64).log(), torch.tensor([up], dtype=torch.float64).log()
    score = fuse(log_p, log_up, torch.tensor(weights, dtype=torch.float64), power, form)
    assert score.exp().item() == pytest.approx(up**power * joined, rel=1e-9)


def test_nothing_with_weight_is_a_tie() -> None:
    score = fuse(torch.randn(4, 2), torch.randn(4), torch.zeros(2), 0.5, Form.SUM)
    assert torch.isneginf(score).all()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"need P\(UP\)"):
        fuse(torch.zeros(1, 2), None, torch.ones(2), 0.5)
    with pytest.raises(ValueError, match="weights of at least 0"):
        fuse(torch.zeros(1, 2), None, torch.tensor([1.0, -1.0]), 0.0, "sum")
    with pytest.raises(ValueError, match="ratio"):
        fuse(torch.zeros(1, 2), None, torch.ones(2), 0.0, "ratio")


def test_worth() -> None:
    assert values_of(None, ["click", "hate"], [False, True]) == [1.0, -1.0]
    assert values_of({"click": 3}, ["click", "hate"], [False, True]) == [3.0, -1.0]
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert worth(labels, [3.0, -1.0]).tolist() == [3.0, 2.0, 0.0]
    with pytest.raises(ValueError, match="values name an unknown task clik; the tasks are"):
        values_of({"clik": 1}, ["click"], [False])
    with pytest.raises(ValueError, match=r"value of click must be a number"):
        values_of({"click": True}, ["click"], [False])


@pytest.mark.parametrize("form", list(Form))
def test_a_floor_puts_what_is_not_preferred_last_in_its_own_order(form: Form) -> None:
    torch.manual_seed(0)
    log_p, up = torch.rand(40, 3).log(), torch.rand(40)
    up[0] = 0.3
    free, floored = (fuse(log_p, up.log(), torch.ones(3), 1.0, form, floor) for floor in (0.0, 0.3))
    below = up < 0.3
    assert 5 < below.sum() < 35
    assert floored[below].max() < floored[~below].min()
    assert floored[~below].tolist() == free[~below].tolist()
    assert floored[below].argsort().tolist() == free[below].argsort().tolist()


def test_settings_by_the_tasks_names() -> None:
    weights = Fusion(weights={"like": 2.0}).for_tasks(["click", "like", "hate"], [False, False, True])
    assert weights.tolist() == [1.0, 2.0, -1.0]
    assert Fusion(form="sum").for_tasks(["click", "hate"], [False, True]).tolist() == [1.0, 0.0]
    assert not Fusion().needs_up
    assert Fusion(floor=0.1).needs_up
    for wrong in ({"form": "mean"}, {"floor": 1.0}, {"up": float("nan")}, {"weights": {"a": "b"}}):
        with pytest.raises(ValueError, match=r"mean|floor|up|a must be a finite number, got 'b'"):
            Fusion(**wrong)
    with pytest.raises(ValueError, match="weights name an unknown task clik; the tasks are"):
        Fusion(weights={"clik": 1.0}).for_tasks(["click"], [False])
