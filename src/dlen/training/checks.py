"""Checks of a config that need torch, its data or its model, and run before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from omegaconf import DictConfig
from torch.optim import Optimizer

from dlen.data.store import Store
from dlen.devices import local_processes
from dlen.errors import UserError
from dlen.models.baseline import Baseline
from dlen.models.model import Model
from dlen.models.ranker import Ranker
from dlen.nn.sharded import check_shardable
from dlen.targets import Targets
from dlen.training.baseline import check_baseline
from dlen.training.building import (
    build_balancer,
    build_id_dropout,
    build_model,
    build_module,
    build_own_callbacks,
    build_scheduler,
    modes,
)
from dlen.training.configs import build
from dlen.training.optimizers import split_for_sharding
from dlen.training.plain_checks import check_settings
from dlen.training.schedulers import check_scheduler
from dlen.training.selection import monitored


def check_processes(config: DictConfig, trainer: L.Trainer, model: Model) -> None:
    """Check the settings that depend on the number of processes."""
    if config.sharding:
        _check_shardable(config, model, trainer.world_size, trainer.strategy.root_device.type)
    if trainer.world_size == 1:
        return
    if isinstance(model, Baseline):
        raise UserError(f"config trainer.devices: {model.name} is fitted in one process; set trainer.devices=1")
    if config.metrics.scores:
        raise UserError(
            "config metrics.scores: works in one process only, as each process tests its own rows; set "
            "trainer.devices=1"
        )
    if build_balancer(config).on_gradients:
        raise UserError("config balancing: gradient surgery works in one process only; set trainer.devices=1")


def _check_shardable(config: DictConfig, model: Model, processes: int, device: str) -> None:
    assert isinstance(model, Ranker)
    if processes == 1:
        raise UserError("config sharding: needs several processes; set trainer.devices=N")
    decay = config.optimizer.get("embedding_weight_decay", 0.0)
    check_shardable(model.schema, model.embedding.dim, config.sharding, processes, device, decay)


def check_by_user(config: DictConfig, store: Store) -> None:
    """Raise UserError if ranking within users is requested without a user field."""
    if config.metrics.by_user is True and store.schema.user is None:
        raise UserError("config metrics.by_user: the data have no user field; set it to auto or false")


def check(config: DictConfig, store: Store) -> None:
    """Run all checks that need neither training nor the model's memory.

    Raises:
        UserError: a setting is invalid.
    """
    check_settings(config)
    check_interval(config, store)
    check_by_user(config, store)
    mode_of = modes(config, store.schema)
    mode_of(monitored(config.monitor, store.schema))
    build_own_callbacks(config, Path(), mode_of)
    with torch.device("meta"):
        model = build_model(config, store)
    check_optimizer(config, build(config.optimizer, "optimizer"), model)
    if config.sharding:
        processes = local_processes(config.trainer) * config.trainer.num_nodes
        _check_shardable(config, model, processes, "cuda" if torch.cuda.is_available() else "cpu")
    build_module(config, model, id_dropout=build_id_dropout(config, store))


def planned_steps(config: DictConfig, store: Store) -> tuple[int, int]:
    """Training steps before the first validation, and in total without early stopping; if endless, the former."""
    batches, interval = _batches(config, store), config.trainer.val_check_interval
    accumulated = config.trainer.accumulate_grad_batches
    first_batches = interval if isinstance(interval, int) else max(1, int(batches * interval))
    epochs, max_steps = config.trainer.max_epochs, config.trainer.max_steps
    total = -(-batches // accumulated) * epochs if epochs is not None and epochs >= 0 else math.inf
    total = min(total, max_steps if max_steps is not None and max_steps >= 0 else math.inf)
    first = max(1, first_batches // accumulated)
    return first, int(total) if total < math.inf else first


def _batches(config: DictConfig, store: Store) -> int:
    """Training batches per epoch and process."""
    processes, limit = local_processes(config.trainer) * config.trainer.num_nodes, config.trainer.limit_train_batches
    batches = -(-(len(store.split("train")) // processes) // config.loader.batch_size)
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def check_interval(config: DictConfig, store: Store) -> None:
    """Raise UserError if an epoch has no batches, or fewer than the validation interval."""
    batches, interval = _batches(config, store), config.trainer.val_check_interval
    if batches < 1 or (isinstance(interval, int) and interval > batches):
        raise UserError(
            f"config trainer: an epoch has {batches} batches, so val_check_interval={interval} is never reached; "
            "set a fraction such as 0.25, or lower loader.batch_size"
        )


def check_optimizer(config: DictConfig, make: Callable[[Model], Optimizer], model: Model) -> None:
    """Build and discard an optimiser, so that invalid settings fail before anything is written."""
    if isinstance(model, Baseline):
        check_baseline(config, model)
        return
    try:
        optimizer = make(model)
        if config.sharding:
            split_for_sharding(optimizer)
    except (TypeError, ValueError) as error:
        raise UserError(f"config optimizer: {error}") from None
    make_scheduler = build_scheduler(config)
    if make_scheduler is not None:
        try:
            check_scheduler(make_scheduler, optimizer)
        except (TypeError, ValueError) as error:
            raise UserError(f"config scheduler: {error}") from None


def check_measurable(store: Store) -> None:
    """Raise UserError if a task cannot be learnt, or if no task has the validation AUC that selects models."""
    targets, binary = Targets(store.schema), [t for t in store.schema.tasks if not t.is_regression]
    counts = torch.zeros(len(store.schema.tasks), 2)
    validation = store.split("validation")
    for rows in torch.arange(len(validation)).split(1 << 17):
        labels, mask = targets.labels(validation.labels_of(rows))
        by_label = torch.stack([((1 - labels) * mask).sum(0), (labels * mask).sum(0)], 1)
        counts += by_label[: len(counts)]  # joint events come after the tasks
    for task in binary:
        if not 0 < task.rate < 1:
            problem = f"{len(store.split('train'))} training rows have no {'negatives' if task.rate else 'positives'}"
            raise UserError(f"the {problem} of task {task.name}, so it cannot be learnt")
    is_binary = torch.tensor([not task.is_regression for task in store.schema.tasks])
    if binary and not (counts[is_binary].amin(1) > 0).any():
        pairs = zip(store.schema.tasks, counts.tolist(), strict=True)
        described = ", ".join(f"{t.name} {int(p)} of {int(p + n)}" for t, (n, p) in pairs if t in binary)
        raise UserError(
            f"the validation split has no task with positives and negatives ({described}), so no checkpoint can be "
            "selected; use more data, or make data.validation larger"
        )
