"""Checks of settings against each other and the disk: they run before torch and Lightning, which take seconds."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig

from dlen.errors import UserError
from dlen.training.run_folder import base_metrics, one_of_many, resume_from
from dlen.training.settings import TrainSettings
from dlen.valid import check_group

UNSCALED = ("auto", "32-true", "bf16-mixed")  # precisions with 32-bit weights and no gradient scaling


def check_settings(config: DictConfig) -> None:
    """Check the settings of a training. A run of an earlier version may lack some of them.

    Raises:
        UserError: a setting is invalid.
    """
    check_group(config, TrainSettings, partial=True)
    if config.trainer.num_nodes > 1 and not (one_of_many() or "NODE_RANK" in os.environ):
        raise UserError(
            f"config trainer.num_nodes: {config.trainer.num_nodes} machines need torchrun or srun, which start a "
            "process on each; set trainer.num_nodes=1 to use this machine alone"
        )
    _check_sharding(config)
    _check_start(config)
    resume_from(config)
    if config.base_run is not None:
        base_metrics(config.base_run)


def _check_start(config: DictConfig) -> None:
    """Check what the weights start from."""
    if config.ckpt not in (None, "last") and not Path(config.ckpt).exists():
        raise UserError(f"config ckpt: {config.ckpt!r} is neither `last` nor a checkpoint file")
    if config.ckpt == "last" and config.run_dir is None:
        raise UserError("config ckpt: `last` needs run_dir=DIR, the run to resume")
    init_from = config.get("init_from")
    if init_from is not None and config.ckpt not in (None, "last"):
        raise UserError("config init_from: ckpt also sets the initial weights; remove one of them")
    if init_from is not None and config.get("reset_embeddings") is True:
        raise UserError("config reset_embeddings: true loses the vectors of init_from; set auto or false")


def _check_sharding(config: DictConfig) -> None:
    if config.sharding is None:
        return
    from dlen.nn.sharded import check_torchrec  # here: it imports torch

    if config.trainer.accumulate_grad_batches != 1:
        raise UserError("config sharding: a sharded table is updated at each batch; set accumulate_grad_batches=1")
    if config.trainer.precision not in UNSCALED:
        allowed = " or ".join(UNSCALED)
        raise UserError(f"config sharding: a sharded table has 32-bit weights; set trainer.precision={allowed}")
    if config.trainer.get("gradient_clip_val") or config.get("scheduler"):
        key = "scheduler" if config.get("scheduler") else "trainer.gradient_clip_val"
        raise UserError(f"config {key}: TorchRec updates a sharded table in the backward pass; remove it")
    check_torchrec()
