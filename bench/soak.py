"""A long training: do memory, open files and speed stay constant?

python bench/soak.py                  # two hours
python bench/soak.py minutes=10

Reads the training's /proc every ten seconds and ignores the first tenth as warm-up. Fails if memory grows by more than
5 %, if the number of open files grows, or if the last quarter's steps per second are 10 % below the first quarter's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import DATA, ROOT, report

SETTINGS = ["model=dlen", "data=feed", "loader.batch_size=1024", "trainer.max_epochs=-1", "patience=1000000"]
EVERY = 10.0  # seconds


def memory(pid: int) -> float:
    """MiB of a process's anonymous memory, without pages of mapped files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise ValueError(pid)


def last_step(log: Path) -> int:
    """Step of the last complete line."""
    if not log.exists():
        return 0
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 20_000, 0))
        lines = file.read().splitlines()[1:-1]
    return int(lines[-1].split(b",")[1]) if lines else 0


def main() -> None:
    """Train, monitor, and evaluate."""
    asked = dict(argument.split("=") for argument in sys.argv[1:])
    seconds = 60 * float(asked.get("minutes", 120))
    seen = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", *SETTINGS, f"data_dir={DATA}", f"run_dir={folder}/run"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started = time.monotonic()
        while (ran := time.monotonic() - started) < seconds:
            time.sleep(EVERY)
            if process.poll() is not None:
                raise SystemExit("the training has ended")
            files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
            seen.append((ran, memory(process.pid), files, last_step(Path(f"{folder}/run/logs/metrics.csv"))))
        process.kill()
        process.wait()
    kept = np.array([s for s in seen if s[0] > seconds / 10])
    quarter = max(len(kept) // 4, 2)
    first, last = kept[:quarter], kept[-quarter:]
    (memory_first, memory_last), (files_first, files_last) = (
        (float(np.median(first[:, i])), float(np.median(last[:, i]))) for i in (1, 2)
    )
    speed_first, speed_last = ((q[-1, 3] - q[0, 3]) / (q[-1, 0] - q[0, 0]) for q in (first, last))
    row = {
        "minutes": f"{seconds / 60:.0f}",
        "steps": f"{seen[-1][3]:,}",
        "own memory, MiB": f"{memory_first:.0f}, {memory_last:.0f}",
        "open files": f"{files_first:.0f}, {files_last:.0f}",
        "steps/s": f"{speed_first:.1f}, {speed_last:.1f}",
    }
    report("soak", [row])
    steady = memory_last <= 1.05 * memory_first and files_last <= files_first and speed_last >= 0.9 * speed_first
    raise SystemExit(not steady)


if __name__ == "__main__":
    main()
