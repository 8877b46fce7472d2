"""Memory of preparing and of training on 2 M and on 20 M rows of the feed: anonymous memory, and mapped file pages.

python bench/memory.py                   # 2 and 20 M rows, about 5 GB of disk
python bench/memory.py 10000000 100000000
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from common import ROOT, report

STEPS = 300
BYTES = 230  # of a prepared row


class Watch(threading.Thread):
    """Samples the memory of a process and its children ten times per second and keeps the peaks of the sums.

    A page of a file that two of them map counts twice.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.peaks = {"RssAnon": 0, "RssFile": 0}
        self.ended = threading.Event()

    def run(self) -> None:
        """Sample until the process ends."""
        while not self.ended.wait(0.1):
            sums = dict.fromkeys(self.peaks, 0)
            for pid in (self.pid, *_children(self.pid)):
                for key, kilobytes in _status(pid).items():
                    sums[key] += kilobytes
            self.peaks = {key: max(peak, sums[key]) for key, peak in self.peaks.items()}


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _status(pid: int) -> dict[str, int]:
    """KiB of each kind of a process's memory; none if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = [line.split(":") for line in lines if line.startswith(("RssAnon", "RssFile"))]
    return {key: int(value.split()[0]) for key, value in pairs}


def peaks(command: list[str]) -> tuple[float, float]:
    """Peak MiB of anonymous memory and of mapped files of a Python command in the repository."""
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    watch = Watch(process.pid)
    watch.start()
    code = process.wait()
    watch.ended.set()
    watch.join()
    if code:
        raise SystemExit(f"{' '.join(command)} failed")
    return watch.peaks["RssAnon"] / 1024, watch.peaks["RssFile"] / 1024


def measure(rows: int) -> dict[str, Any]:
    """Prepare, and train some steps on batches from all rows."""
    needed, free = rows * BYTES, shutil.disk_usage(tempfile.gettempdir()).free
    if needed > free:
        raise SystemExit(
            f"{rows:,} rows need {needed >> 20:,} MiB in {tempfile.gettempdir()}, which has {free >> 20:,}"
        )
    with tempfile.TemporaryDirectory() as folder:
        data = ["data=feed", f"data.rows={rows}", f"data_dir={folder}/data"]
        started = time.perf_counter()
        own, mapped = peaks(["prepare.py", *data])
        row = {"rows": f"{rows:,}", "s to prepare": f"{time.perf_counter() - started:.0f}"}
        row |= {"preparing, MiB": f"{own:.0f}", "mapped": f"{mapped:.0f}"}
        settings = ["model=mmoe", *data, f"run_dir={folder}/run", "loader.batch_size=4096", "metrics.by_user=false"]
        settings += [f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS}", "trainer.accelerator=cpu"]
        own, mapped = peaks(["train.py", *settings])
        return row | {"training, MiB": f"{own:.0f}", "mapped files, MiB": f"{mapped:.0f}"}


def main() -> None:
    """Measure the requested row counts."""
    report("memory", [measure(int(a)) for a in sys.argv[1:] or (2_000_000, 20_000_000)])


if __name__ == "__main__":
    main()
