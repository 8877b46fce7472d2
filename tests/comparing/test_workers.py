"""Training the runs of a comparison: whoever is killed, a folder has one training at a time."""

from __future__ import annotations

import queue
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlen.comparing.workers import _Pool
from dlen.errors import UserError
from dlen.training.run_folder import only_training


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> _Pool:
    monkeypatch.setattr("dlen.comparing.workers.conf_of_this_command", lambda: "conf")
    environments: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    environments.put({})
    return _Pool(environments, {})


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A planned run that has not begun."""
    return SimpleNamespace(folder=tmp_path / "runs" / "abc", done=False, overrides=[], model="MMoE", seed=0)


def test_a_training_keeps_the_lock_of_its_run(pool: _Pool, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on if the comparison is killed, and the next comparison waits for it."""
    inherited: list[Path] = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, _: Any, pass_fds: Any, **settings: Any) -> None:
            inherited.extend(Path(f"/proc/self/fd/{fd}").readlink() for fd in pass_fds)
            run.folder.mkdir()
            super().__init__([sys.executable, "-c", ""], pass_fds=pass_fds, **settings)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    pool.train(run)
    assert inherited == [run.folder.with_name(".abc.lock")]


def test_a_training_that_was_being_started_is_ended_too(pool: _Pool, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, _: Any, **settings: Any) -> None:
            super().__init__([sys.executable, "-c", "import threading; threading.Event().wait()"], **settings)
            pool.stop()  # before the pool knows of it

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    pool.train(run)
    assert not pool.processes


def test_the_folder_of_a_training_that_was_started_by_hand_stays(pool: _Pool, run: Any) -> None:
    with only_training(run.folder):
        (run.folder / "config.yaml").write_text("")
        with pytest.raises(UserError, match="config run_dir: another process is training in"):
            pool.train(run)
    assert (run.folder / "config.yaml").exists()
