"""The peer libraries, each in a process of its own with the Python of bench/peers/.venv."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from common import ROOT, run

PYTHON = ROOT / "bench/peers/.venv/bin/python"
LIBRARIES = ("torch-rechub", "DeepCTR-Torch", "FuxiCTR")


def check_peers() -> None:
    """Say how the peers are installed if they are not."""
    if not PYTHON.exists():
        print("no peers: `make bench-peers` installs them", file=sys.stderr)


def peers(
    what: Literal["train", "evaluate"], model: str, arrays: Path, batch: int, rows: int, fuxictr: str
) -> dict[str, Callable[[], float]]:
    """What measures the rows/s of each peer that is installed and has the model, by library.

    Args:
        what: one epoch of training, or an evaluation.
        model: ``mmoe`` or ``ple``.
        arrays: file of :meth:`shapes.Shape.arrays`.
        batch: batch size.
        rows: how many of the file's rows; few because they are slow.
        fuxictr: folder with FuxiCTR's repository; empty to leave FuxiCTR out.
    """
    if not PYTHON.exists():
        return {}
    # DeepCTR-Torch's PLE fails with more shared experts than experts per task, as in the paper.
    unable = {"DeepCTR-Torch"} if model == "ple" else set()
    unable |= set() if fuxictr else {"FuxiCTR"}
    arguments = [model, str(arrays), str(batch), str(rows), fuxictr]
    return {name: partial(_peer, [what, name, *arguments]) for name in LIBRARIES if name not in unable}


def _peer(arguments: list[str]) -> float:
    ran = run(["bench/peers/run.py", *arguments], PYTHON)
    return float(json.loads(ran.output.strip().splitlines()[-1])["rows/s"])
