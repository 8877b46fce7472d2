"""Learning rate schedules against closed forms and torch's own, and with the optimiser of several parts."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from dlen.models import MMoE
from dlen.training.optimizers import adam
from dlen.training.schedulers import MakeScheduler, check_scheduler, cosine, one_cycle, warmup
from tests.helpers import make_schema

STEPS = 40


def rates(make: MakeScheduler, steps: int = STEPS) -> list[list[float]]:
    """Learning rates of the dense part and of the table before each step."""
    optimizer = adam(MMoE(make_schema()), lr=0.1, embedding_lr=0.4)
    scheduler: LRScheduler = make(optimizer, total_steps=steps)
    groups = optimizer.param_groups
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in groups])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("make", [warmup, cosine, one_cycle])
def test_both_learning_rates_keep_their_ratio(make: MakeScheduler) -> None:
    for dense, table in rates(make):
        assert table == pytest.approx(4 * dense)


def test_warmup() -> None:
    seen = [dense for dense, _ in rates(partial(warmup, warmup=4))]
    assert seen[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert seen[5:] == pytest.approx([0.1] * (STEPS - 5))


def test_cosine() -> None:
    seen = [dense for dense, _ in rates(partial(cosine, warmup=0.25, final=0.2))]
    assert seen[10] == pytest.approx(0.1)
    for step in range(10, STEPS):
        share = 0.2 + 0.8 * (1 + math.cos(math.pi * (step - 10) / 30)) / 2
        assert seen[step] == pytest.approx(0.1 * share)


def test_one_cycle_equals_torch() -> None:
    weight = nn.Parameter(torch.zeros(2))
    theirs = torch.optim.SGD([weight], lr=0.1)
    scheduler = OneCycleLR(theirs, max_lr=0.1, total_steps=1001, pct_start=0.3, cycle_momentum=False)
    ours = [dense for dense, _ in rates(one_cycle, 1000)]
    for step in range(1000):
        assert ours[step] == pytest.approx(theirs.param_groups[0]["lr"], abs=3e-4)
        theirs.step()
        scheduler.step()


@pytest.mark.parametrize("settings", [{"warmup": -1}, {"warmup": 1.2}, {"warmup": "x"}, {"final": 2}, {"final": None}])
def test_wrong_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        check_scheduler(partial(cosine, **settings), torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))
