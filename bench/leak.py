"""Not a speed bench: checks whether ``sweep=alpha`` recovers the leak planted in the feed simulator.

python bench/leak.py           # about 12 minutes on 2 cores; draws docs/leak.png
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import DATA, OUT, ROOT, report
from matplotlib.figure import Figure

TRUTHS = (0.05, 0.1, 0.3)
SPACE = "sweep.space={model.head.alpha: {low: 0.02, high: 0.8}, model.head.bound: {choices: [conditional]}}"
SETTINGS = ["data.rows=200000", "trainer.max_epochs=3", "sweep.sampler=gp", "sweep.pruner=none", "sweep.confirm=0"]


def sweep(truth: float, trials: int) -> pl.DataFrame:
    """Alpha and validation likelihood of all labels, from a study on a feed with this leak."""
    runs = OUT / "leak"
    command = [sys.executable, "sweep.py", "sweep=alpha", f"data.leak={truth}", SPACE, *SETTINGS]
    command += [f"sweep.trials={trials}", f"sweep.name=leak-{truth}", f"data_dir={DATA}", f"runs_dir={runs}"]
    subprocess.run(command, cwd=ROOT, check=True)
    return pl.read_parquet(runs / "sweeps" / f"leak-{truth}" / "trials.parquet")


def draw(found: dict[float, pl.DataFrame], path: Path) -> None:
    """Plot the likelihood against alpha for each world, with its planted leak as a line."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for colour, (truth, table) in zip(("#4477aa", "#228833", "#ee6677"), found.items(), strict=True):
        table = table.sort("param/model.head.alpha")
        loss = table["val/logloss/labels"].to_numpy()
        axes.plot(
            table["param/model.head.alpha"].to_numpy(), loss - loss.min(), "o-", color=colour, label=f"leak {truth}"
        )
        axes.axvline(truth, color=colour, linestyle=":")
    axes.set(
        xscale="log", xlabel="alpha", ylabel="loss of all labels of a row, above the best (nats)", ylim=(-0.001, 0.04)
    )
    ticks = [0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_title("sweep=alpha on feeds with a planted leak (dotted)")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run three worlds."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    found = {truth: sweep(truth, trials) for truth in TRUTHS}
    rows: list[dict[str, Any]] = []
    for truth, table in found.items():
        best = table.filter("best")["param/model.head.alpha"].item()
        auc = table.sort("auc/mean", descending=True)
        spread = np.ptp(table["auc/mean"].to_numpy())
        rows.append(
            {
                "planted leak": truth,
                "best alpha": f"{best:.3f}",
                "factor": f"{math.exp(abs(math.log(best / truth))):.2f}",
                "alpha of the best AUC": f"{auc['param/model.head.alpha'][0]:.3f}",
                "spread of mean AUC": f"{spread:.4f}",
            }
        )
    report("leak", rows)
    draw(found, ROOT / "docs" / "leak.png")


if __name__ == "__main__":
    main()
