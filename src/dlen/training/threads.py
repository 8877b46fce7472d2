"""How many threads compute on the CPU: as many as there are cores that other programs leave free."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from dlen.limits import quota

_SECONDS = 0.5  # between two measurements
_SLACK = 0.2  # part of a core that may be in use by others, such as by the system, without giving it up
_PROC_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds since some moment, the same for all three.

    Attributes:
        wall: seconds on the clock.
        own: core seconds that this process has used.
        idle: core seconds in which a core of this process had nothing to do.
    """

    wall: float
    own: float
    idle: float


def usage() -> Usage | None:
    """The usage so far; None where the system does not tell, as it is not Linux."""
    cores = {f"cpu{number}" for number in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
    try:
        lines = [line.split() for line in _PROC_STAT.read_text().splitlines()]
    except OSError:
        return None
    ticks = sum(int(line[4]) + int(line[5]) for line in lines if line and line[0] in cores)  # idle, waiting for a disk
    return Usage(time.perf_counter(), time.process_time(), ticks / os.sysconf("SC_CLK_TCK"))


def free_cores(before: Usage, after: Usage, most: float = math.inf) -> float:
    """Cores that this process used or could have used between two measurements; at most ``most``."""
    seconds = after.wall - before.wall
    return min((after.own - before.own + after.idle - before.idle) / seconds, most)


class FreeThreads(Callback):
    """Computes with no more threads than there are free cores, as long as other programs keep cores busy.

    The threads of a product wait for each other in a busy loop. With one thread more than there are free cores, each
    product therefore waits until the system has taken a core from another program: on 2 cores, beside one busy
    program, two threads were 3 to 30 times slower than one.

    The number goes down after two measurements in a row below it, and up in the same way, so that a short disturbance
    changes nothing. It never exceeds the number at the start (``OMP_NUM_THREADS``). As another number of threads
    changes the last digits of results, ``OMP_DYNAMIC=false``, OpenMP's own variable, keeps the number fixed.

    Args:
        measure: measures the usage.
        cores: number of cores that a container may use.

    Attributes:
        fewest: fewest threads so far; 0 before the first batch.
    """

    def __init__(self, measure: Callable[[], Usage | None] = usage, cores: Callable[[], float] = quota) -> None:
        self.fewest = 0
        self._measure, self._cores = measure, cores
        self._before: Usage | None = None
        self._most, self._limit = torch.get_num_threads(), math.inf
        self._again = 0  # the number that the last measurement asked for

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start measuring, unless a GPU computes or the number is fixed."""
        self._most, self._limit, self._again = torch.get_num_threads(), self._cores(), 0
        self.fewest = self.fewest or self._most
        fixed = os.environ.get("OMP_DYNAMIC", "").lower() == "false" or self._most == 1
        self._before = None if fixed or trainer.strategy.root_device.type != "cpu" else self._measure()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the number of threads."""
        torch.set_num_threads(self._most)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the number of threads for the next trial of a sweep's worker."""
        torch.set_num_threads(self._most)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """See :meth:`adapt`."""
        self.adapt()

    on_validation_batch_end = on_test_batch_end = on_train_batch_end

    def adapt(self) -> None:
        """Measure, if it is time to, and change the number of threads if the last measurement asked for the same."""
        if self._before is None or time.perf_counter() - self._before.wall < _SECONDS:
            return
        now = self._measure()
        if now is None:
            return
        free = free_cores(self._before, now, self._limit)
        self._before = now
        asked, threads = int(max(1, min(self._most, free + _SLACK))), torch.get_num_threads()
        if asked != threads and asked == self._again:
            torch.set_num_threads(asked)
            if asked < self.fewest:
                self.fewest = asked
                print(f"other programs keep cores busy: computing with {_threads(asked)}", file=sys.stderr, flush=True)
        self._again = asked


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"
