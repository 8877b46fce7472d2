"""The fingerprint of the code, by which metrics of two versions are told apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dlen.errors import UserError
from dlen.training.configs import PACKAGE, build, code_fingerprint


def test_a_change_of_any_source_file_changes_the_fingerprint(tmp_path: Path) -> None:
    copy = tmp_path / "dlen"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = code_fingerprint()
    assert code_fingerprint(copy) == before
    for name in ("models/dlen.py", "data/store.py", "training/fit.py", "schema.py", "data/sources/feed.py"):
        content = (copy / name).read_text()
        (copy / name).write_text(content + "\n# changed\n")
        assert code_fingerprint(copy) != before, name
        (copy / name).write_text(content)
    assert code_fingerprint(copy) == before


@pytest.mark.parametrize("key", ["model", "data", "optimizer", "balancing"])
def test_a_group_that_names_no_class_is_told(key: str) -> None:
    with pytest.raises(UserError, match=f"config {key}: names no class"):
        build(OmegaConf.create({"a": 1}), key)
