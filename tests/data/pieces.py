"""Work on pieces, for tests of pools: a module that imports little, as every process of a pool imports it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from dlen.data.parallel import Advance, Failed

FAILED = Failed("ValueError: on purpose")  # the result of `squared` for 3


def squared(folder: Path, item: int, advance: Advance) -> int:
    """The square of a number; the first attempt at 2 kills its process, and 3 fails."""
    if item == 2 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 3:
        raise ValueError("on purpose")
    advance(1.0)
    return item**2


def killed(folder: Path, item: int, advance: Advance) -> int:
    """Kill the process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return item


def once_killed(folder: Path, item: int, advance: Advance) -> int:
    """Kill the process at the first attempt at each piece."""
    if not (folder / f"killed-{item}").exists():
        (folder / f"killed-{item}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item
