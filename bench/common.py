"""Shared by the benches: commands with peak memory, interleaved rounds, medians, and report files."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
OUT = Path(__file__).resolve().parent / "out"
DATA = OUT / "data"  # data prepared by the benches, kept between runs

# Single-valued fields have the number of ids counted in Ali-CCP. Multi-valued fields have one id each here, so that
# peers, which read one id per field, do the same work.
ALICCP_SIZES = {
    "101": 238_635, "109_14": 2_000, "110_14": 10_000, "127_14": 10_000, "150_14": 8_000, "121": 98, "122": 14,
    "124": 3, "125": 8, "126": 4, "127": 4, "128": 3, "129": 5, "205": 467_298, "206": 6_929, "207": 263_942,
    "210": 12_000, "216": 106_399, "508": 5_888, "509": 104_830, "702": 51_878, "853": 37_148, "301": 4,
}  # fmt: skip


@dataclass(slots=True)
class Ran:
    """A finished command.

    Attributes:
        seconds: wall-clock time.
        cpu: seconds of CPU of it and of the processes that it waited for.
        peak_mb: peak resident memory in MiB, of the process or of its largest child, including pages of mapped files.
        output: standard output.
    """

    seconds: float
    cpu: float
    peak_mb: float
    output: str


def run(arguments: Sequence[str], python: Path | str = sys.executable) -> Ran:
    """Run a Python command in the repository and wait for it. A failure ends the bench."""
    started = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    with (OUT / "stdout").open("w+") as out, (OUT / "stderr").open("w+") as err:
        process = subprocess.Popen([str(python), *arguments], cwd=ROOT, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        out.seek(0), err.seek(0)
        output, errors = out.read(), err.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{errors}")
    return Ran(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output)


def in_turn(parts: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call every part once per round, so a slow period of the machine affects all of them."""
    found: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(rounds):
        for name, part in parts.items():
            found[name].append(part())
            print(f"round {number + 1} of {rounds}: {name} {found[name][-1]:.4g}", file=sys.stderr, flush=True)
    return found


def median_and_spread(values: Sequence[float]) -> str:
    """Format ``median (lowest - highest)``."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} - {max(values):.3g})"


def ratio(values: Sequence[float], base: Sequence[float]) -> str:
    """Median over rounds of the ratio."""
    return f"{statistics.median(v / b for v, b in zip(values, base, strict=True)):.2f}"


def compared(
    found: Mapping[str, Sequence[float]], base: str, rate: str, against: str, where: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows of a report: the rate of each part and its ratio to ``base``, in columns named ``rate`` and ``against``."""
    return [
        {**where, "what": what, rate: median_and_spread(rates), against: ratio(rates, found[base])}
        for what, rates in found.items()
    ]


def machine() -> dict[str, Any]:
    """The hardware and software of the measurements."""
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def report(name: str, rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table, and write it with the machine to ``bench/out``."""
    OUT.mkdir(exist_ok=True)
    content = {"machine": machine(), "rows": rows}
    (OUT / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(row.get(key, "")) for key in header) + " |" for row in rows]
    text = "\n".join([f"Machine: {content['machine']}", "", *lines, ""])
    (OUT / f"{name}.md").write_text(text)
    print(text)
