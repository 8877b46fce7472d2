"""Checkpoint files, written straight to disk under a temporary name and renamed when whole."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from dlen.files import replacing_file


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's own first makes the whole file in memory: two copies of every table. This one streams.

    Attributes:
        seconds: spent on writing so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one file; a failure leaves what was there before."""
        started = time.perf_counter()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(Path(path)) as temporary:
            torch.save(checkpoint, temporary)
        self.seconds += time.perf_counter() - started
