"""Fusion: combine the tasks' probabilities and P(UP) into the one score that orders a feed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from dlen.checks import is_finite, is_number
from dlen.ranking.calibration import Calibration
from dlen.schema import check_known_tasks


class Form(StrEnum):
    """How the tasks' probabilities are combined."""

    PRODUCT = "product"  # each probability to the power of its weight
    SUM = "sum"  # each probability times its weight


UP = "up"  # name of the hidden state that every model with one has
_LAST = 1e3  # puts an item behind all others; float32 still resolves differences of 6e-5 there


def fuse(
    log_p: Tensor,
    log_up: Tensor | None,
    weights: Tensor,
    up: float,
    form: Form | str = Form.PRODUCT,
    floor: float = 0.0,
) -> Tensor:
    """Score impressions so that they can be ranked.

        P(UP)^up * prod_t P(t)^w_t,    or    P(UP)^up * sum_t w_t P(t)

    As in the paper's online test, P(UP) ranks detested items low. With ``up=0`` it has no effect. For a regression
    task, P(t) is the logistic function of its standardised prediction: .5 at the mean of training.

    Args:
        log_p: (B, T) log-probabilities of the tasks.
        log_up: (B,) log P(UP); None for a model without a hidden state.
        weights: (T,) weights of the tasks. In a product, the weight of a dislike is negative.
        up: exponent of P(UP).
        form: product or sum.
        floor: items with a lower P(UP) are ranked last, in their own order; 0 disables this.

    Returns:
        (B,) logarithms of the scores; minus infinity where nothing has weight.

    Raises:
        ValueError: ``up`` or ``floor`` needs a hidden state that the model does not have, or a sum has a negative
            weight.

    Example:
        >>> click, share = [0.5, 0.2], [0.4, 0.3]
        >>> log_p, log_up = torch.tensor([click, share]).T.log(), torch.tensor([0.9, 0.1]).log()
        >>> fuse(log_p, log_up, torch.tensor([1.0, 2.0]), up=0.5, form="sum").exp()
        tensor([1.2333, 0.2530])
    """
    form = Form(form)
    if log_up is None and (up != 0 or floor > 0):
        raise ValueError("up and floor need P(UP), which the model does not have")
    if form is Form.SUM:
        if (weights < 0).any():
            raise ValueError("a weighted sum needs weights of at least 0; only a product takes negative weights")
        score = (log_p + weights.log()).logsumexp(1)
    else:
        score = (log_p * weights).sum(1)
    if log_up is None:
        return score
    score = score + up * log_up
    return score if floor <= 0 else torch.where(log_up < math.log(floor), score - _LAST, score)


@dataclass(frozen=True, slots=True)
class Fusion:
    """Settings of a :class:`Score`, with weights by task name.

    Args:
        form: ``product`` or ``sum``.
        weights: weight of each task. The default is 1, and for a dislike -1 in a product and 0 in a sum.
        up: exponent of P(UP).
        floor: items with a lower P(UP) are ranked last; 0 disables this.
        state: the hidden state that takes the place of UP in ``up`` and ``floor``, for a model with two.
        calibrate: calibrate the probabilities of each task on held-out rows first.

    Raises:
        ValueError: the form is unknown, a weight is not a number, or the floor is not a probability.
    """

    form: str = "product"
    weights: Mapping[str, float] | None = None
    up: float = 0.0
    floor: float = 0.0
    state: str = UP
    calibrate: bool = False

    def __post_init__(self) -> None:
        if self.form not in list(Form):
            raise ValueError(f"form must be one of {', '.join(Form)}, got {self.form!r}")
        for name, value in {**(self.weights or {}), "up": self.up, "floor": self.floor}.items():
            if not is_finite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor must be from 0 to below 1, got {self.floor}")
        if not isinstance(self.state, str):
            raise ValueError(f"state must be the name of a hidden state, got {self.state!r}")
        if not isinstance(self.calibrate, bool):
            raise ValueError(f"calibrate must be true or false, got {self.calibrate!r}")

    @property
    def needs_up(self) -> bool:
        """Whether the score uses P(UP)."""
        return self.up != 0 or self.floor > 0

    def for_tasks(self, tasks: Sequence[str], dislikes: Sequence[bool]) -> Tensor:
        """(T,) weights in the order of the tasks.

        Raises:
            ValueError: a weight names an unknown task.
        """
        check_known_tasks("weights", self.weights or {}, tasks)
        of_dislike = -1.0 if self.form == Form.PRODUCT else 0.0
        defaults = [of_dislike if dislike else 1.0 for dislike in dislikes]
        return torch.tensor([float((self.weights or {}).get(t, d)) for t, d in zip(tasks, defaults, strict=True)])


class Score(nn.Module):
    """The score of a feed as a module, for scoring rows and for export.

    Args:
        weights: (T,) weights of the tasks, from :meth:`Fusion.for_tasks`.
        state: index of :attr:`Fusion.state` among the model's hidden states.
        calibration: calibration of the tasks' probabilities; None leaves them unchanged.
    """

    def __init__(self, fusion: Fusion, weights: Tensor, calibration: Calibration | None = None, state: int = 0) -> None:
        super().__init__()
        self.fusion, self.state = fusion, state
        self.calibrated = calibration is not None
        for name, values in (
            ("weights", weights),
            ("slope", torch.ones_like(weights) if calibration is None else calibration.slope),
            ("offset", torch.zeros_like(weights) if calibration is None else calibration.offset),
        ):
            self.register_buffer(name, values)
        self.weights: Tensor
        self.slope: Tensor
        self.offset: Tensor

    def forward(self, log_p: Tensor, log_states: Tensor | None) -> Tensor:
        """Map (B, T) log-probabilities of tasks and (B, S) of hidden states to (B,) scores; see :func:`fuse`."""
        if self.calibrated:
            log_p = Calibration(self.slope, self.offset)(log_p)
        log_up = None if log_states is None else log_states[:, self.state]
        return fuse(log_p, log_up, self.weights, self.fusion.up, self.fusion.form, self.fusion.floor)


def worth(labels: Tensor, values: Sequence[float]) -> Tensor:
    """Map (B, T) labels to the (B,) worth of each impression: the summed values of what happened, at least 0."""
    return (labels.nan_to_num() * torch.tensor(values, dtype=labels.dtype)).sum(1).clamp(min=0)


def values_of(values: Mapping[str, float] | None, tasks: Sequence[str], dislikes: Sequence[bool]) -> list[float]:
    """Value of each task: the configured value, else 1, or -1 for a dislike.

    Raises:
        ValueError: a value names an unknown task or is not a number.
    """
    check_known_tasks("values", values or {}, tasks)
    for name, value in (values or {}).items():
        if not is_number(value):
            raise ValueError(f"the value of {name} must be a number, got {value!r}")
    return [float((values or {}).get(t, -1.0 if d else 1.0)) for t, d in zip(tasks, dislikes, strict=True)]
