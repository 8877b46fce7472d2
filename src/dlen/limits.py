"""How many cores this process may use, and the control groups that limit it, as those of a container or a job do."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def groups(controller: str) -> Iterator[tuple[Path, int]]:
    """The folder of each control group of this process that may limit it, and its version of control groups.

    Those above a group count as well, such as that of a Slurm job above that of its step. Nothing where the system has
    none.

    Args:
        controller: what is limited, such as ``memory`` or ``cpu``.
    """
    for line in read(_PROC / "self" / "cgroup").splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUP / controller if controllers else _CGROUP
        inner = root / place.lstrip("/")
        for folder in (inner, *(parent for parent in inner.parents if parent == root or root in parent.parents)):
            yield folder, 1 if controllers else 2


def quota() -> float:
    """Number of cores that the control groups allow at a time; infinity without a limit."""
    most = math.inf
    for folder, version in groups("cpu"):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if version == 1 else ("cpu.max",)
        numbers = " ".join(read(folder / name) for name in names).split()
        if len(numbers) == 2 and all(number.isdigit() for number in numbers):  # `max` or -1 without a limit
            most = min(most, int(numbers[0]) / max(int(numbers[1]), 1))
    return most


def cores() -> int:
    """Number of cores that this process may keep busy: those that it may run on, within the :func:`quota`."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS
    return max(1, int(min(allowed, quota())))


def read(path: Path) -> str:
    """Content of a file of the system; empty if there is none."""
    try:
        return path.read_text()
    except (OSError, UnicodeError):
        return ""
