"""Triton kernels for the rows of an embedding table on a GPU: look them up, sum their gradients, and update them.

Torch's own gather starts a block of 32 threads for each row, of which a row of 16 numbers keeps four busy. At large
batches that took half of a training step on an H200 (docs/log.md). With the update fused, the weights and moments of a
row are read and written once, and no row without a gradient is touched.

Only a GPU needs this file, and only there is Triton installed, as a part of torch's CUDA wheels. The same sums and
updates in torch's own operations are in :mod:`dlen.training.optimizers`.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_NUMBERS = 2048  # numbers of a program: 16 for each of 128 threads


@triton.jit
def _look_up(ids, table, out, count, width, block: tl.constexpr, wide: tl.constexpr):  # type: ignore[no-untyped-def]
    entry = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    column = tl.arange(0, wide)
    here = entry < count
    both = here[:, None] & (column < width)[None, :]
    row = tl.load(ids + entry, mask=here, other=0).to(tl.int64)
    values = tl.load(table + row[:, None] * width + column[None, :], mask=both)
    tl.store(out + entry[:, None] * width + column[None, :], values, mask=both)


@triton.jit
def _add_rows(order, segment, values, sums, count, width, block: tl.constexpr, wide: tl.constexpr):  # type: ignore[no-untyped-def]
    entry = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    column = tl.arange(0, wide)
    here = entry < count
    both = here[:, None] & (column < width)[None, :]
    source = tl.load(order + entry, mask=here, other=0).to(tl.int64)
    target = tl.load(segment + entry, mask=here, other=1).to(tl.int64) - 1
    added = tl.load(values + source[:, None] * width + column[None, :], mask=both, other=0.0)
    first = tl.program_id(0).to(tl.int64) * block
    last = tl.minimum(first + block, count) - 1
    row = tl.load(segment + first).to(tl.int64) - 1
    if row == tl.load(segment + last).to(tl.int64) - 1:  # an id that is met often: one sum for the whole block
        tl.atomic_add(sums + row * width + column, tl.sum(added, 0), mask=column < width, sem="relaxed")
    else:
        tl.atomic_add(sums + target[:, None] * width + column[None, :], added, mask=both, sem="relaxed")


@triton.jit
def _touched(ordered, segment, sums, table, count, width, decay, block: tl.constexpr, wide: tl.constexpr):  # type: ignore[no-untyped-def]
    # The rows of a program, which of them it updates, their places in the table, their weights and their gradients
    entry = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    here = entry < count
    row = tl.load(ordered + entry, mask=here, other=0).to(tl.int64)
    before = tl.load(ordered + entry - 1, mask=here & (entry > 0), other=-1).to(tl.int64)
    own = here & (row != before)  # the first entry of each row updates it
    column = tl.arange(0, wide)
    both = own[:, None] & (column < width)[None, :]
    place = tl.load(segment + entry, mask=own, other=1).to(tl.int64) - 1
    at = row[:, None] * width + column[None, :]
    weight = tl.load(table + at, mask=both, other=0.0)
    gradient = tl.load(sums + place[:, None] * width + column[None, :], mask=both, other=0.0) + decay * weight
    return row, own, at, both, weight, gradient


@triton.jit
def _adam(  # type: ignore[no-untyped-def]
    ordered, segment, sums, table, first, second, step, count, width, lr, rate1, rate2, log1, log2, eps, decay,
    block: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    _, _, at, both, weight, gradient = _touched(ordered, segment, sums, table, count, width, decay, block, wide)
    mean = tl.load(first + at, mask=both, other=0.0)
    mean += rate1 * (gradient - mean)
    square = tl.load(second + at, mask=both, other=0.0)
    square += rate2 * (gradient * gradient - square)
    steps = tl.load(step)  # float64, as 1 - beta ** steps is small at first
    size = lr * tl.sqrt(1 - tl.exp(steps * log2)) / (1 - tl.exp(steps * log1))
    tl.store(first + at, mean, mask=both)
    tl.store(second + at, square, mask=both)
    tl.store(table + at, weight - size.to(tl.float32) * mean / (tl.sqrt(square) + eps), mask=both)


@triton.jit
def _adagrad(  # type: ignore[no-untyped-def]
    ordered, segment, sums, table, total, count, width, lr, eps, decay, block: tl.constexpr, wide: tl.constexpr
):  # fmt: skip
    row, own, at, both, weight, gradient = _touched(ordered, segment, sums, table, count, width, decay, block, wide)
    squares = tl.load(total + row, mask=own, other=0.0) + tl.sum(gradient * gradient, 1) / width
    tl.store(total + row, squares, mask=own)
    tl.store(table + at, weight - lr * gradient / (tl.sqrt(squares) + eps)[:, None], mask=both)


def look_up(ids: Tensor, table: Tensor) -> Tensor:
    """(..., D) rows of a table (R, D) at ids (...)."""
    out = table.new_empty(*ids.shape, table.shape[1])
    count, width = ids.numel(), table.shape[1]
    grid, sizes = _sizes(count, width)
    _look_up[grid](ids.contiguous(), table, out, count, width, **sizes)
    return out


class Segments:
    """The gradient of a table, summed for each row.

    Args:
        ordered: (N,) int32 row of each entry, in ascending order.
        order: (N,) int64 entries in this order.
        segment: (N,) int32 number of each of these rows among the distinct ones, from 1 on.
        values: (N, D) gradient of each entry, in their own order.

    Attributes:
        sums: (N, D) sum of each distinct row, then zeros.
    """

    def __init__(self, ordered: Tensor, order: Tensor, segment: Tensor, values: Tensor) -> None:
        self.ordered, self.segment = ordered, segment
        self.sums = torch.zeros_like(values)
        self.grid, self.settings = _sizes(*values.shape)
        self.settings |= {"count": len(values), "width": values.shape[1]}
        _add_rows[self.grid](order, self.segment, values.contiguous(), self.sums, **self.settings)


def update_adam(
    segments: Segments,
    table: Tensor,
    first: Tensor,
    second: Tensor,
    step: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> None:
    """Update the rows of a table (R, D) and of its moments as :class:`~dlen.training.optimizers.RowAdam` does.

    Args:
        segments: the table's gradient.
        table: (R, D) float32.
        first: (R, D) first moment.
        second: (R, D) second moment.
        step: float64 number of steps with this one, a scalar on the device.
        lr: learning rate.
        betas: decay rates of the moments.
        eps: added to the root of the second moment.
        decay: L2 penalty added to the gradient.
    """
    _adam[segments.grid](
        segments.ordered,
        segments.segment,
        segments.sums,
        table,
        first,
        second,
        step,
        lr=lr,
        rate1=1 - betas[0],
        rate2=1 - betas[1],
        log1=_log(betas[0]),
        log2=_log(betas[1]),
        eps=eps,
        decay=decay,
        **segments.settings,
    )


def update_adagrad(segments: Segments, table: Tensor, total: Tensor, *, lr: float, eps: float, decay: float) -> None:
    """Update the rows of a table (R, D) and of its accumulators (R, 1) as row-wise Adagrad does.

    Arguments as for :func:`update_adam`.
    """
    _adagrad[segments.grid](
        segments.ordered,
        segments.segment,
        segments.sums,
        table,
        total,
        lr=lr,
        eps=eps,
        decay=decay,
        **segments.settings,
    )


def _log(beta: float) -> float:
    return math.log(beta) if beta else -math.inf


def _sizes(count: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    """The number of programs, and the shape of each: rows and columns, both powers of 2."""
    columns = triton.next_power_of_2(width)
    rows = max(_NUMBERS // columns, 1)
    return (triton.cdiv(count, rows),), {"block": rows, "wide": columns}
