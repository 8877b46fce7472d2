"""Where DLEN's head starts: P(UP), P(t | UP) and P(t | not UP) at the first step, before any input is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from dlen.models.heads import logit, training_rates
from dlen.models.label_classes import LabelClasses
from dlen.models.second_state import Bools, fit_four_classes
from dlen.schema import Schema

_MOST_SHARE = 0.9  # largest initial P(t | not UP), as a fraction of its bound
START_UP = 0.5  # share of the first class where a fit of classes starts; P(UP) of a schema without label patterns
MOST_UP = 0.98  # largest initial P(UP), so that it starts unsaturated


class Bound(StrEnum):
    """What alpha multiplies in the upper bound of P(t | not UP). The paper leaves this open."""

    CONDITIONAL = "conditional"  # P(t | UP) of the same row
    PRIOR = "prior"  # the training rate of the task
    ABSOLUTE = "absolute"  # 1


@dataclass(frozen=True, slots=True)
class Start:
    """Values at the first step.

    Attributes:
        up: P(UP).
        states: log-odds of P(UP); or of P(W), P(UP | W) and P(UP | not W), with a second state W.
        pairs: logits (c, n) of each task, equations (8) to (10).
    """

    up: float
    states: list[float]
    pairs: list[tuple[float, float]]


def start_of(
    schema: Schema, ceiling: Sequence[float], bound: Bound, up: float, leak: float, classes: LabelClasses | None
) -> Start:
    """Find values at which each task's probability is its training rate.

    Args:
        schema: schema of the data.
        ceiling: (T,) factor of the bound of P(t | not UP).
        bound: what it multiplies.
        up: P(UP), raised if the training rates require it.
        leak: ratio P(t | not UP) / P(t | UP), lowered if the bound requires it.
        classes: classes of the labels; None for none. Their P(UP) replaces ``up``, and their ratios replace ``leak``
            where they are above it.
    """
    rates, dislikes = training_rates(schema), [task.dislike for task in schema.tasks]
    leaks = [leak] * len(rates)
    if classes is None:
        up = _reachable(up, training_rates(schema.binary), [task.dislike for task in schema.binary.tasks])
    else:
        up, leaks = min(max(classes.up, 1 - MOST_UP), MOST_UP), _leaks(classes, dislikes, leak)
    pairs = [
        _pair(rate, 1 - up if dislike else up, limit, bound, own)
        for rate, limit, dislike, own in zip(rates, ceiling, dislikes, leaks, strict=True)
    ]
    return Start(up, [logit(up)], pairs)


def start_of_four(schema: Schema, ceiling: Sequence[float], bound: Bound, leak: float, switch: Bools) -> Start:
    """The same with a second state, from four classes of the labels.

    Takes the arguments of :func:`start_of`, and ``switch`` of :func:`~dlen.models.second_state.fit_four_classes`.
    """
    classes = fit_four_classes(schema, switch, START_UP, leak)
    held = np.einsum("wu,wut->t", classes.shares, switch)
    ratios = np.maximum(classes.given[1] / classes.given[0], leak)
    pairs = [
        _pair(rate, min(max(share, 1 - MOST_UP), MOST_UP), limit, bound, ratio)
        for rate, share, limit, ratio in zip(training_rates(schema), held, ceiling, ratios, strict=True)
    ]
    return Start(float(classes.shares[:, 0].sum()), list(classes.logits), pairs)


def _leaks(classes: LabelClasses, dislikes: Sequence[bool], least: float) -> list[float]:
    """Initial P(t | not UP) / P(t | UP) of each task, its inverse for a dislike task.

    Of a rare task the fit may find 0, from which a sigmoid does not come back.
    """
    ratios = np.nan_to_num(classes.given[1] / classes.given[0], nan=1.0)
    leaks = np.where(dislikes, 1 / ratios, ratios)
    return np.maximum(leaks, least).tolist()


def _reachable(wanted: float, rates: Sequence[float], dislikes: Sequence[bool]) -> float:
    """P(UP) at which the rate of every interaction, and if possible of every dislike, is reachable."""
    least = max([r / 0.9 for r, dislike in zip(rates, dislikes, strict=True) if not dislike], default=0.0)
    most = 1 - max([r / 0.9 for r, dislike in zip(rates, dislikes, strict=True) if dislike], default=0.0)
    return min(max(min(wanted, most), least, 1 - MOST_UP), MOST_UP)


def _pair(rate: float, up: float, ceiling: float, bound: Bound, leak: float) -> tuple[float, float]:
    """Logits (c, n) at which P(t) is the training rate and P(t | not UP) is ``leak`` times P(t | UP).

    If ``leak`` exceeds the bound, P(t | not UP) starts at 0.9 of the bound, so that the sigmoid is not saturated.
    """
    if bound is Bound.CONDITIONAL:
        share = min(_MOST_SHARE, leak / ceiling)
        return logit(min(rate / (up + ceiling * share * (1 - up)), 0.99)), logit(share)
    share = min(_MOST_SHARE, leak * rate / (up + leak * (1 - up)) / ceiling)
    c = (rate - ceiling * share * (1 - up)) / up
    return logit(min(c, 0.99)), logit(share)
