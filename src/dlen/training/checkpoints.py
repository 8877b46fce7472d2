"""Checkpoint files: streamed to a temporary name, renamed when complete, and verified when read."""

from __future__ import annotations

import errno
import pickle
import re
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import nn

from dlen.errors import UserError, one_line
from dlen.files import check_regular, replacing_file

_KINDS: dict[str, type] = {"epoch": int, "global_step": int, "loops": dict, "callbacks": dict, "optimizer_states": list}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU. Nothing in it is executed.

    Raises:
        UserError: the file is damaged, contains anything but tensors and plain values, or unpacks to more than its own
            size.
    """
    size = check_regular(path)
    try:
        with zipfile.ZipFile(path) as file:  # torch itself ignores wrong checksums
            entries = file.infolist()
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or sum(entry.file_size for entry in entries) > size:
                raise UserError(f"{path}: is not a checkpoint of a run: its unpacked content is larger than the file")
            broken = file.testzip()
        if broken is not None:
            raise UserError(
                f"{path}: damaged (the checksum of {broken} is wrong); use another checkpoint, or train again"
            )
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: is not a checkpoint of a run: it contains more than tensors and plain values; none of it was "
            "executed"
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"{path}: damaged ({str(error).splitlines()[0]}); use another checkpoint, or train again"
        ) from None
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(_is_weight(k, v) for k, v in state.items()):
        raise UserError(f"{path}: is not a checkpoint of a run: its state_dict is not a mapping of names to tensors")
    return content


def model_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of the model in a checkpoint, by their names in the model; see :func:`read_checkpoint`."""
    state = read_checkpoint(path)["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the model of a checkpoint; UserError if it does not fit. Torch lists every tensor, so this cuts its text."""
    try:
        model.load_state_dict(model_weights(path))
    except RuntimeError as error:
        reason = one_line(error)[:200]
        raise UserError(f"{path}: does not fit the model in config.yaml ({reason})") from None


def _is_weight(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided


class CheckpointFiles(TorchCheckpointIO):
    """Streams checkpoints to disk. Lightning's default builds the file in memory, with two copies of every table.

    Attributes:
        seconds: total seconds spent on writing.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one file; on failure the previous file is kept."""
        started = time.perf_counter()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(Path(path)) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # torch's writer reports only that a write failed
                if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
                    raise
                raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error
        self.seconds += time.perf_counter() - started

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Read one file with :func:`read_checkpoint`, and check the entries that Lightning reads first."""
        content = read_checkpoint(Path(path))
        wrong = [key for key, kind in _KINDS.items() if key in content and not isinstance(content[key], kind)]
        if wrong or not re.fullmatch(r"2\.\d+\.[\w.+]+", str(content.get("pytorch-lightning_version"))):
            problem = f"wrong type of {', '.join(wrong)}" if wrong else "it was not written by Lightning 2"
            raise UserError(f"{path}: is not a checkpoint of a run: {problem}")
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete one file. In a resumed run the path comes from the checkpoint, so it is not trusted."""
        file = Path(path)
        if ".." not in file.parts and file.is_file():
            file.unlink()


@contextmanager
def restoring(trainer: L.Trainer, checkpoint: str) -> Iterator[None]:
    """Turn Lightning's various errors about a checkpoint that does not fit into one line."""
    try:
        yield
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        if not trainer._checkpoint_connector._loaded_checkpoint:  # already restored, or no checkpoint
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{checkpoint} does not fit the model or balancing in config.yaml ({reason})") from None
