"""``prepare.py dry_run=true``: what it prints, and that it leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Command


def test_a_dry_run_prints_and_writes_nothing(refused: Command, tmp_path: Path) -> None:
    ran = refused("prepare.py", "data=feed", "data.rows=2000", "data.users=50", "dry_run=true")
    assert ran.returncode == 0, ran.stderr
    first, read, store, preparing, ids, table = ran.stdout.splitlines()
    assert first.startswith("feed: a dry run: train 1,")
    assert first.endswith("rows; 2,491 ids in 8 fields")
    assert read == "  read: all rows"
    assert "are free" in store
    assert "of memory" in preparing
    assert "user 51" in ids
    assert table.endswith("model.embedding.dim=16: 239 kB, 717 kB with Adam's state, 249 kB with Adagrad's")
    assert ran.stderr == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["dry_run=maybe"], "config dry_run: 'maybe' is not true or false"),
        (["dry_run=true", "data=aliccp"], "no such file"),
        (["dry_run=true", "data=table"], "config data.spec: must be set"),
        (["dry_run=true", "data.rows=0"], "config data.rows: 0 is not a whole number from 1"),
    ],
)
def test_bad_input_is_one_line(settings: list[str], said: str, refused: Command, tmp_path: Path) -> None:
    ran = refused("prepare.py", *settings)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
