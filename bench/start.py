"""The first seconds: until --help, a wrong key or a wrong value is answered, and until the first training step.

They are seconds of the processor, which depend less on other work than those of the clock; on a quiet machine both are
the same, because imports take one core.

python bench/start.py [rounds=5] [against=DIR]     # about 2 minutes on 2 cores; DIR: another version's clone, in turn
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

from common import DATA, ROOT, in_turn, report
from lightning.pytorch import Callback, LightningModule, Trainer

CASES = {
    "--help": ["train.py", "--help"],
    "a wrong key": ["train.py", "data.rws=3"],
    "a wrong value: train.py": ["train.py", "patience=-3"],
    "a wrong value: evaluate.py": ["evaluate.py", "run=nowhere"],
    "a wrong value: predict.py": ["predict.py", "run=nowhere", f"input={__file__}", "output=scores.csv"],
    "a wrong value: export.py": ["export.py", "run=nowhere"],
    "a wrong value: compare.py": ["compare.py", "experiment=table1", "seeds=-1"],
    "a wrong value: benchmark.py": ["benchmark.py", "benchmark.trials=-1"],
    "a wrong value: sweep.py": ["sweep.py", "sweep=alpha", "sweep.trials=-1"],
    "a wrong value: report.py": ["report.py", "runs=nowhere"],
    "a wrong value of the data": ["train.py", "data.rows=-3"],
    "a wrong value of the model": ["train.py", "data.rows=2000", f"data_dir={DATA}", "model.head.alpha=2"],
}
FIRST = ["train.py", "data.rows=2000", f"data_dir={DATA}", "run_dir=run", "+callbacks.first._target_=start.FirstStep"]
_SHOWN = 12  # packages


class FirstStep(Callback):
    """Ends the process where the first training step begins."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Exit at once, without what a process does at its end."""
        sys.stderr.flush()
        os._exit(0)


def ran(clone: Path, arguments: list[str], flags: tuple[str, ...] = ()) -> tuple[float, str]:
    """Seconds and standard error of a command of a clone, in an empty folder. Another exit code ends the bench."""
    expected = 0 if arguments == FIRST or "--help" in arguments else 2
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(clone / "src"), str(ROOT / "bench")])}
    command = [sys.executable, *flags, str(clone / arguments[0]), *arguments[1:]]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "stderr").open("w+") as err:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0)
        errors = err.read()
    if process.returncode != expected:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}:\n{errors}")
    return usage.ru_utime + usage.ru_stime, errors


def seconds(clone: Path, arguments: list[str]) -> float:
    """Seconds of a command of a clone, see :func:`ran`."""
    return ran(clone, arguments)[0]


def imports(clone: Path) -> list[tuple[str, int, float]]:
    """Packages that are imported before the first training step, with modules and seconds, most expensive first."""
    spent, modules = Counter[str](), Counter[str]()
    lines = ran(clone, FIRST, ("-X", "importtime"))[1]
    for own, name in re.findall(r"^import time: +(\d+) \| +\d+ \| +([\w.]+)$", lines, re.MULTILINE):
        package = name.split(".")[0]
        spent[package] += int(own)
        modules[package] += 1
    return [(package, modules[package], own / 1e6) for package, own in spent.most_common(_SHOWN)]


def main() -> None:
    """Measure all in turn."""
    settings = dict(a.split("=", 1) for a in sys.argv[1:])
    clones = {"this": ROOT}
    if "against" in settings:
        clones["other"] = Path(settings["against"]).resolve()
    cases = {**CASES, "the first training step": FIRST}
    parts = {
        f"{case}, {name}": partial(seconds, clone, arguments)
        for case, arguments in cases.items()
        for name, clone in clones.items()
    }
    ran(ROOT, FIRST)  # prepares the data
    found = in_turn(parts, int(settings.get("rounds", 5)))
    report(
        "start",
        [{"until": case} | {f"{name}, s": f"{min(found[f'{case}, {name}']):.2f}" for name in clones} for case in cases],
    )
    rows = [{"package": p, "modules": n, "own seconds": f"{own:.2f}"} for p, n, own in imports(ROOT)]
    report("imports", rows)


if __name__ == "__main__":
    main()
