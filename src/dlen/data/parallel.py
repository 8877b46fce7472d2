"""Works on the pieces of a log one after the other, or on several in processes of their own; results come in order.

Every piece is worked on from the same pickled state, so results depend neither on the number of processes nor on where
they run: see :class:`LocalPool`, and :mod:`dlen.data.clusters` for other machines.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dlen.errors import UserError
from dlen.limits import cores
from dlen.progress import Stage

Item = TypeVar("Item")
Result = TypeVar("Result")
Advance = Callable[[float], None]
Work = Callable[[Any, Any, Advance], Any]
_TRIES = 3
_AHEAD = 2  # pieces for each process that are worked on or wait
_STOP = -math.inf  # tells workers to stop
_KILLED = (
    "a process that prepares a piece of the log was killed {tries} times, perhaps for lack of memory; "
    "set prepare_workers to a smaller number{reason}"
)
_LONGEST_REASON = 500  # characters
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


@dataclass(frozen=True, slots=True)
class Failed:
    """Takes the place of a result if the work raised an exception.

    Attributes:
        reason: the exception.
    """

    reason: str


class KilledError(BrokenProcessPool):
    """The process of a piece was killed, as a cluster tells it."""


class Pool(ABC):
    """Where the work on pieces runs, several at a time. A process of it may end; the pool goes on with others."""

    @property
    @abstractmethod
    def done(self) -> float:
        """What has been done of the pieces so far, in units of the progress bar."""

    @abstractmethod
    def size(self, pieces: int) -> int:
        """How many of these pieces are worked on at a time; 0 if none is given to the pool."""

    @abstractmethod
    def submit(self, work: Work, state: Path, item: Any) -> Future[Any]:
        """Start working on a piece, see :meth:`Workers.in_order`. A result is that of ``work``, or :class:`Failed`.

        The future raises ``BrokenProcessPool`` if the process was killed, and :class:`UserError` if the pool cannot
        work at all.
        """

    @abstractmethod
    def renew(self) -> None:
        """Go on after a process was killed."""

    @abstractmethod
    def close(self) -> None:
        """End all processes and forget what they have not finished."""


class LocalPool(Pool):
    """Processes of this machine, which start when they are first needed.

    Args:
        workers: most processes. They get two pieces each: one takes about as long to start as half a piece.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._context = multiprocessing.get_context("spawn")  # threads of Polars do not survive a fork
        self._done: Any = None  # shared with the processes, once there are some
        self._executor: ProcessPoolExecutor | None = None
        self._count = workers

    @property
    def done(self) -> float:
        """What all processes have done."""
        return 0.0 if self._done is None else float(self._done.get_obj().value)  # a killed process may hold the lock

    def size(self, pieces: int) -> int:
        """At most the number of processes, and half the number of pieces; 0 in place of a single process."""
        self._count = max(min(self.workers, pieces // 2), 1)
        return self._count if self._count > 1 else 0

    def submit(self, work: Work, state: Path, item: Any) -> Future[Any]:
        """Start the processes, if there are none, and give one of them a piece."""
        if self._done is None:
            self._done = self._context.Value("d", 0.0)
        if self._executor is None:
            self._executor = ProcessPoolExecutor(self._count, self._context, _begin, (self._done,))
        threads = str(max(cores() // self._count, 1))
        with _environment(POLARS_MAX_THREADS=threads, OMP_NUM_THREADS="1"):  # processes start in `submit`
            return self._executor.submit(_in_worker, work, state, item)

    def renew(self) -> None:
        """The others end with the process that was killed, so new ones are started."""
        self._executor = None
        if self._done is not None:  # with a lock of its own: the killed process may have held the one before
            self._done = self._context.Value("d", self.done)

    def close(self) -> None:
        """Stop within a chunk of rows."""
        if self._done is not None:
            lock = self._done.get_lock()
            held = lock.acquire(timeout=1.0)  # a killed process may have it
            self._done.get_obj().value = _STOP
            if held:
                lock.release()
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        self._done = self._executor = None


class Workers:
    """Gives pieces to a pool, for as long as the context lasts. If the process of a piece is killed, it starts again.

    Args:
        pool: where they are worked on.
        pieces: number of pieces of the log.
    """

    def __init__(self, pool: Pool, pieces: int) -> None:
        self.pool, self.count, self._shown = pool, pool.size(pieces), 0.0

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.close()

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
        path = scratch.absolute() / "state"
        save_state(path, state)
        for item, found in zip(items, self.in_order(work, path, items, stage), strict=True):
            if isinstance(found, Failed):
                alone(item, lambda _: None)  # raises what a single process would, if the log is the cause
                print(f"a piece of the log was repeated here, as its process failed: {found.reason}", file=sys.stderr)
            elif not merge(found):
                alone(item, lambda _: None)
            yield

    def in_order(
        self, work: Callable[[Any, Item, Advance], Result], state: Path, items: Sequence[Item], stage: Stage
    ) -> Iterator[Result | Failed]:
        """The result of each piece, in the order of the pieces.

        The caller repeats a piece that failed itself, after those before it, and so raises what a single process would.

        Args:
            work: a function of a module: works on a piece, from a copy of the state, and reports its progress.
            state: file of the state, written by :func:`save_state`.
            items: the pieces.
            stage: shows the progress of all workers.

        Raises:
            UserError: workers were killed again and again.
        """
        if self.count == 0 or len(items) == 1:
            with _only_new_garbage():
                for item in items:
                    yield attempt(work, state, item, stage.advance)
            return
        futures: dict[int, Future[Result | Failed]] = {}
        number = tries = 0
        while number < len(items):
            try:
                # No more, as results that wait for those before them take memory
                for other in range(number, min(number + _AHEAD * self.count, len(items))):
                    if other not in futures or _broke(futures[other]):
                        futures[other] = self.pool.submit(work, state, items[other])
                result = self._awaited(futures[number], stage)
            except BrokenProcessPool as error:
                self.pool.renew()
                tries += 1
                if tries == _TRIES:
                    reason = f": {error}" if isinstance(error, KilledError) else ""
                    raise UserError(_KILLED.format(tries=tries, reason=reason)) from None
                continue
            del futures[number]
            number, tries = number + 1, 0
            yield result

    def _awaited(self, future: Future[Result | Failed], stage: Stage) -> Result | Failed:
        """Wait for a piece, and show the progress meanwhile."""
        while not wait([future], _POLL).done:
            self._show(stage)
        self._show(stage)
        return future.result()

    def _show(self, stage: Stage) -> None:
        done = self.pool.done
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
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End however the parent ends: nobody else would, and another attempt may be writing the same shards."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _in_worker(work: Work, state: Path, item: Any) -> Any:
    def advance(amount: float) -> None:
        with _done.get_lock():
            _done.value += amount
            if _done.value == _STOP:
                raise InterruptedError

    return attempt(work, state, item, advance)


def attempt(work: Callable[[Any, Item, Advance], Result], state: Path, item: Item, advance: Advance) -> Result | Failed:
    """Work on a piece from a copy of the state."""
    gc.collect()  # of the piece before: arrays that refer to themselves, as a metric's do, would pile up
    try:
        with state.open("rb") as file:
            return work(pickle.load(file), item, advance)
    except Exception as error:
        return Failed(f"{type(error).__name__}: {error}"[:_LONGEST_REASON])


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
