"""Baselines in a run: unsupported settings, and a fit in one go instead of training steps."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig

from dlen.batch import Batch
from dlen.data.loader import BatchLoader
from dlen.data.split import Split
from dlen.errors import UserError
from dlen.models.baseline import Baseline
from dlen.models.examples import Examples
from dlen.models.predictions import label_weights
from dlen.targets import Targets
from dlen.training.callbacks import Meter
from dlen.training.datamodule import RankingDataModule
from dlen.training.module import RankingModule


def check_baseline(config: DictConfig, model: Baseline) -> None:
    """Raise UserError for training settings that a fit in one go cannot honour."""
    if config.ckpt is not None:
        raise UserError(
            f"config ckpt: {model.name} is fitted in one go, so there is nothing to resume; start a new run"
        )
    if config.sharding:
        raise UserError(f"config sharding: {model.name} has no embedding table to shard; set sharding=null")
    if config.get("scheduler"):
        raise UserError(f"config scheduler: {model.name} is fitted in one go, without learning rates; leave it out")
    limit = config.trainer.limit_train_batches
    if isinstance(limit, int) or limit != 1.0:  # 1 is one batch, 1.0 all of them
        raise UserError(
            f"config trainer.limit_train_batches: {model.name} is fitted to all training rows; leave it at 1.0"
        )


def fit_baseline(
    trainer: L.Trainer, module: RankingModule, data: RankingDataModule, meter: Meter, best: Path | None
) -> dict[str, Any]:
    """Fit the module's model to all training rows on the CPU, run validation, and save a checkpoint.

    Args:
        meter: receives the number of rows and the seconds of the fit.
        best: path of the checkpoint to write; None for none.

    Returns:
        Size of the model, for ``metrics.json``.
    """
    model = module.model
    assert isinstance(model, Baseline)
    splits = [data.store.split(name) for name in ("train", "validation")]
    train, validation = (partial(_examples, split, module.targets, data.eval_batch_size) for split in splits)
    started = time.perf_counter()
    try:
        model.fit(train, validation, data.seed)
    except KeyboardInterrupt:
        print(f"interrupted: {model.name} is fitted in one go and cannot resume; start a new run", file=sys.stderr)
        raise SystemExit(130) from None
    meter.rows, meter.seconds = len(splits[0]), time.perf_counter() - started
    trainer.validate(module, datamodule=data, verbose=False)
    if best is not None:
        trainer.save_checkpoint(best, weights_only=True)
    return model.size()


def _examples(split: Split, targets: Targets, batch_size: int) -> Iterator[Examples]:
    """Yield a split's rows in stored order, with the training label and mask of each task.

    Validation rows use the training labels as well: with ``train_on: all``, a task is trained on a different label and
    on more rows than it is evaluated on.
    """
    for batch in BatchLoader(split, batch_size, shuffle=False):
        yield examples_of(batch, targets)


def examples_of(batch: Batch, targets: Targets) -> Examples:
    """The rows of a batch with their training labels; a label of weight 0 does not train."""
    labels, mask = targets.training_labels(batch.labels), targets.trained(batch.labels)
    if batch.row_weights is None:
        return Examples(batch, labels, mask)
    weights = label_weights(batch.row_weights)
    return Examples(batch, labels, mask * (weights > 0), weights)
