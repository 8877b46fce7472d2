"""Fusion: the one score that orders a feed, from the tasks' probabilities and P(UP)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class Form(StrEnum):
    """How the tasks' probabilities are joined."""

    PRODUCT = "product"  # each one to the power of its weight
    SUM = "sum"  # each one times its weight


def fuse(log_p: Tensor, log_up: Tensor | None, weights: Tensor, up: float, form: Form | str = Form.PRODUCT) -> Tensor:
    """Scores of impressions, to be compared with one another.

        P(UP)^up * prod_t P(t)^w_t,    or    P(UP)^up * sum_t w_t P(t)

    As in the paper's online test, P(UP) keeps detested items low; with ``up`` 0 it takes no part.

    Args:
        log_p: (B, T) log-probabilities of the tasks.
        log_up: (B,) log P(UP); None for a model without hidden state.
        weights: (T,) of the tasks; a dislike's is negative in a product.
        up: exponent of P(UP).
        form: product or sum.

    Returns:
        (B,) logarithms of the scores; minus infinity where nothing has weight.

    Raises:
        ValueError: ``up`` asks for a hidden state that is not there, or a sum has a negative weight.

    Example:
        >>> click, share = [0.5, 0.2], [0.4, 0.3]
        >>> log_p, log_up = torch.tensor([click, share]).T.log(), torch.tensor([0.9, 0.1]).log()
        >>> fuse(log_p, log_up, torch.tensor([1.0, 2.0]), up=0.5, form="sum").exp()
        tensor([1.2333, 0.2530])
    """
    form = Form(form)
    if up != 0 and log_up is None:
        raise ValueError(f"the model has no P(UP), which is asked to the power of {up}")
    if form is Form.SUM:
        if (weights < 0).any():
            raise ValueError("a weighted sum needs weights from 0; a product takes negative ones")
        score = (log_p + weights.log()).logsumexp(1)
    else:
        score = (log_p * weights).sum(1)
    return score if log_up is None else score + up * log_up


@dataclass(frozen=True, slots=True)
class Fusion:
    """Settings of :func:`fuse` by the tasks' names.

    Args:
        form: ``product`` or ``sum``.
        weights: of the tasks; one that is not named has 1, a dislike -1 in a product and 0 in a sum.
        up: exponent of P(UP).

    Raises:
        ValueError: the form is unknown, or a weight is no number.
    """

    form: str = "product"
    weights: Mapping[str, float] | None = None
    up: float = 0.0

    def __post_init__(self) -> None:
        Form(self.form)
        for name, value in {**(self.weights or {}), "up": self.up}.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name}: {value!r} is not a number")

    def for_tasks(self, tasks: Sequence[str], dislikes: Sequence[bool]) -> Tensor:
        """(T,) weights in the order of the tasks.

        Raises:
            ValueError: a weight is of no task.
        """
        unknown = [name for name in self.weights or {} if name not in tasks]
        if unknown:
            raise ValueError(f"there is no task {unknown[0]} to weigh; the tasks are {', '.join(tasks)}")
        of_dislike = -1.0 if self.form == Form.PRODUCT else 0.0
        defaults = [of_dislike if dislike else 1.0 for dislike in dislikes]
        return torch.tensor([float((self.weights or {}).get(t, d)) for t, d in zip(tasks, defaults, strict=True)])

    def __call__(self, log_p: Tensor, log_up: Tensor | None, weights: Tensor) -> Tensor:
        """(B,) scores, as :func:`fuse` with the weights of :meth:`for_tasks`."""
        return fuse(log_p, log_up, weights, self.up, self.form)


def worth(labels: Tensor, values: Sequence[float]) -> Tensor:
    """(B, T) labels -> (B,) what the impressions were worth: the values of what happened, and at least 0."""
    return (labels * torch.tensor(values, dtype=labels.dtype)).sum(1).clamp(min=0)


def values_of(asked: Mapping[str, float] | None, tasks: Sequence[str], dislikes: Sequence[bool]) -> list[float]:
    """What each task is worth: as asked, else 1, and -1 for a dislike.

    Raises:
        ValueError: a value of no task, or one that is no number.
    """
    for name, value in (asked or {}).items():
        if name not in tasks:
            raise ValueError(f"there is no task {name}; the tasks are {', '.join(tasks)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"the value of {name} is {value!r}, and no number")
    return [float((asked or {}).get(t, -1.0 if d else 1.0)) for t, d in zip(tasks, dislikes, strict=True)]
