"""One trial: train with its parameters, report each validation, and end pruned, failed or with metrics."""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import optuna
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import DictConfig
from optuna.trial import TrialState
from torch import Tensor

from dlen.errors import UserError, one_line
from dlen.files import write_json
from dlen.overrides import written
from dlen.sweeping.space import Space
from dlen.sweeping.spec import Spec
from dlen.sweeping.study import fail_started
from dlen.training.fit import Fitted, fit
from dlen.training.loggers import finish_wandb, wandb_run
from dlen.training.module import RankingModule

FOLLOWED = "DLEN_TRIAL"  # passes the overrides to the further processes of a trial
_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # parts of the messages of torch's allocators


class TrialInterruptedError(Exception):
    """The worker was asked to stop."""


class TrialFailedError(Exception):
    """Training cannot continue; the message is the reason."""


class Reporter(Callback):
    """Reports the metric of each validation at its global step, and stops training when the pruner decides to.

    With several processes the first one asks the pruner and the others follow.

    Args:
        trial: trial to report to; None if another process reports, or none does.
        key: key of the reported metric.
        stopping: set when the worker has to stop.
        prunable: whether training can be pruned, the same in all of its processes.

    Attributes:
        pruned: whether the pruner has stopped this trial.
    """

    def __init__(self, trial: optuna.Trial | None, key: str, stopping: threading.Event, *, prunable: bool) -> None:
        self.trial, self.key, self.stopping, self.prunable = trial, key, stopping, prunable
        self.pruned = False
        self._loss: Tensor | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop if the worker was asked to."""
        if self.stopping.is_set():
            raise TrialInterruptedError

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss without reading it, because reading would wait for the device."""
        self._loss = outputs["loss"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the metric."""
        assert isinstance(pl_module, RankingModule)
        if trainer.sanity_checking:
            return
        if self._loss is not None and not math.isfinite(float(self._loss)):
            raise TrialFailedError(f"the training loss is {float(self._loss)} at step {trainer.global_step}")
        figures = {f"val/{key}": value for key, value in pl_module.figures["val"].values.items()}
        if not self.prunable or trainer.state.fn is not TrainerFn.FITTING:  # a fit in one go is already over
            return
        give_up = False
        if self.trial is not None and self.key in figures:
            self.trial.report(figures[self.key], trainer.global_step)
            give_up = self.trial.should_prune()
        if trainer.strategy.broadcast(give_up):
            self.pruned = trainer.should_stop = True


def run_trial(
    study: optuna.Study,
    trial: optuna.Trial,
    compose: Callable[[list[str]], DictConfig],
    space: Space,
    spec: Spec,
    stopping: threading.Event,
) -> bool:
    """Train a trial on all of its seeds and report its outcome to the study.

    A failed trial records its reason and does not affect the next one. An interrupted trial is requeued.

    Args:
        trial: a started trial.
        compose: makes a config of ``train.py`` from the trial's overrides.
        stopping: set when the worker has to stop.

    Returns:
        Whether the trial ended normally.
    """
    try:
        overrides = space.overrides(space.suggest(trial))
        trial.set_user_attr("overrides", overrides)
        state, values = _train(trial, compose, overrides, spec, stopping)
    except TrialInterruptedError:
        fail_started(study, trial, "interrupted", None)
        _mark_wandb("interrupted")
        return False
    except Exception as error:
        reason = _reason(error)
        print(f"trial {trial.number} failed: {reason}", file=sys.stderr)
        if not isinstance(error, UserError | TrialFailedError):
            traceback.print_exc()
        fail_started(study, trial, reason, 0)
        _mark_wandb("failed", reason)
        return False
    finally:
        gc.collect()  # Lightning's objects form reference cycles that hold the model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    try:
        study.tell(trial, values, state)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):  # another coordinator considered it dead
        print(f"trial {trial.number} was ended by another coordinator", file=sys.stderr)
    _mark_wandb(state.name.lower())
    return True


def _train(
    trial: optuna.Trial,
    compose: Callable[[list[str]], DictConfig],
    overrides: list[str],
    spec: Spec,
    stopping: threading.Event,
) -> tuple[TrialState, list[float] | None]:
    started, results, steps = time.monotonic(), [], 0
    keys = list(spec.objectives)
    single = len(keys) == 1
    for seed in range(spec.seeds):
        folder = Path(spec.folder) / "trials" / f"{trial.number:04d}"
        folder = folder if spec.seeds == 1 else folder / f"seed{seed}"
        config_overrides = [*overrides, f"seed={seed}", f"run_dir={written(str(folder), quote=True)}"]
        config = compose(config_overrides)
        reporter = Reporter(trial, keys[0], stopping, prunable=spec.prunable(seed))
        os.environ[FOLLOWED] = json.dumps(config_overrides)
        with ExitStack() as held:
            fitted = fit(config, held, lambda folder, reporter=reporter: [reporter], checkpoints=False)  # type: ignore[misc]
        steps += fitted.trainer.global_step
        figures = fitted.metrics | fitted.selection.best
        pruned = reporter.pruned
        missing = [key for key in keys if key not in figures]
        if missing:
            raise TrialFailedError(f"the training reported no {missing[0]}")
        results.append(figures)
        if single and spec.pruner[0] == "wilcoxon":
            trial.report(figures[keys[0]], seed)
            pruned = seed + 1 < spec.seeds and trial.should_prune()
        _keep(trial, fitted, results, steps, time.monotonic() - started, "pruned" if pruned else "complete")
        if pruned:
            return TrialState.PRUNED, None
        if seed + 1 < spec.seeds:
            _mark_wandb("complete")  # else the next seed would continue this seed's W&B run
    values = [sum(f[key] for f in results) / len(results) for key in keys]
    for key, value in zip(keys, values, strict=True):
        if not math.isfinite(value):
            raise TrialFailedError(f"{key} is {value}")
    return TrialState.COMPLETE, values


def follow(compose: Callable[[list[str]], DictConfig], spec: Spec) -> None:
    """Entry point of a trial's further processes: train along with the first one, which reports to the study.

    Args:
        compose: makes a config of ``train.py`` from the trial's overrides.
    """
    reporter = Reporter(None, next(iter(spec.objectives)), threading.Event(), prunable=spec.prunable(0))
    with ExitStack() as held:
        fit(compose(json.loads(os.environ[FOLLOWED])), held, lambda folder: [reporter], checkpoints=False)


def _keep(
    trial: optuna.Trial, fitted: Fitted, results: list[dict[str, Any]], steps: int, seconds: float, state: str
) -> None:
    """Write the run's ``metrics.json`` and the study's record of all seeds so far."""
    metrics = {**results[-1], "trial": trial.number, "state": state}
    write_json(fitted.folder / "metrics.json", metrics)
    fitted.dashboard.summarise(metrics)
    names = [*fitted.module.targets.names, "mean"]
    auc = {name: [figures.get(f"val/auc/{name}") for figures in results] for name in names}
    rates = [figures.get("fit/samples_per_second", 0.0) for figures in results]
    trial.set_user_attr("auc", auc)
    trial.set_user_attr("steps", steps)
    trial.set_user_attr("seconds", round(seconds, 2))
    trial.set_user_attr("samples_per_second", round(sum(rates) / len(rates), 1))


def _reason(error: Exception) -> str:
    """The error on one line."""
    text = one_line(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(m in text.lower() for m in _MEMORY):
        return f"out of memory: {text[:200]}"
    if isinstance(error, UserError | TrialFailedError):
        return text
    return f"{type(error).__name__}: {text[:200]}"


def _mark_wandb(state: str, reason: str | None = None) -> None:
    """Finish the trial's W&B run, if there is one, with its state as a tag."""
    run = wandb_run()
    if run is None:
        return
    run.tags = (*(run.tags or ()), state)
    run.summary["state"] = state
    if reason:
        run.summary["reason"] = reason
    finish_wandb(0 if state in ("complete", "pruned") else 1)
