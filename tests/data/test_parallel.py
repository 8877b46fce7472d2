"""Work on pieces: what a piece leaves behind does not pile up."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

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
