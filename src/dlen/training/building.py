"""Builds the objects of a training run from config groups: model, module, trainer and callbacks."""

from __future__ import annotations

import inspect
import logging
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from omegaconf import DictConfig, OmegaConf

from dlen.allocator import keep_freed_memory
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.metrics.by_user import BY_USER_ROWS
from dlen.models.model import Model
from dlen.nn.id_dropout import IdDropout
from dlen.schema import Schema
from dlen.training.balancing import Balancer
from dlen.training.callbacks import KeptCheckpoint, Meter, Patience, PlainProgress, TerminalProgress
from dlen.training.configs import build, build_inner, build_part, plain_values
from dlen.training.module import RankingModule
from dlen.training.own_metrics import build_own_metrics
from dlen.training.plain_checks import UNSCALED
from dlen.training.schedulers import MakeSchedule, MakeScheduler, lightning_config
from dlen.training.selection import monitor_mode
from dlen.valid import did_you_mean


def build_model(config: DictConfig, store: Store) -> Model:
    """Build the config's model for the store's schema."""
    model: Model = build(config.model, "model", store.schema)
    return model


def build_balancer(config: DictConfig) -> Balancer:
    """Build the config's task balancer.

    Raises:
        UserError: the setting is invalid, or does not work with the trainer's settings.
    """
    balancer: Balancer = build(config.balancing, "balancing")
    if balancer.on_gradients:
        for key, allowed in (("accumulate_grad_batches", (1,)), ("precision", UNSCALED)):
            if config.trainer[key] not in allowed:
                wanted = " or ".join(str(a) for a in allowed)
                raise UserError(f"config balancing: gradient surgery needs trainer.{key}={wanted}")
    return balancer


def build_id_dropout(config: DictConfig, store: Store) -> IdDropout:
    """Build the config's id dropout from the store's id counts.

    Raises:
        UserError: a setting is invalid.
    """
    try:
        return IdDropout(store.schema, store.counts, **plain_values(config.id_dropout))
    except (TypeError, ValueError) as error:
        raise UserError(f"config id_dropout: {error}") from None


def build_module(config: DictConfig, model: Model, **arguments: Any) -> RankingModule:
    """Build the LightningModule with the config's balancer and metrics; the other arguments are ``RankingModule``'s."""
    balancer = build_balancer(config)
    try:
        own = build_own_metrics(config, model.schema)
        return RankingModule(model, auc=config.metrics.auc, balancer=balancer, own_metrics=own, **arguments)
    except ValueError as error:
        raise UserError(f"config balancing: {error}") from None


def modes(config: DictConfig, schema: Schema) -> Callable[[Any], str]:
    """A function from a monitored metric, one of the user's own too, to the direction in which it improves."""
    return partial(monitor_mode, schema=schema, own=build_own_metrics(config, schema))


def build_trainer(
    config: DictConfig, folder: Path, logger: list[Any], callbacks: list[Callback], meter: Meter
) -> L.Trainer:
    """Build Lightning's trainer from the config group ``trainer``."""
    arguments = build_inner(config.trainer, "trainer")  # a profiler, for example, has a class of its own
    days = config.get("days") or {}
    if days.get("validation") == 0 and (days["from"], days["to"]) != (None, None):
        arguments["limit_val_batches"] = 0  # all rows of the days are trained on
    profiler = arguments.get("profiler")
    if isinstance(profiler, Profiler) and profiler.dirpath is None:
        profiler.dirpath = folder
    elif profiler is None:
        arguments["profiler"] = NoProfiler()
    if arguments["precision"] == "auto":
        arguments["precision"] = choose_precision(str(arguments["accelerator"]))
    bar = any(isinstance(c, ProgressBar) for c in callbacks)
    try:
        return L.Trainer(
            **{"enable_progress_bar": bar} | arguments,
            inference_mode=not config.get("sharding"),  # FBGEMM lacks it; older runs have no such key
            enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
            logger=logger,
            callbacks=callbacks,
            plugins=[meter.checkpoints],
            default_root_dir=folder,
        )
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        reason = str(error).splitlines()[0]
        hint = "; set trainer.accelerator=auto and trainer.devices=1" if "backend found" in reason else ""
        unknown = re.search(r"unexpected keyword argument '(\w+)'", reason)
        if unknown:
            hint = did_you_mean(unknown[1], inspect.signature(L.Trainer).parameters)
        raise UserError(f"config trainer: {reason}{hint}") from None


class NoProfiler(PassThroughProfiler):
    """Measures nothing, as Lightning's default does, which makes a generator for each of 80 actions of a step."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> nullcontext[None]:  # type: ignore[override]
        """Do nothing."""
        return self.nothing


def ranks_within_users(config: DictConfig, rows: int) -> bool:
    """Whether to compute ranking metrics within users, whose memory grows with the rows."""
    setting = config.metrics.by_user
    return rows <= BY_USER_ROWS if setting == "auto" else bool(setting)


def choose_precision(accelerator: str) -> str:
    """Return ``bf16-mixed`` if the device supports it natively, else ``32-true``: a CPU without it is 20 times slower.

    Args:
        accelerator: accelerator of the trainer, such as ``auto`` or ``cpu``.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    capabilities = torch.cpu.get_capabilities()
    native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16-mixed" if native and accelerator in ("auto", "cpu") else "32-true"


def build_callbacks(
    config: DictConfig, folder: Path, meter: Meter, mode_of: Callable[[Any], str], *, checkpoints: bool
) -> list[Callback]:
    """Build the user's callbacks, and those for progress, early stopping and the best and last checkpoint.

    Args:
        config: composed config of ``train.py``.
        folder: run folder.
        meter: meter that progress is read from.
        mode_of: gives the direction of a monitored metric, see :func:`modes`.
        checkpoints: save checkpoints.
    """
    monitoring: dict[str, Any] = {"monitor": config.monitor, "mode": mode_of(config.monitor)}
    user_callbacks = build_own_callbacks(config, folder, mode_of)
    early_stopping = Patience(**monitoring, patience=config.patience, min_delta=0.0, strict=False)
    progress: list[Callback] = []
    if not any(isinstance(callback, ProgressBar) for callback in user_callbacks):
        progress = [TerminalProgress(meter) if sys.stderr.isatty() else PlainProgress(meter)]
    if not checkpoints:
        return [meter, *progress, early_stopping, *(c for c in user_callbacks if not isinstance(c, ModelCheckpoint))]
    shared: dict[str, Any] = {"dirpath": folder / "checkpoints", "enable_version_counter": False}
    best = KeptCheckpoint(**shared, **monitoring, filename="best", save_top_k=1, save_weights_only=True)
    last = KeptCheckpoint(**shared, filename="last", save_top_k=1, save_on_train_epoch_end=False)
    return [meter, *progress, early_stopping, *user_callbacks, best, last]


def build_own_callbacks(config: DictConfig, folder: Path, mode_of: Callable[[Any], str]) -> list[Callback]:
    """Build the callbacks of the group ``callbacks``.

    Checkpoints go below the run's own folder of checkpoints. A ``mode`` of null becomes that of the monitored metric.

    Raises:
        UserError: an entry is not a callback, or has an invalid setting.
    """
    callbacks: list[Callback] = []
    for name, node in (config.get("callbacks") or {}).items():
        if node is None:
            continue
        key = f"callbacks.{name}"
        null_mode = OmegaConf.is_dict(node) and "mode" in node and node["mode"] is None
        callback = build_part(node, key, Callback, replaced={"mode": mode_of(node["monitor"])} if null_mode else {})
        if isinstance(callback, ModelCheckpoint):
            # Lightning deletes checkpoints that fall out of the best K, so they keep to a folder of their own.
            folder_name = node.get("dirpath") or str(name)
            if not re.fullmatch(r"\w[\w.-]*", folder_name):
                raise UserError(f"config {key}.dirpath: {folder_name!r} is not a plain folder name")
            callback.dirpath = str(folder / "checkpoints" / folder_name)
        callbacks.append(callback)
    return callbacks


def build_scheduler(config: DictConfig) -> MakeScheduler | None:
    """Build the group ``scheduler``, a function from an optimiser to a scheduler of torch; None for none.

    Raises:
        UserError: a setting is invalid.
    """
    node = config.get("scheduler")
    if not node:
        return None
    if OmegaConf.is_dict(node) and node.get("interval", "step") not in ("step", "epoch"):
        raise UserError(f"config scheduler.interval: {node.interval!r} is neither step nor epoch")
    make = build_part(node, "scheduler", object, ["interval"])
    if not isinstance(make, partial):
        raise UserError("config scheduler._partial_: must be true, because the optimiser is built later")
    return make


def build_schedule(config: DictConfig, mode: str) -> MakeSchedule | None:
    """Build a function from the optimiser and the trainer to the learning rate schedule; None for none."""
    make = build_scheduler(config)
    if make is None:
        return None
    settings = {"interval": config.scheduler.get("interval", "step"), "monitor": config.monitor, "mode": mode}
    return partial(lightning_config, make, **settings)


def quiet() -> None:
    """Silence warnings of Lightning and torch, and set both torch and the allocator up for speed."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(lightning|torch|torchmetrics)\.")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*Sparse invariant checks.*")
    torch.set_float32_matmul_precision("high")
    keep_freed_memory()
