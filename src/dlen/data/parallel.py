"""Works on the pieces of a log one after the other, or on several in processes of their own; results come in order.

Every piece is worked on from the same pickled state, so results do not depend on the number of processes.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dlen.errors import UserError
from dlen.limits import cores
from dlen.progress import Stage

Item = TypeVar("Item")
Result = TypeVar("Result")
Advance = Callable[[float], None]
_TRIES = 3
_AHEAD = 2  # pieces for each process that are worked on or wait
_STOP = -math.inf  # tells workers to stop
_KILLED = (
    "a process that prepares a piece of the log was killed {tries} times, perhaps for lack of memory; "
    "set prepare_workers to a smaller number"
)
_POLL = 0.2  # seconds between updates of the progress bar
_done: Any = None  # in a worker: what all workers have done so far, in units of the progress bar


class _Pickler(pickle.Pickler):
    """Pickles a memory-mapped array as the file that it maps."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.memmap):
            return np.memmap, (value.filename, value.dtype, "r", 0, value.shape)
        return NotImplemented


def save_state(path: Path, state: Any) -> None:
    """Write a state from which pieces are worked on."""
    with path.open("wb") as file:
        _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(state)


class Workers:
    """Processes that work on pieces, for as long as the context lasts. They start when they are first needed.

    If one is killed, the pieces that are not finished are started again.

    Args:
        count: number of processes; 1 works in this one.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._context = multiprocessing.get_context("spawn")  # threads of Polars do not survive a fork
        self._done, self._shown = self._context.Value("d", 0.0), 0.0
        self._pool: ProcessPoolExecutor | None = None
        self._environment = _environment(POLARS_MAX_THREADS=str(max(cores() // count, 1)), OMP_NUM_THREADS="1")

    @classmethod
    def for_pieces(cls, most: int, pieces: int) -> Workers:
        """Up to ``most`` processes, with two pieces for each: one takes about as long to start as half a piece."""
        return cls(min(most, max(pieces // 2, 1)))

    def __enter__(self) -> Workers:
        self._environment.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._environment.__exit__(None, None, None)
        self._done.value = _STOP
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def merged(
        self,
        work: Callable[[Any, Item, Advance], Result],
        state: Any,
        scratch: Path,
        items: Sequence[Item],
        stage: Stage,
        merge: Callable[[Result], bool],
        alone: Callable[[Item, Advance], None],
    ) -> Iterator[None]:
        """Merge the results of a pass over all pieces, in their order. Yields after each piece.

        Args:
            work: works on a piece in a copy of the state, see :meth:`in_order`.
            state: what the work on each piece starts from.
            scratch: folder for a copy of it.
            items: the pieces.
            stage: shows the progress.
            merge: adds a result to the state of this process; False if that is impossible.
            alone: does both in this process, for a single piece, or for one whose work fails or cannot be merged.
        """
        if len(items) == 1:
            alone(items[0], stage.advance)
            yield
            return
        save_state(scratch / "state", state)
        for item, found in zip(items, self.in_order(work, scratch / "state", items, stage), strict=True):
            if found is None or not merge(found):
                alone(item, lambda _: None)
            yield

    def in_order(
        self, work: Callable[[Any, Item, Advance], Result], state: Path, items: Sequence[Item], stage: Stage
    ) -> Iterator[Result | None]:
        """The result of each piece, in the order of the pieces; None if the work raised an exception.

        The caller then repeats that piece itself, after those before it, and so raises what a single process would.

        Args:
            work: a function of a module: works on a piece, from a copy of the state, and reports its progress.
            state: file of the state, written by :func:`save_state`.
            items: the pieces.
            stage: shows the progress of all workers.

        Raises:
            UserError: workers were killed again and again.
        """
        if self.count == 1 or len(items) == 1:
            with _only_new_garbage():
                for item in items:
                    yield _attempt(work, state, item, stage.advance)
            return
        futures: dict[int, Future[Result | None]] = {}
        number = tries = 0
        while number < len(items):
            try:
                if self._pool is None:
                    self._pool = ProcessPoolExecutor(self.count, self._context, _begin, (self._done,))
                # No more, as results that wait for those before them take memory
                for other in range(number, min(number + _AHEAD * self.count, len(items))):
                    if other not in futures or _broke(futures[other]):
                        futures[other] = self._pool.submit(_in_worker, work, state, items[other])
                result = self._awaited(futures[number], stage)
            except BrokenProcessPool:
                self._pool, tries = None, tries + 1
                if tries == _TRIES:
                    raise UserError(_KILLED.format(tries=tries)) from None
                continue
            del futures[number]
            number += 1
            yield result

    def _awaited(self, future: Future[Result | None], stage: Stage) -> Result | None:
        """Wait for a piece, and show the progress meanwhile."""
        while not wait([future], _POLL).done:
            self._show(stage)
        self._show(stage)
        return future.result()

    def _show(self, stage: Stage) -> None:
        done = self._done.value
        stage.advance(done - self._shown)
        self._shown = done


def _broke(future: Future[Any]) -> bool:
    """Whether the process of a piece was killed, or the pool of its process was ended."""
    return future.done() and (future.cancelled() or isinstance(future.exception(), BrokenProcessPool))


def _begin(done: Any) -> None:
    global _done
    _done = done
    gc.freeze()  # see _only_new_garbage
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers


def _in_worker(work: Callable[[Any, Item, Advance], Result], state: Path, item: Item) -> Result | None:
    def advance(amount: float) -> None:
        with _done.get_lock():
            _done.value += amount
            if _done.value == _STOP:
                raise InterruptedError

    return _attempt(work, state, item, advance)


def _attempt(work: Callable[[Any, Item, Advance], Result], state: Path, item: Item, advance: Advance) -> Result | None:
    gc.collect()  # of the piece before: arrays that refer to themselves, as a metric's do, would pile up
    try:
        with state.open("rb") as file:
            return work(pickle.load(file), item, advance)
    except Exception:
        return None


@contextmanager
def _only_new_garbage() -> Iterator[None]:
    """Let the garbage collector pass over what exists: it would look at every object of every import for each piece."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables for processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
