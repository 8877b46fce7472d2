"""Builds the objects of a training run from config groups: model, module, trainer and callbacks."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from dlen.data.store import Store
from dlen.errors import UserError
from dlen.metrics.by_user import BY_USER_ROWS
from dlen.models.model import Model
from dlen.nn.id_dropout import IdDropout
from dlen.training.balancing import Balancer
from dlen.training.callbacks import Meter, Patience, PlainProgress, TerminalProgress
from dlen.training.configs import build
from dlen.training.module import RankingModule

UNSCALED = ("auto", "32-true", "bf16-mixed")  # precisions with 32-bit weights and no gradient scaling


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
    if not OmegaConf.is_dict(config.id_dropout):
        raise UserError("config id_dropout: is a group of settings; set id_dropout.k=0 for none")
    try:
        return IdDropout(store.schema, store.counts, **plain_values(config.id_dropout))
    except (TypeError, ValueError) as error:
        raise UserError(f"config id_dropout: {error}") from None


def build_module(
    config: DictConfig,
    model: Model,
    make_optimizer: Callable[[nn.Module], Optimizer] | None,
    rows: dict[str, int],
    base: dict[str, float] | None,
    by_user: bool,
    sharding: str | None = None,
    id_dropout: IdDropout | None = None,
) -> RankingModule:
    """Build the LightningModule with the config's task balancer."""
    balancer = build_balancer(config)
    try:
        return RankingModule(
            model, make_optimizer, config.metrics.auc, rows, base, by_user, balancer, sharding, id_dropout
        )
    except ValueError as error:
        raise UserError(f"config balancing: {error}") from None


def build_trainer(
    config: DictConfig, folder: Path, logger: list[Any], callbacks: list[Callback], meter: Meter
) -> L.Trainer:
    """Build Lightning's trainer from the config group ``trainer``."""
    arguments = plain_values(config.trainer)
    if arguments.get("gradient_clip_val"):
        raise UserError("config trainer.gradient_clip_val: row-sparse gradients cannot be clipped; lower optimizer.lr")
    if arguments["precision"] == "auto":
        arguments["precision"] = choose_precision(str(arguments["accelerator"]))
    bar = any(isinstance(c, TerminalProgress) for c in callbacks)
    try:
        return L.Trainer(
            **arguments,
            enable_progress_bar=bar,
            inference_mode=not config.get("sharding"),  # FBGEMM lacks it; older runs have no such key
            enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
            logger=logger,
            callbacks=callbacks,
            plugins=[meter.checkpoints],
            default_root_dir=folder,
        )
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"config trainer: {str(error).splitlines()[0]}") from None


def ranks_within_users(config: DictConfig, rows: int) -> bool:
    """Whether to compute ranking metrics within users, whose memory grows with the rows."""
    asked = config.metrics.by_user
    return rows <= BY_USER_ROWS if asked == "auto" else bool(asked)


def choose_precision(accelerator: str) -> str:
    """Return ``bf16-mixed`` if the device supports it natively, else ``32-true``: a CPU without it is 20 times slower.

    Args:
        accelerator: accelerator of the trainer, such as ``auto`` or ``cpu``.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    known = torch.cpu.get_capabilities()
    native = any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16-mixed" if native and accelerator in ("auto", "cpu") else "32-true"


def build_callbacks(config: DictConfig, folder: Path, meter: Meter, mode: str, *, checkpoints: bool) -> list[Callback]:
    """Build the callbacks for progress, early stopping and, with ``checkpoints``, the best and last checkpoint."""
    chosen: dict[str, Any] = {"monitor": config.monitor, "mode": mode}
    stop = Patience(**chosen, patience=config.patience, min_delta=0.0, strict=False)
    progress = TerminalProgress(meter) if sys.stderr.isatty() else PlainProgress(meter)
    if not checkpoints:
        return [meter, progress, stop]
    shared: dict[str, Any] = {"dirpath": folder / "checkpoints", "enable_version_counter": False}
    best = ModelCheckpoint(**shared, **chosen, filename="best", save_top_k=1, save_weights_only=True)
    last = ModelCheckpoint(**shared, filename="last", save_top_k=1, save_on_train_epoch_end=False)
    return [meter, progress, stop, best, last]


def plain_values(config: DictConfig) -> dict[str, Any]:
    """Convert a config to plain values."""
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(k): v for k, v in found.items()}


def quiet() -> None:
    """Silence warnings of Lightning and torch."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(lightning|torch|torchmetrics)\.")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*Sparse invariant checks.*")
    torch.set_float32_matmul_precision("high")
