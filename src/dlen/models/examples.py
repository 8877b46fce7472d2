"""Examples: rows to fit a baseline to, which whoever trains hands over with what each task learns from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from dlen.batch import Batch


@dataclass(frozen=True, slots=True)
class Examples:
    """B rows.

    Attributes:
        batch: their inputs.
        labels: (B, T) 0 or 1, what each task learns.
        mask: (B, T) 1 where a row trains a task.
    """

    batch: Batch
    labels: Tensor
    mask: Tensor


Rows = Callable[[], Iterator[Examples]]  # all rows of a split in stored order, as often as it is called
