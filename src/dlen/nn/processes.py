"""Reductions and exchanges over the training processes; with one process they do nothing."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn


def world_size() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def total(value: Tensor) -> Tensor:
    """Sum over all processes; no gradient flows through it."""
    if world_size() == 1:
        return value
    value = value.detach().clone()
    distributed.all_reduce(value)
    return value


def exchange_rows(table: nn.Parameter) -> None:
    """Average a table's row-sparse gradient over all processes.

    Gathers rows and values, because NCCL cannot reduce sparse tensors and a dense gradient is as large as the table.
    The traffic scales with the ids in a batch, not with the table.

    Args:
        table: (R, D) parameter with a sparse gradient, in which rows may repeat.
    """
    if world_size() == 1 or table.grad is None:
        return
    grad = table.grad if table.grad.is_cuda else table.grad.coalesce()  # on a GPU, coalesce would synchronise
    rows, values = grad._indices()[0], grad._values()
    counts = _gather_counts(rows)
    longest = max(counts)
    all_rows = [rows.new_empty(longest) for _ in counts]
    all_values = [values.new_empty(longest, values.shape[1]) for _ in counts]
    missing = longest - len(rows)
    distributed.all_gather(all_rows, nn.functional.pad(rows, (0, missing)))
    distributed.all_gather(all_values, nn.functional.pad(values, (0, 0, 0, missing)).contiguous())
    joined_rows = torch.cat([r[:n] for r, n in zip(all_rows, counts, strict=True)])
    joined_values = torch.cat([v[:n] for v, n in zip(all_values, counts, strict=True)])
    size = table.shape
    table.grad = torch.sparse_coo_tensor(joined_rows[None], joined_values / len(counts), size, check_invariants=False)


def _gather_counts(rows: Tensor) -> list[int]:
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(world_size())]
    distributed.all_gather(counts, count)
    return [int(count) for count in counts]
