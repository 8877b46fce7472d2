"""Loggers that need a decision before they are made."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch.loggers import WandbLogger


def wandb_logger(save_dir: str, **settings: Any) -> WandbLogger:
    """Weights & Biases: online where ``WANDB_API_KEY`` is set, offline everywhere else, never asking for a key.

    Args:
        save_dir: the run folder; the files go below it.
        settings: arguments of Lightning's ``WandbLogger``.
    """
    offline = not os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") == "offline"
    return WandbLogger(save_dir=save_dir, offline=offline, **settings)
