"""Examples: the training input of a baseline, rows with the label and mask of each task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from dlen.batch import Batch


@dataclass(frozen=True, slots=True)
class Examples:
    """B rows with labels, mask and weights.

    Attributes:
        batch: inputs of the rows.
        labels: (B, T) training label of each task: 0 or 1; standardised for a regression task.
        mask: (B, T) 1 where a row trains a task, with a weight above 0.
        weights: (B, T) weight of each label; None if all are 1.
    """

    batch: Batch
    labels: Tensor
    mask: Tensor
    weights: Tensor | None = None


Rows = Callable[[], Iterator[Examples]]  # each call iterates over a split in stored order
