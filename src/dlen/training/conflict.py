"""Gradient conflict: how often two tasks pull the shared parameters in opposite directions.

The paper's central claim is that tasks fight over shared parameters, because a row that is positive for one task is
negative for the others. This measures it, for any model, on a sample of training steps.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dlen.batch import Batch
from dlen.models.features import Features
from dlen.models.predictions import task_losses
from dlen.models.ranker import Ranker
from dlen.training.module import RankingModule
from dlen.training.targets import Targets

# A sample is a backward pass for each task, so with every row of a large batch it costs several steps; a fixed number
# of rows also gives batches of 1024 and 4096 the same noise, and so figures that can be compared.
ROWS = 1024


def cosines(gradients: Tensor) -> Tensor:
    """(..., T, P) gradients of T tasks -> (..., T, T) cosines; nan where a task has no gradient."""
    norms = gradients.norm(dim=-1, keepdim=True)
    unit = gradients / torch.where(norms > 0, norms, 1.0)
    none = norms == 0  # also where nothing is shared, P = 0
    return (unit @ unit.transpose(-1, -2)).masked_fill(none | none.transpose(-1, -2), torch.nan)


def task_gradients(model: Ranker, batch: Batch, targets: Targets, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Gradients of each task's cross entropy, whatever loss the model trains on.

    Args:
        model: any ranker.
        batch: B rows.
        targets: of the model's schema.
        rows: use the first S = min(B, rows) rows.

    Returns:
        (T, P) with respect to the parameters that all tasks share, and (S, T, D) with respect to each row's input but
        for first-order terms.
    """
    x, labels = model.embedding(batch).detach()[:rows].requires_grad_(), batch.labels[:rows]
    predictions = model.predict(Features(x, model.spec))
    losses = task_losses(predictions, targets.training_labels(labels), targets.trained(labels))
    shared = model.backbone.shared_parameters()
    by_task, by_row = [], []
    for loss in losses:
        *parameters, row = torch.autograd.grad(loss, [*shared, x], retain_graph=True, materialize_grads=True)
        by_task.append(torch.cat([x.new_zeros(0), *(g.flatten() for g in parameters)]))
        by_row.append(row[:, : model.spec.width])  # behind it is what each task has of its own
    return torch.stack(by_task), torch.stack(by_row, 1)


class GradientConflict(Callback):
    """Samples gradient conflict every so many steps, on up to 1024 rows of the batch.

    Nothing waits for the device until a validation reads the sums.

    Logged at each validation since the last one, and over the whole training in ``metrics.json``: ``conflict/share``,
    the share of task pairs whose gradients of the shared parameters point apart (cosine below 0), ``conflict/cosine``,
    the mean cosine, ``conflict/cosine/A-B`` for each pair, and ``conflict/rows``, the share of pairs that point apart
    in a single row's input.

    Args:
        every: steps between two samples; 0 for none.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.total: dict[str, Tensor] = {}  # over the whole training
        self.recent: dict[str, Tensor] = {}  # since the last validation

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take a sample, without touching the random numbers of the training step."""
        assert isinstance(pl_module, RankingModule)
        if self.every == 0 or trainer.global_step % self.every or len(pl_module.model.schema.tasks) < 2:
            return
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        assert isinstance(pl_module.model, Ranker)
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            gradients = task_gradients(pl_module.model, batch, pl_module.targets)
        self.add(*gradients)

    def add(self, by_task: Tensor, by_row: Tensor) -> None:
        """Add one sample of :func:`task_gradients`."""
        for sums in (self.total, self.recent):
            _add(sums, by_task, by_row)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what was sampled since the last validation."""
        if self.recent and not trainer.sanity_checking:
            assert isinstance(pl_module, RankingModule)
            figures = _figures(self.recent, pl_module.model.schema.task_names)
            for logger in trainer.loggers:
                logger.log_metrics({f"train/{key}": value for key, value in figures.items()}, trainer.global_step)
            self.recent = {}

    def figures(self, names: list[str]) -> dict[str, float]:
        """Over the whole training, under the keys of ``metrics.json``; empty without a sample."""
        return {f"train/{key}": value for key, value in _figures(self.total, names).items()} if self.total else {}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, so that a resumed run reports all of its samples."""
        return {"total": self.total, "recent": self.recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.total, self.recent = state_dict["total"], state_dict["recent"]


def _add(sums: dict[str, Tensor], by_task: Tensor, by_row: Tensor) -> None:
    """Add the counts of one sample."""
    for key, cosine in (("batch", cosines(by_task)[None]), ("rows", cosines(by_row))):
        known = ~cosine.isnan()
        for part, value in (
            ("known", known),
            ("apart", (cosine < 0) & known),
            ("cosine", cosine.nan_to_num(0.0)),
        ):
            name = f"{key}/{part}"
            total = value.double().sum(0)
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
    return {key: value for key, value in figures.items() if not math.isnan(value)}  # nothing is shared, or no row
