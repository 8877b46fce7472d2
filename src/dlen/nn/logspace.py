"""Log-probabilities: accurate near 0 and near 1, in any float type."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MOST_LOG_RATIO = 15.0  # of an odds ratio whose square 32 bits hold
_LEAST_SQUARE = 1e-30  # under a root, whose gradient must be finite


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, accurate everywhere.

    Uses log(-expm1(x)) for x close to 0 and log1p(-exp(x)) elsewhere (Maechler 2012). Values at or above 0, which only
    rounding can produce, are clamped to the largest float below 0, so that the result and its gradient are finite.

    Args:
        x: log-probabilities, any shape.

    Returns:
        log(1 - p), in the same shape.

    Example:
        >>> log1mexp(torch.tensor([0.25]).log()).exp()
        tensor([0.7500])
    """
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    close = x > -math.log(2)
    # Each branch gets only values with a finite gradient: torch.where alone would propagate nan backwards.
    near = torch.log(-torch.expm1(torch.where(close, x, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(close, -1.0, x)))
    return torch.where(close, near, far)


def log_odds(log_p: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p: a scale that resolves scores near 0.0002 as well as scores near 0.5."""
    return log_p - log1mexp(log_p)


def at_least_float32(x: Tensor) -> Tensor:
    """Cast half-precision logits to float32: sums of logarithms need the precision, and the cast is cheap."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def log_lift(log_a: Tensor, log_b: Tensor, log_ratio: Tensor) -> Tensor:
    """log P(a, b) / (P(a) P(b)) of two events with given probabilities and a given odds ratio.

    The joint distribution of two binary variables with the odds ratio r between them has, with S = 1 + (a + b) (r - 1),
    P(a, b) = 2 r a b / (S + sqrt(S^2 - 4 r (r - 1) a b)) (Plackett 1965). All its forms below are free of
    cancellation. It is exactly 0 for r = 1.

    Args:
        log_a: logarithms of the probabilities of a, any shape.
        log_b: those of b, in a shape that broadcasts with ``log_a``.
        log_ratio: log of the odds ratio, positive if a and b occur together more often than by chance.
    """
    a, b, log_ratio = log_a.exp(), log_b.exp(), log_ratio.clamp(-_MOST_LOG_RATIO, _MOST_LOG_RATIO)
    q = log_ratio.expm1()
    s = 1 + (a + b) * q
    # A sum of non-negative terms for either sign of q.
    square = torch.where(q > 0, (1 + (a - b) * q).square() + 4 * q * b * (1 - a), s.square() - 4 * (q + 1) * q * a * b)
    root = square.clamp(min=_LEAST_SQUARE).sqrt()
    positive = s > 0
    of_positive = math.log(2) + log_ratio - torch.where(positive, s + root, 2.0).log()
    of_negative = (torch.where(positive, 1.0, root - s) / torch.where(positive, 1.0, -2 * q)).log() - log_a - log_b
    return torch.where(positive, of_positive, of_negative)
