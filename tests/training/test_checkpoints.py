"""Checkpoint files are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dlen.training.checkpoints import CheckpointFiles


def test_a_failed_write_leaves_the_file_before(tmp_path: Path) -> None:
    files, path = CheckpointFiles(), tmp_path / "new" / "last.ckpt"
    content = {"state_dict": {"table": torch.arange(6.0)}, "epoch": 3}
    files.save_checkpoint(content, path)
    with pytest.raises(AttributeError, match="local object"):
        files.save_checkpoint({"state_dict": lambda: None}, path)
    found = files.load_checkpoint(path, weights_only=True)
    assert found["epoch"] == 3
    assert torch.equal(found["state_dict"]["table"], torch.arange(6.0))
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]
    assert files.seconds > 0
