"""Checkpoint files are complete or absent, and damaged or hostile files are refused."""

from __future__ import annotations

import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from dlen.errors import UserError
from dlen.training.checkpoints import CheckpointFiles, read_checkpoint

CONTENT = {"state_dict": {"table": torch.arange(600.0), "bias": torch.ones(3)}, "epoch": 3, "loops": {"fit": [1, 2.5]}}


def test_a_failed_write_leaves_the_file_before(tmp_path: Path) -> None:
    files, path = CheckpointFiles(), tmp_path / "new" / "last.ckpt"
    content = {"state_dict": {"table": torch.arange(6.0)}, "epoch": 3, "pytorch-lightning_version": "2.6.0"}
    files.save_checkpoint(content, path)
    with pytest.raises(AttributeError, match="local object"):
        files.save_checkpoint({"state_dict": lambda: None}, path)
    found = files.load_checkpoint(path, weights_only=True)
    assert found["epoch"] == 3
    assert torch.equal(found["state_dict"]["table"], torch.arange(6.0))
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]
    assert files.seconds > 0


def _same(found: dict[str, Any]) -> bool:
    tensors = found["state_dict"]
    return (
        found["epoch"] == 3
        and found["loops"] == CONTENT["loops"]
        and torch.equal(tensors["table"], torch.arange(600.0))
        and torch.equal(tensors["bias"], torch.ones(3))
    )


def test_a_flipped_bit_is_told_or_harmless(tmp_path: Path) -> None:
    """Anywhere in the file: the checkpoint is refused by name, or its content is unchanged."""
    path = tmp_path / "best.ckpt"
    CheckpointFiles().save_checkpoint(CONTENT, path)
    whole, rng, said = path.read_bytes(), random.Random(0), []
    for _ in range(400):
        place = rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :])
        try:
            assert _same(read_checkpoint(path)), place
        except UserError as error:
            said.append(str(error))
    assert len(said) > 200
    assert all(message.startswith(f"{path}: ") and "\n" not in message for message in said)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    CheckpointFiles().save_checkpoint(CONTENT, path)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged"):
            read_checkpoint(path)


class Hostile:
    """An object whose pickle would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "executed"))


def test_a_hostile_pickle_is_not_executed(tmp_path: Path) -> None:
    target, path = tmp_path / "executed", tmp_path / "best.ckpt"
    torch.save({"state_dict": {}, "extra": Hostile(target)}, path)
    for read in (read_checkpoint, CheckpointFiles().load_checkpoint):
        with pytest.raises(UserError, match="is not a checkpoint of a run"):
            read(path)
    assert not target.exists()
    with zipfile.ZipFile(path) as file:  # a valid torch archive: plain pickle would have executed it
        pickle.loads(file.read(f"{path.stem}/data.pkl"))
    assert target.read_text() == "executed"


def test_a_plain_pickle_is_not_executed_either(tmp_path: Path) -> None:
    target, path = tmp_path / "executed", tmp_path / "best.ckpt"
    path.write_bytes(pickle.dumps(Hostile(target)))
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(path)
    assert not target.exists()
