"""A second hidden state beside UP, such as watching: a feed's clicks and its likes have reasons of their own.

Each task hangs on UP, on the second state W, or on both, when it needs both to happen:

    P(labels) = sum over u, w of P(w) P(u | w) prod_t P(y_t | its states)

The two depend on each other, as P(u | w) is free. Where they are one, this is DLEN. Labels identify several binary
states if these depend on each other (Gu 2022, arXiv 2203.04403).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dlen.models.label_classes import CONVERGED, SAME_SIGN, STEPS, TINY, Floats, training_patterns
from dlen.schema import Schema, check_known_tasks

Bools = NDArray[np.bool_]
_LEAST_SHARE = 0.01  # of rows in each class at the first step, so that no state starts saturated
Conditionals = tuple[Tensor, Tensor, Tensor, Tensor]  # (B, T) log P(1 | UP), P(1 | not UP), P(0 | UP), P(0 | not UP)


@dataclass(frozen=True, slots=True)
class SecondState:
    """The second hidden state W as log-probabilities.

    Attributes:
        log_state: (B,) log P(W).
        log_given_up: (2, B) log P(W | UP) and log P(not W | UP).
        log_given_not_up: (2, B) log P(W | not UP) and log P(not W | not UP).
        conditionals: probabilities of the labels given UP and given not UP: first together with W, then with not W.
    """

    log_state: Tensor
    log_given_up: Tensor
    log_given_not_up: Tensor
    conditionals: tuple[Conditionals, Conditionals]

    def only(self, columns: Tensor) -> SecondState:
        """The same for some tasks, by their indices (K,)."""
        first, second = (tuple(part.index_select(1, columns) for part in given) for given in self.conditionals)
        return replace(self, conditionals=(first, second))  # type: ignore[arg-type]

    def conditionals_of_up(self) -> Conditionals:
        """Probabilities of the labels given UP or not UP alone."""
        first, second = self.conditionals
        yes = self.summed([first[:2], second[:2]])
        no = self.summed([first[2:], second[2:]])
        return *yes, *no

    def summed(self, of_states: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Sum W out of log-probabilities.

        Args:
            of_states: (B, ...) log P(event | UP, w) and log P(event | not UP, w), for W and for not W.

        Returns:
            (B, ...) log P(event | UP) and log P(event | not UP).
        """
        up, not_up = (torch.stack(parts) for parts in zip(*of_states, strict=True))
        shape = (2, -1) + (1,) * (up.dim() - 2)
        return (
            (up + self.log_given_up.view(shape)).logsumexp(0),
            (not_up + self.log_given_not_up.view(shape)).logsumexp(0),
        )


def tasks_of_states(
    states: int | str | Mapping[str, Sequence[str]], schema: Schema, views: Sequence[Sequence[str]]
) -> tuple[str, Bools] | None:
    """Which tasks hang on which state.

    Args:
        states: 1, 2, ``auto``, or a mapping of the name of W and that of UP, in this order, to their tasks. With 2, W
            has the tasks of the view that the most frequent task belongs to, if there are several; with ``auto``, there
            is one state if there are not.
        views: names of the tasks of each view.

    Returns:
        Name of W, and (2, T) whether each task hangs on W, and on UP; None with one state.

    Raises:
        ValueError: a task is in neither state, a regression hangs on W, or there is no such setting.
    """
    if states == 1 and not isinstance(states, bool):
        return None
    names = schema.task_names
    if states == "auto" and not schema.binary.tasks:
        return None
    if states in (2, "auto"):
        frequent = max(schema.binary.tasks, key=lambda task: task.rate).name
        view = next((view for view in views if frequent in view), [])
        if len(view) < 2 or len(views) < 2:
            if states == "auto":
                return None
            raise ValueError(
                "model.head.states=2 finds the second state from tasks that go with the most frequent one, and no "
                f"label correlates with {frequent} by {SAME_SIGN}; name them, as in "
                f"'model.head.states={{watching:[{frequent}],liking:[...]}}'"
            )
        states = {"watching": view, "liking": [name for name in names if name not in view]}
    if not isinstance(states, Mapping) or len(states) != 2:
        raise ValueError(
            f"states must be 1, 2, auto, or a mapping of two names, the second of which is UP, to tasks, got {states!r}"
        )
    if clash := [name for name in states if name in (*names, "up", "score")]:
        raise ValueError(f"states.{clash[0]}: this name is taken; choose another one")
    for name, tasks in states.items():
        if isinstance(tasks, str) or not isinstance(tasks, Sequence) or not tasks:
            raise ValueError(f"states.{name} must be a list of tasks, got {tasks!r}")
        check_known_tasks(f"states.{name}", tasks, names)
    (name, of_second), (_, of_up) = states.items()
    if missing := [task for task in names if task not in of_second and task not in of_up]:
        raise ValueError(f"states: {missing[0]} is in neither state; list it in one, or in both if it needs both")
    if wrong := [names[i] for i in schema.regressions if names[i] in of_second]:
        raise ValueError(f"states.{name}: {wrong[0]} is a regression, which hangs on UP alone")
    return name, np.array([[task in group for task in names] for group in (of_second, of_up)])


def switches(of_states: Bools) -> Bools:
    """(2, T) whether each task hangs on W, and on UP -> (2, 2, T) whether its states hold, by [not W, not UP]."""
    of_second, of_up = of_states
    holds = np.ones((2, 2, of_states.shape[1]), bool)
    holds[1, :, of_second] = False
    holds[:, 1, of_up] = False
    return holds


def second_state(
    logits: Tensor, switch: Tensor, on: tuple[Tensor, Tensor], off: tuple[Tensor, Tensor]
) -> tuple[SecondState, tuple[Tensor, Tensor]]:
    """Apply the model to the outputs of the network.

    Args:
        logits: (B, 3) of P(W), P(UP | W) and P(UP | not W).
        switch: (2, 2, T) see :func:`switches`.
        on: (B, T) log-probability of each task's label 1 where its states hold, and of 0.
        off: (B, T) the same where they do not.

    Returns:
        The second state, and (B, 1) log P(UP) and log P(not UP).
    """
    log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
    log_w = torch.stack([log_yes[:, 0], log_no[:, 0]])  # (2, B)
    with_up, with_not_up = log_w + log_yes[:, 1:].T, log_w + log_no[:, 1:].T
    log_up, log_not_up = with_up.logsumexp(0), with_not_up.logsumexp(0)

    def given(w: int) -> Conditionals:
        pairs = [[torch.where(switch[w, u], a, b) for u in (0, 1)] for a, b in zip(on, off, strict=True)]
        return pairs[0][0], pairs[0][1], pairs[1][0], pairs[1][1]

    second = SecondState(log_w[0], with_up - log_up, with_not_up - log_not_up, (given(0), given(1)))
    return second, (log_up[:, None], log_not_up[:, None])


@dataclass(frozen=True, slots=True)
class FourClasses:
    """Four classes of rows by their labels.

    Attributes:
        shares: (2, 2) share of rows by [not W, not UP].
        given: (2, T) probability of each task's label where its states hold, and where they do not.
    """

    shares: Floats
    given: Floats

    @property
    def logits(self) -> tuple[float, float, float]:
        """Log-odds of P(W), P(UP | W) and P(UP | not W)."""
        (both, second), (up, none) = np.log(np.clip(self.shares, _LEAST_SHARE, 1)).tolist()
        log_w, log_not_w = np.logaddexp(both, second), np.logaddexp(up, none)
        return float(log_w - log_not_w), both - second, up - none


def fit_four_classes(schema: Schema, switch: Bools, up: float, leak: float) -> FourClasses:
    """Fit both states to the label patterns of the training rows by expectation maximisation, without inputs.

    Args:
        schema: schema of the data; without patterns the start of the fit is returned.
        switch: (2, 2, T) see :func:`switches`.
        up: initial P(UP) and P(W), which start as if UP was four times as likely with W.
        leak: initial ratio of a label's probabilities where its states do not hold and where they do.
    """
    return _fitted(schema, switch.tobytes(), up, leak)


@lru_cache(maxsize=8)  # as for fit_classes
def _fitted(schema: Schema, switch_bytes: bytes, up: float, leak: float) -> FourClasses:
    switch = np.frombuffer(switch_bytes, bool).reshape(2, 2, -1)
    shares = _initial_shares(up)
    held = np.einsum("wu,wut->t", shares, switch)
    rates = np.array([task.rate for task in schema.tasks])
    strong = np.minimum(rates / (held + leak * (1 - held)), 0.99)
    given = np.clip(np.stack([strong, (rates - strong * held) / (1 - held)]), TINY, 1 - TINY)
    if not schema.patterns:
        return FourClasses(shares, given)
    labels, trained, weights = training_patterns(schema)
    positive, negative = labels * trained, (1 - labels) * trained
    weights, last = weights / weights.sum(), -math.inf
    for _ in range(STEPS):
        p = np.where(switch, given[0], given[1])  # (2, 2, T)
        of_classes = np.log(shares)[..., None] + np.log(p) @ positive.T + np.log(1 - p) @ negative.T
        total = np.logaddexp.reduce(of_classes, (0, 1))
        reached = float(weights @ total)
        if reached - last < CONVERGED:
            break
        last, posterior = reached, np.exp(of_classes - total) * weights  # (2, 2, P)
        shares = np.clip(posterior.sum(2), TINY, 1)
        shares /= shares.sum()
        in_state = np.einsum("wup,wut->pt", posterior, switch)
        parts = np.stack([in_state, weights[:, None] - in_state])  # (2, P, T)
        happened, known = (parts * positive).sum(1) + TINY, (parts * trained).sum(1) + 2 * TINY
        given = np.clip(happened / known, TINY, 1 - TINY)
    return FourClasses(shares, given)


def _initial_shares(up: float) -> Floats:
    """(2, 2) shares with P(W) = P(UP) = ``up`` and P(UP | W) = 4 P(UP | not W), at most 1."""
    of_not_w = up / (1 + 3 * up)
    of_w = 4 * of_not_w
    return np.array([[up * of_w, up * (1 - of_w)], [(1 - up) * of_not_w, (1 - up) * (1 - of_not_w)]])
