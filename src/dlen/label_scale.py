"""LabelScale: the labels of regression tasks, in their own unit and standardised."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlen.schema import Schema


class LabelScale(nn.Module):
    """Standardises the labels of the R regression tasks of a schema, and converts predictions back to their unit.

    Attributes:
        columns: (R,) int64 indices of the regression tasks among the T tasks.
        log: (R,) whether sign(y) log(1 + abs(y)) is standardised instead of y.
        mean: (R,) what is subtracted.
        deviation: (R,) what it is divided by.
    """

    columns: Tensor
    log: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        tasks = [schema.tasks[index] for index in schema.regressions]
        for name, values in (
            ("columns", torch.tensor(schema.regressions, dtype=torch.int64)),
            ("log", torch.tensor([task.transform == "log1p" for task in tasks])),
            ("mean", torch.tensor([task.mean for task in tasks])),
            ("deviation", torch.tensor([task.deviation for task in tasks])),
        ):
            self.register_buffer(name, values, persistent=False)

    def standardise(self, values: Tensor) -> Tensor:
        """(B, R) labels in their own unit -> (B, R) standardised; nan stays nan."""
        values = torch.where(self.log, values.sign() * values.abs().log1p(), values)
        return (values - self.mean) / self.deviation

    def forward(self, standardised: Tensor) -> Tensor:
        """(B, R) standardised values -> (B, R) in the unit of the labels."""
        values = standardised * self.deviation + self.mean
        return torch.where(self.log, values.sign() * values.abs().expm1(), values)
