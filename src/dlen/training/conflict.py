"""Gradient conflict: how often two tasks pull the shared parameters in opposite directions.

The paper's central claim is that tasks conflict on shared parameters, because a row that is positive for one task is
negative for the others. This module measures the conflict for any model, on a sample of training steps.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dlen.batch import Batch
from dlen.data.split import Rows
from dlen.models.features import Features
from dlen.models.predictions import task_losses
from dlen.models.ranker import Ranker
from dlen.targets import Targets
from dlen.training.module import RankingModule

# A sample needs one backward pass per task, so on a whole large batch it costs several steps. A fixed number of rows
# also gives batches of 1024 and 4096 the same noise, which keeps their metrics comparable.
ROWS = 1024
FIRST_INTERVAL = 100  # steps


def cosines(gradients: Tensor) -> Tensor:
    """(..., T, P) gradients of T tasks -> (..., T, T) cosine similarities; nan where a task has no gradient."""
    norms = gradients.norm(dim=-1, keepdim=True)
    unit = gradients / torch.where(norms > 0, norms, 1.0)
    undefined = norms == 0  # also if nothing is shared, P = 0
    return (unit @ unit.transpose(-1, -2)).masked_fill(undefined | undefined.transpose(-1, -2), torch.nan)


def task_gradients(model: Ranker, batch: Batch, targets: Targets, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Gradients of each task's cross entropy, regardless of the training loss.

    Args:
        batch: B rows.
        rows: use the first S = min(B, rows) rows.

    Returns:
        (T, P) gradients of the shared parameters, and (S, T, D) gradients of each row's input without first-order
        terms.
    """
    x, labels = model.features(batch).values.detach()[:rows].requires_grad_(), batch.labels[:rows]
    predictions = model.predict(Features(x, model.spec))
    row_weights = None if batch.row_weights is None else batch.row_weights[:rows]
    losses = task_losses(predictions, targets.training_labels(labels), targets.trained(labels), row_weights)
    shared = model.shared_parameters()
    by_task, by_row = [], []
    for loss in losses:
        *parameters, row = torch.autograd.grad(loss, [*shared, x], retain_graph=True, materialize_grads=True)
        by_task.append(torch.cat([x.new_zeros(0), *(g.flatten() for g in parameters)]))
        by_row.append(row[:, : model.spec.width])  # the first-order terms after it are not shared
    return torch.stack(by_task), torch.stack(by_row, 1)


class GradientConflict(Callback):
    """Samples gradient conflict in some of the training steps, on up to 1024 rows of the batch, in their precision.

    Does not synchronise with the device until a validation reads the sums.

    Each validation logs the samples since the last one, if there are any; ``metrics.json`` covers the whole training.
    ``conflict/share`` is the share of task pairs whose gradients on the shared parameters have a cosine below 0.
    ``conflict/cosine`` is the mean cosine, ``conflict/cosine/A-B`` that of one pair, and ``conflict/rows`` the share of
    pairs with a cosine below 0 on a single row's input.

    A sample costs as much as several steps. So with ``auto`` they become as rare as the training is long: the next one
    is 100 steps later, or a tenth of the steps so far if that is more. Each counts as often as the steps to the next.

    Args:
        every: number of steps between samples, or ``auto``; 0 disables sampling.
    """

    def __init__(self, every: int | Literal["auto"]) -> None:
        self.every = every
        self._next = 0  # step of the next sample
        self.total: dict[str, Tensor] = {}  # over the whole training
        self.recent: dict[str, Tensor] = {}  # since the last validation

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take a sample without changing the random numbers of the training step."""
        assert isinstance(pl_module, RankingModule)
        if self.every == 0 or len(pl_module.model.schema.tasks) < 2:
            return
        weight = self.weight(trainer.global_step)
        if not weight:
            return
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        assert isinstance(pl_module.model, Ranker)
        batch = batch.batch() if isinstance(batch, Rows) else batch
        context = trainer.strategy.precision_plugin.forward_context()  # in 32 bits a sample would take twice as long
        with torch.random.fork_rng(devices=devices), torch.enable_grad(), context:
            gradients = task_gradients(pl_module.model, batch, pl_module.targets)
        self.add(*gradients, weight)

    def weight(self, step: int) -> float:
        """How often a sample of this step counts; 0 if none is taken. Steps are asked for in ascending order."""
        while self._next < step:  # a resumed training begins later
            self._next += self._interval(self._next)
        if self._next > step:
            return 0.0
        interval = self._interval(step)
        self._next += interval
        return interval / FIRST_INTERVAL

    def _interval(self, step: int) -> int:
        return max(FIRST_INTERVAL, step // 10) if isinstance(self.every, str) else self.every

    def add(self, by_task: Tensor, by_row: Tensor, weight: float = 1.0) -> None:
        """Add one sample of :func:`task_gradients`."""
        for sums in (self.total, self.recent):
            _add(sums, by_task, by_row, weight)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the samples since the last validation."""
        if self.recent and not trainer.sanity_checking:
            assert isinstance(pl_module, RankingModule)
            figures = _figures(self.recent, pl_module.model.schema.task_names)
            for logger in trainer.loggers:
                logger.log_metrics({f"train/{key}": value for key, value in figures.items()}, trainer.global_step)
            self.recent = {}

    def figures(self, names: list[str]) -> dict[str, float]:
        """Metrics over the whole training, under the keys of ``metrics.json``; empty without samples."""
        return {f"train/{key}": value for key, value in _figures(self.total, names).items()} if self.total else {}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, so that a resumed run reports all samples."""
        return {"total": self.total, "recent": self.recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.total, self.recent = state_dict["total"], state_dict["recent"]


def _add(sums: dict[str, Tensor], by_task: Tensor, by_row: Tensor, weight: float) -> None:
    """Add one sample to the sums."""
    for key, cosine in (("batch", cosines(by_task)[None]), ("rows", cosines(by_row))):
        known = ~cosine.isnan()
        for part, value in (
            ("known", known),
            ("apart", (cosine < 0) & known),
            ("cosine", cosine.nan_to_num(0.0)),
        ):
            name = f"{key}/{part}"
            total = value.double().sum(0) * weight
            sums[name] = sums[name].to(total.device) + total if name in sums else total


def _figures(sums: dict[str, Tensor], names: list[str]) -> dict[str, float]:
    pairs = list(combinations(range(len(names)), 2))
    upper = tuple(torch.tensor(index) for index in zip(*pairs, strict=True))

    def mean(part: str) -> float:
        return float(sums[part][upper].sum() / sums[f"{part.split('/')[0]}/known"][upper].sum())

    figures = {
        "conflict/share": mean("batch/apart"),
        "conflict/cosine": mean("batch/cosine"),
        "conflict/rows": mean("rows/apart"),
    }
    for i, j in pairs:
        if sums["batch/known"][i, j] > 0:
            cosine = sums["batch/cosine"][i, j] / sums["batch/known"][i, j]
            figures[f"conflict/cosine/{names[i]}-{names[j]}"] = float(cosine)
    return {key: value for key, value in figures.items() if not math.isnan(value)}  # nan: nothing is shared, or no rows
