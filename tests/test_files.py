"""Atomic writes: whole files under their name, whoever else writes the same one, fails or dies."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dlen.files import locked, replacing_file, write_text

WRITES = 100
BRAKE = 600  # not conftest's: each process would import that


def write_often(path: Path, letter: str) -> None:
    """Write a file again and again, each time in two steps, and fail in every third."""
    for i in range(WRITES):
        try:
            with replacing_file(path) as temporary, temporary.open("w") as file:
                file.write(letter * 500)
                file.flush()
                assert i % 3, "failed"
                file.write(letter * 500)
        except AssertionError:
            continue
        assert path.read_text() in {other * 1000 for other in "abcd"}


def test_processes_write_one_file(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_often, args=(tmp_path / "file", letter)) for letter in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(BRAKE)
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_threads_write_one_file(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda letter: write_often(tmp_path / "file", letter), "abcd"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks, as some of clusters are."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("no_locks")
def test_threads_write_one_file_without_locks(tmp_path: Path) -> None:
    test_threads_write_one_file(tmp_path)


@pytest.mark.usefixtures("no_locks")
def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(tmp_path / "lock", "testing"):
        assert "has no locks" in capsys.readouterr().err


def test_a_child_keeps_a_lock(tmp_path: Path) -> None:
    """A comparison that is killed leaves trainings, and the next one must wait for them."""
    with locked(tmp_path / "lock", "testing") as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with pytest.raises(BlockingIOError), locked(tmp_path / "lock", "testing", wait=False):
        pass
    child.communicate(b"\n", timeout=BRAKE)
    with locked(tmp_path / "lock", "testing", wait=False):
        pass


def test_a_killed_writer_is_in_nobodys_way(tmp_path: Path) -> None:
    code = "import os, sys, pathlib; from dlen.files import replacing_file as r\n"
    code += "with r(pathlib.Path(sys.argv[1])) as t: t.write_text('half' * 9); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], timeout=BRAKE, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".file.writing"]
    write_text(tmp_path / "file", "whole")
    assert (tmp_path / "file").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("plant", ["link", "hard link", "pipe"])
def test_what_has_the_temporary_name_is_not_written_to(plant: str, tmp_path: Path) -> None:
    mine, temporary = tmp_path / "mine", tmp_path / ".file.writing"
    mine.write_text("mine")
    if plant == "link":
        temporary.symlink_to(mine)
    elif plant == "hard link":
        temporary.hardlink_to(mine)
    else:
        os.mkfifo(temporary)
    write_text(tmp_path / "file", "new")
    assert ((tmp_path / "file").read_text(), mine.read_text()) == ("new", "mine")
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "file"}


def test_a_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "file", "")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
