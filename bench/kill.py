"""Trainings killed with SIGKILL at random times and resumed each time, compared with an uninterrupted one.

python bench/kill.py              # 20 kills; about 6 minutes
python bench/kill.py kills=5 seed=1

Prints whether weights, optimiser and all metrics except times are bit for bit the same.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import DATA, ROOT, report

from dlen.training.checkpoints import read_checkpoint

SETTINGS = ["model=dlen", "data=feed", "data.rows=60000", "loader.batch_size=128", "trainer.max_epochs=3"]
SETTINGS += ["trainer.val_check_interval=0.1", "patience=1000", "metrics.conflict_every=7", f"data_dir={DATA}"]
SETTINGS += ["model.embedding.dim=8", "model.dropout=0.1"]


def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start a training in its own process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "train.py", f"run_dir={folder}", *more]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for the process. A failure ends the bench."""
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors.decode())


def flat(content: Any, key: str = "") -> dict[str, Any]:
    """Leaves of nested containers, by key."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    found: dict[str, Any] = {}
    for name, value in items:
        inner = f"{key}/{name}"
        found |= flat(value, inner) if isinstance(value, dict | list | tuple) else {inner: value}
    return found


def differences(whole: Path, killed: Path) -> list[str]:
    """Names of the entries that differ, except times."""
    found = []
    a, b = (flat(read_checkpoint(folder / "checkpoints" / "last.ckpt")) for folder in (whole, killed))
    for key in {**a, **b}:
        x, y = a.get(key), b.get(key)
        same = torch.equal(x, y) if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) else x == y
        if not same and not any(part in key.lower() for part in ("seconds", "dirpath", "_path", "meter", "time")):
            found.append(key)
    a, b = (json.loads((folder / "metrics.json").read_text()) for folder in (whole, killed))
    return found + [k for k in {**a, **b} if a.get(k) != b.get(k) and (not k.startswith("fit/") or k == "fit/steps")]


def _told(found: list[str]) -> str:
    return f"{len(found)}, such as {', '.join(found[:3])}" if found else "none"


def interrupted(folder: Path, kills: int, rng: random.Random, begins: float) -> list[int]:
    """Train to the end with up to ``kills`` kills, and return the steps of the checkpoints that were resumed."""
    steps: list[int] = []
    for _ in range(kills):
        last = folder / "checkpoints" / "last.ckpt"
        if not last.exists() and folder.exists():
            shutil.rmtree(folder)  # killed before its first checkpoint: start again
        process = start(folder, *(["ckpt=last"] if last.exists() else SETTINGS))
        time.sleep(begins + rng.uniform(0, 4))
        if process.poll() is not None:
            finish(process)
            return steps
        process.send_signal(signal.SIGKILL)
        process.communicate()
        steps.append(read_checkpoint(last)["global_step"] if last.exists() else 0)
        print(f"killed; the last checkpoint is of step {steps[-1]}", file=sys.stderr, flush=True)
    finish(start(folder, *(["ckpt=last"] if steps[-1] else SETTINGS)))
    return steps


def main() -> None:
    """Train once without interruption, then repeatedly with kills until the requested number is reached."""
    asked = dict(argument.split("=") for argument in sys.argv[1:])
    kills, rng = int(asked.get("kills", 20)), random.Random(int(asked.get("seed", 0)))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        whole, started = Path(place) / "whole", time.perf_counter()
        finish(start(whole, *SETTINGS))
        metrics = json.loads((whole / "metrics.json").read_text())
        begins = time.perf_counter() - started - metrics["fit/seconds"] - metrics["fit/validation_seconds"]
        while kills > 0:
            killed = Path(place) / f"killed{len(rows)}"
            steps = interrupted(killed, kills, rng, 0.7 * begins)
            found = differences(whole, killed)
            rows.append({"kills": len(steps), "gone on from steps": steps, "differences": _told(found)})
            kills -= max(len(steps), 1)
    report("kill", rows)
    raise SystemExit(any(row["differences"] != "none" for row in rows))


if __name__ == "__main__":
    main()
