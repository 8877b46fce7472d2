"""Pools of processes on other machines, which prepare the pieces of a log: a Ray cluster, or jobs of Slurm.

All machines need dlen, and the same paths of the raw log and of ``data_dir``, on a file system that they share.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from dlen.cluster_jobs import Jobs, log_end
from dlen.data.parallel import KilledError, Pool, Work, attempt
from dlen.errors import UserError, one_line

_POLL = 0.2  # seconds between looks at the folder of the pieces
_BEAT = 5.0  # seconds between signs of life of the process that gives out pieces, and between looks at the jobs
_ORPHANED = 300.0  # seconds without a sign of life after which a job ends
_EARLY_DEATHS = 3  # of jobs that worked on no piece
_LONGEST_LOG = 600  # characters
_TASKS = ("nodes", "tasks_per_node", "slurm_nodes", "slurm_ntasks", "slurm_ntasks_per_node")  # of a job
_LOST = "lost"  # the error of a piece whose job was started again


def _packed(work: Work, state: Path, item: Any) -> bytes:
    """A piece of work with all that another machine needs to find the same modules and relative paths."""
    return pickle.dumps((str(Path.cwd()), sys.path, pickle.dumps((work, state, item))))


def _worked(packed: bytes) -> tuple[Any, float]:
    """On another machine: the result of a piece of work, and how much was done in units of the progress bar."""
    folder, modules, rest = pickle.loads(packed)
    with suppress(OSError):
        os.chdir(folder)  # of relative paths
    sys.path.extend(path for path in modules if path not in sys.path)
    work, state, item = pickle.loads(rest)
    if not state.exists():
        raise FileNotFoundError(f"{state}: not there; data_dir must be on a file system that all machines share")
    done = 0.0

    def advance(amount: float) -> None:
        nonlocal done
        done += amount

    return attempt(work, state, item, advance), done


class ClusterPool(Pool):
    """A pool whose processes tell what they have done together with the result.

    Args:
        workers: number of pieces that are worked on at a time; ``auto`` leaves it to the pool.
    """

    def __init__(self, workers: int | str = "auto") -> None:
        self.workers, self._done = workers, 0.0

    @property
    def done(self) -> float:
        """What has been done of the pieces that are finished."""
        return self._done

    def renew(self) -> None:
        """Others take the place of a process that was killed."""

    def close(self) -> None:
        """Forget what has been done."""
        self._done = 0.0

    def _resolve(self, future: Future[Any], result: tuple[Any, float]) -> None:
        value, done = result
        self._done += done
        if not future.cancelled():
            future.set_result(value)


class RayPool(ClusterPool):
    """Tasks on a Ray cluster. Needs ``pip install 'dlen[ray]'``.

    Args:
        workers: number of pieces that are worked on at a time; ``auto`` means as many as the cluster has CPUs for.
        address: address of the cluster, such as ``auto`` or ``ray://HOST:10001``. None for that of ``RAY_ADDRESS``, or
            for the one that runs on this machine, or for a new one, which ends with the preparation.
        cpus: CPUs of each task.

    Raises:
        UserError: Ray is not installed, there is no such cluster, or a number is out of range.
    """

    def __init__(self, workers: int | str = "auto", *, address: str | None = None, cpus: float = 1.0) -> None:
        super().__init__(workers)
        if not isinstance(cpus, int | float) or isinstance(cpus, bool) or not cpus > 0:
            raise UserError(f"config cluster.cpus: {cpus!r} is not a number above 0")
        self.address, self.cpus = address, float(cpus)
        self._task: Any = None
        self._running: dict[Future[Any], Any] = {}
        self._owned = False

    def size(self, pieces: int) -> int:
        """As many as there are CPUs for, or ``workers``; at most the number of pieces. 0 for a single piece."""
        if pieces == 1:
            return 0
        ray = self._connected()
        cpus = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
        places = sum(int(number / self.cpus) for number in cpus)
        if places == 0:
            problem = f"config cluster.cpus: no machine of the Ray cluster has {self.cpus:g} CPUs"
            if self.workers == "auto":
                raise UserError(f"{problem}; set fewer, or prepare_workers if machines will join it")
            print(f"{problem} yet; waiting for one to join it", file=sys.stderr)
        return max(min(places if self.workers == "auto" else int(self.workers), pieces), 1)

    def _connected(self) -> Any:
        try:
            import ray
        except ImportError:
            raise UserError("config cluster: Ray is not installed; pip install 'dlen[ray]'") from None
        if not ray.is_initialized():
            try:
                ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:  # a bare one if a node takes 30 s to start
                ray.shutdown()
                raise UserError(f"config cluster.address: {one_line(error)[:_LONGEST_LOG]}") from None
            self._owned = True
        variables = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": str(max(math.floor(self.cpus), 1))}
        remote = ray.remote(num_cpus=self.cpus, max_retries=0, runtime_env={"env_vars": variables})
        self._task = remote(_worked)
        return ray

    def submit(self, work: Work, state: Path, item: Any) -> Future[Any]:
        """Submit a task."""
        reference = self._task.remote(_packed(work, state, item))
        future: Future[Any] = Future()
        self._running[future] = reference
        reference.future().add_done_callback(lambda found: self._ended(future, found))
        return future

    def _ended(self, future: Future[Any], found: Future[tuple[Any, float]]) -> None:
        from ray.exceptions import LocalRayletDiedError, NodeDiedError, ObjectLostError, OutOfMemoryError
        from ray.exceptions import WorkerCrashedError as Crashed

        killed = (LocalRayletDiedError, NodeDiedError, ObjectLostError, OutOfMemoryError, Crashed)
        self._running.pop(future, None)
        error = found.exception()
        if error is None:
            self._resolve(future, found.result())
        elif future.cancelled():
            return
        elif isinstance(error, killed):
            future.set_exception(KilledError(one_line(error)[:_LONGEST_LOG]))
        else:
            future.set_exception(UserError(f"config cluster: {one_line(error)[-_LONGEST_LOG:]}"))

    def close(self) -> None:
        """Cancel what is not finished, and leave the cluster; one of this machine alone ends."""
        super().close()
        if self._task is None:
            return
        import ray

        for future, reference in list(self._running.items()):
            future.cancel()
            with suppress(Exception):  # a task that has ended meanwhile
                ray.cancel(reference, force=True)
        if self._owned:
            ray.shutdown()
        self._task, self._owned = None, False
        self._running.clear()


class _Queue:
    """A folder through which jobs take pieces and return results: every step is the renaming of a complete file.

    Args:
        folder: on a file system that all machines share.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.todo, self.taken, self.done, self.alive = (folder / name for name in ("todo", "taken", "done", "alive"))

    def create(self) -> None:
        """Create the folders."""
        for path in (self.todo, self.taken, self.done):
            path.mkdir(parents=True)
        self.alive.write_text("0")

    def put(self, folder: Path, name: str, content: bytes) -> None:
        """Write a file at once."""
        temporary = self.folder / f".{name}.{os.getpid()}"
        temporary.write_bytes(content)
        temporary.rename(folder / name)

    def take(self, job: str) -> Path | None:
        """Take the next piece for a job; None if there is none."""
        for path in sorted(self.todo.iterdir()):
            target = self.taken / f"{path.name}@{job}"
            with suppress(OSError):  # another job was first
                path.rename(target)
                return target
        return None


class SubmititPool(ClusterPool):
    """Jobs of Slurm, or of another cluster that submitit supports. Needs ``pip install 'dlen[submitit]'``.

    Each job takes one piece after the other, and lasts until all are prepared. The piece of a job that ends before
    goes to others, and another job takes its place.

    Args:
        workers: number of jobs.
        cluster: cluster type of submitit, such as ``slurm``, or ``local`` for jobs on this machine.
        parameters: parameters of submitit's executor, such as ``cpus_per_task`` and ``slurm_partition``;
            ``timeout_min`` is a day if it is not among them. Each job has one task.

    Raises:
        UserError: submitit is not installed or rejects the parameters, or the number of jobs is not set.
    """

    def __init__(
        self, workers: int | str = "auto", *, cluster: str = "slurm", parameters: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(workers)
        if workers == "auto":
            raise UserError("config prepare_workers: auto counts the cores of this machine; set the number of jobs")
        self.cluster, self.parameters = cluster, dict(parameters or {})
        for key in _TASKS:
            if self.parameters.get(key, 1) not in (1, None):
                raise UserError(f"config cluster.parameters.{key}: a job has one task; set prepare_workers instead")
        self._queue: _Queue | None = None
        self._jobs: list[Any] = []
        self._useful: set[str] = set()  # jobs that have taken a piece
        self._futures: dict[str, Future[Any]] = {}
        self._wanted = self._number = self._deaths = 0
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._error: UserError | None = None

    def size(self, pieces: int) -> int:
        """The number of jobs, at most that of pieces. 0 for a single piece."""
        self._wanted = max(min(int(self.workers), pieces), 1)
        return self._wanted if pieces > 1 else 0

    def submit(self, work: Work, state: Path, item: Any) -> Future[Any]:
        """Start the jobs, if there are none, and leave a piece for one of them."""
        if self._queue is None:
            self._begin(state.parent)
        assert self._queue is not None
        name, future = f"{self._number:09d}", Future[Any]()
        self._number += 1
        self._futures[name] = future
        if self._error is not None:
            future.set_exception(self._error)
            return future
        self._queue.put(self._queue.todo, name, _packed(work, state, item))
        return future

    def _begin(self, scratch: Path) -> None:
        queue = _Queue(scratch / f"queue-{uuid4().hex}")  # jobs of an earlier attempt may still run
        self._starter = Jobs("cluster", queue.folder / "jobs", "dlen-prepare", self.cluster, self.parameters)
        queue.create()
        for _ in range(self._wanted):
            self._start_job(queue)
        self._queue = queue
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, args=(queue,), daemon=True)
        self._thread.start()

    def _start_job(self, queue: _Queue) -> None:
        self._jobs.append(self._starter.start(serve, str(queue.folder)))

    def _watch(self, queue: _Queue) -> None:
        """Collect results, give signs of life, and replace jobs that end."""
        beats, looked = 0, time.monotonic()
        while not self._stop.wait(_POLL):
            try:
                self._collect(queue)
                if time.monotonic() - looked >= _BEAT:
                    looked, beats = time.monotonic(), beats + 1
                    queue.put(queue.folder, queue.alive.name, str(beats).encode())
                    self._replace_dead(queue)
            except UserError as error:
                self._fail(error)
                return
            except Exception as error:  # such as a full disk: whoever waits for a result must learn of it
                self._fail(UserError(f"config cluster: {type(error).__name__}: {error}"))
                return

    def _collect(self, queue: _Queue) -> None:
        for path in sorted(queue.done.iterdir()):
            answer = pickle.loads(path.read_bytes())
            path.unlink()
            future = self._futures.pop(path.name, None)
            self._useful.add(answer.job)
            if future is None:  # of a piece that was taken to be lost
                continue
            if answer.error is None:
                self._resolve(future, answer.result)
            elif answer.error == _LOST:
                future.set_exception(KilledError(f"job {answer.job} was started again"))
            else:
                future.set_exception(UserError(f"config cluster: {answer.error}"))

    def _replace_dead(self, queue: _Queue) -> None:
        for job in [job for job in self._jobs if job.done()]:
            self._jobs.remove(job)
            self._collect(queue)  # what it has finished
            taken = list(queue.taken.glob(f"*@{job.job_id}"))
            if not taken and job.job_id not in self._useful:
                self._deaths += 1
                if self._deaths >= _EARLY_DEATHS:
                    raise UserError(f"config cluster: jobs end before they take a piece: {log_end(job)}")
            for path in taken:
                path.unlink(missing_ok=True)
                future = self._futures.pop(path.name.partition("@")[0], None)
                if future is not None and not future.done():
                    future.set_exception(KilledError(log_end(job)))
        while len(self._jobs) < self._wanted:
            try:
                self._start_job(queue)
            except UserError:
                if not self._jobs:
                    raise
                return  # the others go on; tried again at the next look

    def _fail(self, error: UserError) -> None:
        self._error = error
        for future in list(self._futures.values()):
            if not future.done():
                future.set_exception(error)

    def close(self) -> None:
        """Cancel the jobs."""
        super().close()
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for job in self._jobs:
            with suppress(Exception):  # it may have ended; in any case, the others are to be cancelled too
                job.cancel(check=False)
        self._jobs, self._queue, self._thread, self._error = [], None, None, None
        self._deaths = 0
        self._futures.clear()
        self._useful.clear()


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a job returns for a piece.

    Attributes:
        job: the job's id.
        error: what keeps its machine from working on the piece.
        result: the result, and how much was done.
    """

    job: str
    error: str | None = None
    result: Any = None


def serve(folder: str) -> None:
    """In a job: work on the pieces in a folder, until it is gone or whoever gives them out has ended."""
    import submitit

    for number in (signal.SIGUSR1, signal.SIGUSR2):  # the job's time is over: no error of the piece that it works on
        signal.signal(number, lambda *_: sys.exit(1))
    queue, job = _Queue(Path(folder)), str(submitit.JobEnvironment().job_id)
    for path in sorted(queue.taken.glob(f"*@{job}")):  # by this job, before the cluster started it again
        _return(queue, path, _Answer(job, _LOST))
    beat, seen = "", time.monotonic()
    while True:
        try:
            taken = queue.take(job)
            if taken is None:
                time.sleep(_POLL)
                now = queue.alive.read_text()
                beat, seen = (now, time.monotonic()) if now != beat else (beat, seen)
                if time.monotonic() - seen > _ORPHANED:
                    return
                continue
            _return(queue, taken, _answer(job, taken.read_bytes()))
        except FileNotFoundError:  # the folder: the preparation has ended
            return
        seen = time.monotonic()


def _return(queue: _Queue, taken: Path, answer: _Answer) -> None:
    queue.put(queue.done, taken.name.partition("@")[0], pickle.dumps(answer))
    taken.unlink(missing_ok=True)


def _answer(job: str, packed: bytes) -> _Answer:
    """The result of a piece, or what keeps this machine from working on it."""
    try:
        return _Answer(job, result=_worked(packed))
    except Exception as error:
        return _Answer(job, f"{type(error).__name__}: {error}")
