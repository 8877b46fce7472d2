"""Limits of control groups, in files as the kernel writes them."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from dlen import devices, limits
from dlen.limits import cores, quota
from tests.training.test_memory import machine

CASES: dict[str, tuple[dict[str, str], str, float]] = {
    "none": ({}, "", math.inf),
    "no limit": ({"cpu.max": "max 100000\n"}, "0::/\n", math.inf),
    "a container": ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
    "the job above its step": (
        {"job/cpu.max": "300000 100000\n", "job/step/cpu.max": "max 100000\n"},
        "0::/job/step\n",
        3,
    ),
    "the smaller of two": (
        {"job/cpu.max": "300000 100000\n", "job/step/cpu.max": "50000 100000\n"},
        "0::/job/step\n",
        0.5,
    ),
    "version 1": (
        {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        "3:cpu,cpuacct:/a\n",
        2.5,
    ),
    "version 1, no limit": (
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        "3:cpu:/\n",
        math.inf,
    ),
    "a container whose own group is the root": (
        {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        "9:pids:/x\n3:cpu:/docker/1\n0::/\n",
        2,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_cores_are_those_that_the_control_groups_allow(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, of_process, wanted = CASES[case]
    machine(tmp_path, files, of_process)
    monkeypatch.setattr(limits, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(limits, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    assert quota() == wanted
    assert cores() == max(1, math.floor(min(wanted, 64)))
    monkeypatch.setattr(devices, "_gpus", lambda: 0)
    assert devices.number_of_workers("auto", 100) == cores()


def test_cores_of_a_system_without_affinity_are_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(limits, "quota", lambda: math.inf)
    assert cores() == 6
