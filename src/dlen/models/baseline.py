"""Baseline: a model that is fitted in one go instead of trained step by step, and evaluated like any other."""

from __future__ import annotations

from abc import abstractmethod
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dlen.batch import Batch
from dlen.models.examples import Rows
from dlen.models.model import Model
from dlen.models.predictions import Predictions
from dlen.models.values import PointValues, centres
from dlen.schema import Schema


class Baseline(Model):
    """One model per task, fitted by a library. The fitted state is in buffers, so checkpoints contain it.

    Attributes:
        name: model name used in messages.
        library: name of the module that fits the model.

    Raises:
        ValueError: the library is not installed.
    """

    name: str
    library: str

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        try:
            import_module(self.library)
        except (ImportError, OSError):
            raise ValueError(f"{self.name} needs the module {self.library}: pip install 'dlen[baselines]'") from None

    @abstractmethod
    def fit(self, train: Rows, validation: Rows, seed: int) -> None:
        """Fit every task.

        Args:
            validation: rows used to select a setting or to stop early.
        """

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """Compute the (B, T) float32 log-odds; the standardised prediction of a regression task."""

    @abstractmethod
    def size(self) -> dict[str, float]:
        """Size of the fitted model, under the keys of ``metrics.json``."""

    def forward(self, batch: Batch) -> Predictions:
        """Predict the probability of every task for B rows."""
        logits = self.logits(batch)
        values = None
        if self.schema.regressions:
            columns = torch.tensor(self.schema.regressions, device=logits.device)
            outputs = logits.index_select(1, columns)
            values = PointValues(columns, outputs, ("mse",) * len(columns))
            logits = logits.index_copy(1, columns, outputs - outputs.new_tensor(centres(self.schema)))
        log_p = F.logsigmoid(logits)
        return Predictions(log_p, F.logsigmoid(-logits), log_p, values=values)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accept buffers of any size, because only the checkpoint knows the sizes of a fitted model."""
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is not None and isinstance(saved, Tensor) and saved.shape != buffer.shape:
                self._buffers[name] = torch.empty_like(saved, device=buffer.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
