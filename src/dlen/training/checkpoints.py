"""Checkpoint files, written straight to disk under a temporary name, renamed when whole, and read only if undamaged."""

from __future__ import annotations

import errno
import pickle
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from dlen.errors import UserError
from dlen.files import replacing_file


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU. Nothing in it is executed.

    Raises:
        UserError: the file is damaged, or holds other things than tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as file:  # torch itself reads past wrong checksums
            broken = file.testzip()
        if broken is not None:
            raise UserError(
                f"{path}: damaged (the checksum of {broken} is wrong); use another checkpoint, or train again"
            )
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: is no checkpoint of a run: it holds other things than tensors and plain values, none of which "
            "was executed"
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"{path}: damaged ({str(error).splitlines()[0]}); use another checkpoint, or train again"
        ) from None
    return content


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
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # torch's writer says no more than that a write failed
                if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
                    raise
                raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error
        self.seconds += time.perf_counter() - started

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Read one file, as :func:`read_checkpoint` does."""
        return read_checkpoint(Path(path))
