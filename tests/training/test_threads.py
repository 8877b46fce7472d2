"""Threads beside other programs, on a machine whose scheduler shares its cores fairly."""

from __future__ import annotations

import math
import os
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from dlen.training.threads import FreeThreads, Usage, free_cores, usage


class Machine:
    """Cores that are shared in equal parts by the runnable threads of this process and of others."""

    def __init__(self, cores: int, others: float = 0.0) -> None:
        self.cores, self.others, self.threads = cores, others, cores
        self.wall = self.own = self.idle = 0.0

    def run(self, seconds: float = 1.0) -> None:
        """Let time pass."""
        wanted = self.threads + self.others
        share = min(1.0, self.cores / wanted)
        self.wall += seconds
        self.own += self.threads * share * seconds
        self.idle += max(self.cores - wanted, 0.0) * seconds

    def measure(self) -> Usage:
        """See :func:`dlen.training.threads.usage`."""
        return Usage(self.wall, self.own, self.idle)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A quiet machine with four cores, whose threads torch believes to set."""
    machine = Machine(4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: machine.threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: setattr(machine, "threads", number))
    monkeypatch.setattr(time, "perf_counter", lambda: machine.wall)
    monkeypatch.delenv("OMP_DYNAMIC", raising=False)
    return machine


def started(machine: Machine, device: str = "cpu", cores: float = math.inf) -> FreeThreads:
    """The callback at the start of a fit."""
    free = FreeThreads(machine.measure, lambda: cores)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    free.setup(cast(Any, trainer), cast(Any, None), "fit")
    return free


def after(machine: Machine, free: FreeThreads, measurements: int = 12) -> int:
    """The number of threads after some measurements."""
    for _ in range(measurements):
        machine.run()
        free.on_train_batch_end()
    return machine.threads


@pytest.mark.parametrize("cores", [2, 4, 8, 16])
@pytest.mark.parametrize("others", [0, 1, 2, 3, 7, 20])
def test_threads_are_as_many_as_free_cores_whatever_others_do(machine: Machine, cores: int, others: int) -> None:
    machine.cores = machine.threads = cores
    free = started(machine)
    machine.others = others
    assert after(machine, free) == max(cores - others, 1)
    machine.others = 0
    assert after(machine, free) == cores
    assert free.fewest == max(cores - others, 1)


def test_a_disturbance_of_one_measurement_changes_nothing(machine: Machine) -> None:
    free = started(machine)
    for _ in range(5):
        machine.others = 3
        after(machine, free, 1)
        machine.others = 0
        assert after(machine, free, 1) == 4
    assert free.fewest == 4


def test_threads_that_wait_for_memory_or_a_disk_are_not_taken_for_a_busy_machine(machine: Machine) -> None:
    free = started(machine)
    for _ in range(5):
        machine.wall, machine.own, machine.idle = machine.wall + 1, machine.own + 0.5, machine.idle + 3.5
        free.on_train_batch_end()
    assert machine.threads == 4


def test_a_container_with_two_cores_of_four_gets_two_threads(machine: Machine) -> None:
    free = started(machine, cores=2.0)
    assert after(machine, free) == 2


@pytest.mark.parametrize("end", ["teardown", "on_exception"])
def test_the_number_comes_back_when_the_fit_ends(machine: Machine, end: str) -> None:
    free = started(machine)
    machine.others = 4
    assert after(machine, free) == 1
    getattr(free, end)(cast(Any, None), cast(Any, None), cast(Any, None))
    assert machine.threads == 4


def test_an_error_before_the_fit_begins_leaves_the_number(machine: Machine) -> None:
    FreeThreads(machine.measure).on_exception(cast(Any, None), cast(Any, None), ValueError())
    assert machine.threads == 4


@pytest.mark.parametrize("fixed", ["dynamic", "gpu", "unknown"])
def test_the_number_stays_where_it_is_fixed_or_does_not_matter(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, fixed: str
) -> None:
    if fixed == "dynamic":
        monkeypatch.setenv("OMP_DYNAMIC", "false")
    if fixed == "unknown":
        monkeypatch.setattr(machine, "measure", lambda: None)
    free = started(machine, "cuda" if fixed == "gpu" else "cpu")
    machine.others = 4
    assert after(machine, free) == 4


def test_usage_agrees_with_the_clocks_of_the_system() -> None:
    first = usage()
    if first is None:
        pytest.skip("the system does not tell how busy its cores are")
    sum(range(30_000_000))
    second = usage()
    assert second is not None
    assert second.wall > first.wall
    assert second.own > first.own
    assert second.idle >= first.idle
    # this process is not idle while it computes: own and idle time cannot exceed all cores, but for a clock tick each
    cores = len(os.sched_getaffinity(0))
    assert free_cores(first, second) * (second.wall - first.wall) <= cores * (second.wall - first.wall + 0.2)
