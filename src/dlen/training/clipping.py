"""Gradient clipping that keeps the gradients of embedding tables row-sparse."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dlen.training.optimizers import merged_rows


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, algorithm: str = "norm") -> None:
    """Clip gradients in place, as :func:`torch.nn.utils.clip_grad_norm_` and ``clip_grad_value_`` do.

    Entries of a sparse gradient that belong to the same row are summed first, since only their sum is the gradient of
    that row. Neither densifies a table's gradient nor synchronises with the device.

    Args:
        parameters: parameters with dense gradients, or with sparse gradients (R, D).
        limit: maximum norm over all parameters, or maximum absolute value of each element.
        algorithm: ``norm`` or ``value``.
    """
    gradients = [_merged(p) for p in parameters if p.grad is not None]
    if not gradients:
        return
    if algorithm == "value":
        torch._foreach_clamp_min_(gradients, -limit)
        torch._foreach_clamp_max_(gradients, limit)
    else:
        total = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (limit / (total + 1e-6)).clamp(max=1.0))  # the formula of clip_grad_norm_


def _merged(parameter: nn.Parameter) -> Tensor:
    """The values of a parameter's gradient; a sparse gradient is replaced by one without repeated rows."""
    gradient = parameter.grad
    assert gradient is not None
    if not gradient.is_sparse:
        return gradient
    rows, values = merged_rows(gradient)
    parameter.grad = torch.sparse_coo_tensor(rows[None], values, gradient.shape, check_invariants=False)
    return parameter.grad._values()
