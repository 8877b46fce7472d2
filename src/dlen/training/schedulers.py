"""Learning rate schedules over all steps of a training, relative to each parameter group's own learning rate."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning as L
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from dlen.checks import is_finite, is_whole
from dlen.errors import UserError

MakeScheduler = Callable[..., LRScheduler]
MakeSchedule = Callable[[Optimizer, L.Trainer], dict[str, Any]]
_NEVER = 1 << 62  # a frequency at which Lightning leaves a schedule alone
_TOTAL = ("total_steps", "T_max")  # arguments of schedules that are filled with the steps of the training


def warmup(optimizer: Optimizer, total_steps: int, warmup: float = 0.05) -> LambdaLR:
    """Raise the learning rates linearly, then keep them.

    Args:
        optimizer: optimiser whose groups are scheduled.
        total_steps: steps of the training.
        warmup: share of the steps as a float, or a number of steps as an int.

    Raises:
        ValueError: a setting is out of range.
    """
    first = _steps("warmup", warmup, total_steps)
    return LambdaLR(optimizer, lambda step: _rise(step, first))


def cosine(optimizer: Optimizer, total_steps: int, warmup: float = 0.05, final: float = 0.0) -> LambdaLR:
    """Warm up, then lower the learning rates along a cosine (Loshchilov and Hutter 2017, without restarts).

    Arguments and errors as for :func:`warmup`, and:

    Args:
        final: learning rates at the last step, as a share of the initial ones.
    """
    first = _steps("warmup", warmup, total_steps)
    _share("final", final)
    return LambdaLR(
        optimizer,
        lambda step: _rise(step, first) if step < first else _fall(step - first, total_steps - first, 1.0, final),
    )


def one_cycle(
    optimizer: Optimizer, total_steps: int, warmup: float = 0.3, start: float = 0.04, final: float = 4e-6
) -> LambdaLR:
    """One cycle along two half cosines (Smith and Topin 2018), with the optimiser's learning rates as the highest.

    Arguments and errors as for :func:`warmup`, which ends at the highest learning rates, and:

    Args:
        start: learning rates at the first step, as a share of the highest.
        final: learning rates at the last step, as a share of the highest.
    """
    first = _steps("warmup", warmup, total_steps)
    _share("start", start)
    _share("final", final)
    return LambdaLR(
        optimizer,
        lambda step: (
            _fall(step, first, start, 1.0) if step < first else _fall(step - first, total_steps - first, 1.0, final)
        ),
    )


def _rise(step: int, first: int) -> float:
    return min(1.0, (step + 1) / (first + 1))


def _fall(step: int, steps: int, high: float, low: float) -> float:
    """Half a cosine from ``high`` to ``low``, also upwards."""
    done = min(1.0, step / max(1, steps))
    return low + (high - low) * (1 + math.cos(math.pi * done)) / 2


def _steps(name: str, value: Any, total_steps: int) -> int:
    if is_whole(value):
        if value < 0:
            raise ValueError(f"{name} is {value!r}, and has to be a share from 0 to 1 or a number of steps")
        return int(value)
    _share(name, value)
    return int(value * total_steps)


def _share(name: str, value: Any) -> None:
    if not (is_finite(value) and 0 <= value <= 1):
        raise ValueError(f"{name} is {value!r}, and has to be a share from 0 to 1")


def lightning_config(
    make: MakeScheduler, optimizer: Optimizer, trainer: L.Trainer, interval: str, monitor: str, mode: str
) -> dict[str, Any]:
    """Build a schedule as ``configure_optimizers`` returns it.

    An argument ``total_steps`` or ``T_max`` that is not given becomes the steps of the training, and ``mode`` the
    direction of the monitored metric.

    Args:
        make: makes any scheduler of torch from an optimiser.
        optimizer: optimiser whose groups are scheduled.
        trainer: trainer of the run.
        interval: ``step`` or ``epoch``. A plateau is looked for after each validation.
        monitor: metric that :class:`torch.optim.lr_scheduler.ReduceLROnPlateau` reads.
        mode: ``max`` or ``min``.
    """
    total = _steps_of_training(trainer)
    scheduler = make(optimizer, **_missing(make, dict.fromkeys(_TOTAL, total) | {"mode": mode}))
    if isinstance(scheduler, ReduceLROnPlateau):
        return {"scheduler": scheduler, "interval": "epoch", "frequency": _NEVER, "monitor": monitor, "strict": False}
    return {"scheduler": scheduler, "interval": interval}


def _steps_of_training(trainer: L.Trainer) -> int:
    """Steps of a training without early stopping.

    Raises:
        UserError: the training has no end.
    """
    epochs, most = trainer.max_epochs, trainer.max_steps
    if (epochs is None or epochs < 0) and most < 0:
        raise UserError(
            "config scheduler: needs the length of the training; set trainer.max_epochs or trainer.max_steps"
        )
    if epochs is None or epochs < 0:
        return most
    # Lightning's estimated_stepping_batches sets up the loaders too early to restore their position in a resumed run.
    loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
    batches = len(loader) if loader.limit is None else min(len(loader), loader.limit)
    steps = -(-batches // trainer.accumulate_grad_batches) * epochs
    return steps if most < 0 else min(steps, most)


def look_for_plateaus(trainer: L.Trainer, figures: Mapping[str, float]) -> None:
    """Step the schedules that read a validation metric.

    Lightning would do so after it has saved the checkpoints of a validation, so that a resumed run would miss a step.

    Args:
        trainer: trainer of the run.
        figures: metrics of the validation by key.
    """
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, ReduceLROnPlateau) and config.monitor and config.monitor in figures:
            config.scheduler.step(figures[config.monitor])


def check_scheduler(make: MakeScheduler, optimizer: Optimizer) -> None:
    """Build and discard a schedule; ValueError or TypeError if a setting is invalid."""
    make(optimizer, **_missing(make, dict.fromkeys(_TOTAL, 100) | {"mode": "max"}))


def _missing(make: MakeScheduler, values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that are parameters of a factory and not given yet."""
    given = make.keywords if isinstance(make, partial) else {}
    known = inspect.signature(make.func if isinstance(make, partial) else make).parameters
    return {key: value for key, value in values.items() if key in known and given.get(key) is None}
