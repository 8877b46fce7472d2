"""Memory of training on 2 M and on 20 M rows of the feed: anonymous memory, and mapped file pages.

python bench/memory.py                   # 2 and 20 M rows, about 5 GB of disk
python bench/memory.py 200000 2000000
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from common import DATA, ROOT, report
from shapes import feed

STEPS = 300


class Watch(threading.Thread):
    """Samples a process's memory ten times per second and keeps the peaks."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.status = Path(f"/proc/{pid}/status")
        self.peaks = {"RssAnon": 0, "RssFile": 0}
        self.ended = threading.Event()

    def run(self) -> None:
        """Sample until the process ends."""
        while not self.ended.wait(0.1):
            try:
                lines = self.status.read_text().splitlines()
            except OSError:
                return
            for line in lines:
                key, _, value = line.partition(":")
                if key in self.peaks:
                    self.peaks[key] = max(self.peaks[key], int(value.split()[0]))


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
    """Train some steps on batches from all rows."""
    shape = feed(rows)
    shape.store()
    with tempfile.TemporaryDirectory() as folder:
        settings = ["model=mmoe", *shape.data, f"data_dir={DATA}", f"run_dir={folder}/run", "loader.batch_size=4096"]
        settings += [f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS}"]
        own, mapped = peaks(["train.py", *settings])
    return {"rows": f"{rows:,}", "own memory, MiB": f"{own:.0f}", "mapped files, MiB": f"{mapped:.0f}"}


def main() -> None:
    """Measure the requested row counts."""
    report("memory", [measure(int(a)) for a in sys.argv[1:] or (2_000_000, 20_000_000)])


if __name__ == "__main__":
    main()
