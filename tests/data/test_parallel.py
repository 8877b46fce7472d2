"""Work on pieces: what a piece leaves behind does not pile up."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import psutil
import pytest

from dlen.data import parallel
from dlen.data.parallel import LocalPool, Workers, save_state
from dlen.progress import Stage

alive: weakref.WeakSet[Any] = weakref.WeakSet()


class Cycle:
    """Refers to itself, so only the garbage collector frees it."""

    def __init__(self) -> None:
        self.itself = self
        alive.add(self)


def work(state: None, item: int, advance: Any) -> int:
    Cycle()
    return len(alive)


@pytest.mark.parametrize("processes", [1, 2])
def test_what_refers_to_itself_is_freed_before_the_next_piece(processes: int, tmp_path: Path) -> None:
    save_state(tmp_path / "state", None)
    gc.disable()
    try:
        with Workers(LocalPool(processes), 9) as workers, Stage("pieces", 9, "pieces") as stage:
            assert set(workers.in_order(work, tmp_path / "state", range(9), stage)) == {1}
    finally:
        gc.enable()


def killed_with_the_lock(folder: Path, item: int, advance: Any) -> int:
    if not (folder / "killed").exists():
        (folder / "killed").touch()
        parallel._done.get_lock().acquire()  # as `advance` does for some microseconds
        os.kill(os.getpid(), signal.SIGKILL)
    advance(1.0)
    return item


def test_a_process_that_is_killed_as_it_tells_its_progress_is_made_up_for(tmp_path: Path) -> None:
    save_state(tmp_path / "state", tmp_path)
    with Workers(LocalPool(2), 5) as workers, Stage("pieces", 5, "pieces") as stage:
        found = list(workers.in_order(killed_with_the_lock, tmp_path / "state", range(5), stage))
    assert found == [0, 1, 2, 3, 4]


FOREVER = """
import os, sys, threading
from pathlib import Path
from dlen.data.parallel import LocalPool, Workers, save_state
from dlen.progress import Stage

def work(state, item, advance):
    print(os.getpid(), flush=True)
    threading.Event().wait()

if __name__ == "__main__":
    save_state(Path("state"), None)
    with Workers(LocalPool(2), 4) as workers, Stage("pieces", 4, "pieces") as stage:
        list(workers.in_order(work, Path("state"), range(4), stage))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_its_processes_end_with_it(how: signal.Signals, tmp_path: Path) -> None:
    """Else they would write the shards that the next preparation writes."""
    (tmp_path / "forever.py").write_text(FOREVER)
    command = [sys.executable, "forever.py"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        working = [psutil.Process(int(process.stdout.readline())) for _ in range(2)]
        process.send_signal(how)
        _, alive = psutil.wait_procs(working, timeout=600)  # a brake, not conftest's: each process would import that
    assert not alive


def passed_over(state: None, item: int, advance: Any) -> int:
    return gc.get_freeze_count()


@pytest.mark.parametrize("processes", [1, 2])
def test_the_garbage_collector_passes_over_what_exists(processes: int, tmp_path: Path) -> None:
    """It would look at every object of every import before each piece."""
    save_state(tmp_path / "state", None)
    with Workers(LocalPool(processes), 4) as workers, Stage("pieces", 4, "pieces") as stage:
        found = list(workers.in_order(passed_over, tmp_path / "state", range(4), stage))
    assert all(isinstance(count, int) and count > 1000 for count in found)
    assert processes > 1 or gc.get_freeze_count() == 0  # until all are done


def test_no_more_processes_than_pieces_need() -> None:
    pool = LocalPool(4)
    assert [pool.size(pieces) for pieces in (1, 3, 4, 100)] == [0, 0, 2, 4]


def remembered(state: str, item: int, advance: Any) -> int:
    (Path(state) / str(item)).touch()
    return item


def test_few_results_wait_for_whoever_takes_them(tmp_path: Path) -> None:
    """They may be large: no more pieces are worked on than two for each process, until one is taken."""
    folder = tmp_path / "done"
    folder.mkdir()
    save_state(tmp_path / "state", str(folder))
    with Workers(LocalPool(2), 20) as workers, Stage("pieces", 20, "pieces") as stage:
        for taken, item in enumerate(workers.in_order(remembered, tmp_path / "state", range(20), stage)):
            assert item == taken
            assert len(list(folder.iterdir())) <= taken + 4
