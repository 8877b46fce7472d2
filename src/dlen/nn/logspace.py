"""Log-probabilities: accurate near 0 and near 1, in any float type."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
