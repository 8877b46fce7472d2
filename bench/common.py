"""What the benches share: running a command with its peak memory, medians, and the report files."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
OUT = Path(__file__).resolve().parent / "out"


@dataclass(slots=True)
class Ran:
    """A finished command.

    Attributes:
        seconds: wall clock.
        peak_mb: largest resident memory of the process, in MiB.
        output: its standard output.
    """

    seconds: float
    peak_mb: float
    output: str


def run(arguments: Sequence[str]) -> Ran:
    """Run a Python command of the repository and wait for it; a failure ends the bench."""
    started = time.perf_counter()

    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{errors}")
    seconds = time.perf_counter() - started
    # The peak over all children so far; the caller runs the small commands first.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return Ran(seconds, peak, output)


def median_and_spread(values: Sequence[float]) -> str:
    """``median (lowest - highest)``."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} - {max(values):.3g})"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}


def report(name: str, rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table and write it with the machine to ``bench/out``."""
    OUT.mkdir(exist_ok=True)
    content = {"machine": machine(), "rows": rows}
    (OUT / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(row[key]) for key in header) + " |" for row in rows]
    text = "\n".join([f"Machine: {content['machine']}", "", *lines, ""])
    (OUT / f"{name}.md").write_text(text)
    print(text)
