"""Checks of plain values: they run before torch and Lightning are imported, which takes seconds."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dlen.checks import is_number, is_whole
from dlen.errors import UserError
from dlen.training.configs import check_groups, check_whole
from dlen.training.run_folder import SPLITS, base_metrics, check_run, one_of_many, resume_from

AUC_KINDS = ("auto", "histogram", "exact")
UNSCALED = ("auto", "32-true", "bf16-mixed")  # precisions with 32-bit weights and no gradient scaling
_NO_DAYS = {"from": None, "to": None, "test": None, "validation": 0.0}
_LEAST = {
    "loader.batch_size": 1,
    "loader.eval_batch_size": 1,
    "trainer.num_nodes": 1,
    "trainer.accumulate_grad_batches": 1,
    "metrics.conflict_every": 0,
    "patience": 0,
    "seed": 0,
}


def check_settings(config: DictConfig) -> None:
    """Check the settings of ``train.py`` that no class checks itself.

    Raises:
        UserError: a setting is invalid.
    """
    check_groups(config)
    check_days(config)
    limits = ("trainer.max_epochs", "trainer.max_steps")  # null or -1 for no limit
    check_whole(config, _LEAST | {key: -1 for key in limits if OmegaConf.select(config, key) is not None})
    _check_trainer(config.trainer)
    if config.trainer.num_nodes > 1 and not (one_of_many() or "NODE_RANK" in os.environ):
        raise UserError(
            f"config trainer.num_nodes: {config.trainer.num_nodes} machines need torchrun or srun, which start a "
            "process on each; set trainer.num_nodes=1 to use this machine alone"
        )
    _check_sharding(config)
    if config.metrics.auc not in AUC_KINDS:
        raise UserError(f"config metrics.auc: {config.metrics.auc!r} is not one of {', '.join(AUC_KINDS)}")
    if config.metrics.by_user not in ("auto", True, False):
        raise UserError(f"config metrics.by_user: {config.metrics.by_user!r} is not auto, true or false")
    for key in ("reset_embeddings", "cuda_graph"):
        value = config.get(key, "auto")  # a run of before has none
        if not isinstance(value, bool) and value != "auto":
            raise UserError(f"config {key}: {value!r} is not auto, true or false")
    if config.ckpt not in (None, "last") and not Path(config.ckpt).exists():
        raise UserError(f"config ckpt: {config.ckpt!r} is neither `last` nor a checkpoint file")
    init_from = config.get("init_from")
    if init_from is not None and not isinstance(init_from, str):
        raise UserError(f"config init_from: {init_from!r} is not a run folder")
    if init_from is not None and config.ckpt not in (None, "last"):
        raise UserError("config init_from: ckpt also sets the initial weights; remove one of them")
    if init_from is not None and config.get("reset_embeddings") is True:
        raise UserError("config reset_embeddings: true loses the vectors of init_from; set auto or false")
    if config.ckpt == "last" and config.run_dir is None:
        raise UserError("config ckpt: `last` needs run_dir=DIR, the run to resume")
    resume_from(config)
    if config.base_run is not None:
        base_metrics(config.base_run)


def check_days(config: DictConfig) -> None:
    """Raise UserError for an invalid label of a day, or share of its rows; runs of earlier versions have none."""
    days = config.get("days", OmegaConf.create(_NO_DAYS))
    if not OmegaConf.is_dict(days):
        raise UserError("config days: must be a group of settings, such as days.from=2026-11-24")
    for key in ("from", "to", "test"):
        value = days[key]
        if value is not None and (not isinstance(value, str | int) or isinstance(value, bool)):
            raise UserError(f"config days.{key}: {value!r} is not the label of a day, such as 2026-11-24")
    share = days.validation
    if not is_number(share) or not 0 <= share < 1:
        raise UserError(f"config days.validation: {share!r} is not a share from 0 and below 1")


def check_evaluation(config: DictConfig) -> None:
    """Check the settings of ``evaluate.py`` without ``off_policy.log``.

    Raises:
        UserError: a setting is invalid, or the folder is not a run.
    """
    if config.split not in SPLITS:
        raise UserError(f"config split: {config.split!r} is not one of {', '.join(SPLITS)}")
    check_run(Path(config.run))


def _check_trainer(trainer: DictConfig) -> None:
    """Check numbers that are used before Lightning sees them, or for which its errors are misleading."""
    for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "val_check_interval"):
        value = trainer.get(key, 1.0)
        if not (is_whole(value) and value >= 1) and not (isinstance(value, float) and 0 < value <= 1):
            raise UserError(f"config trainer.{key}: {value!r} is neither a number of batches nor a fraction of them")


def _check_sharding(config: DictConfig) -> None:
    if config.sharding is None:
        return
    from dlen.nn.sharded import SHARDINGS, check_torchrec  # here: it imports torch

    if config.sharding not in SHARDINGS:
        raise UserError(f"config sharding: {config.sharding!r} is neither null nor one of {', '.join(SHARDINGS)}")
    if config.trainer.accumulate_grad_batches != 1:
        raise UserError("config sharding: a sharded table is updated at each batch; set accumulate_grad_batches=1")
    if config.trainer.precision not in UNSCALED:
        allowed = " or ".join(UNSCALED)
        raise UserError(f"config sharding: a sharded table has 32-bit weights; set trainer.precision={allowed}")
    if config.trainer.get("gradient_clip_val") or config.get("scheduler"):
        key = "scheduler" if config.get("scheduler") else "trainer.gradient_clip_val"
        raise UserError(f"config {key}: TorchRec updates a sharded table in the backward pass; remove it")
    check_torchrec()
