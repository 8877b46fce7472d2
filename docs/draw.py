"""Draws the pictures of the documentation: ``python docs/draw.py RUNS`` after ``compare.py experiment=table1 seeds=3``.

Everything but the diagram of the model is drawn from those runs, and the report is photographed in Chromium.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from playwright.sync_api import sync_playwright
from plots import plot_gates, plot_hidden_state

from dlen.metrics.hidden import PATTERNS
from dlen.reports.run_labels import representative
from dlen.reports.run_record import RunRecord
from dlen.reports.runs import find, read_runs
from dlen.training.gates import GateFigures
from dlen.training.latent import HiddenFigures

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
LABEL = "DLEN match"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")


def main(runs: str) -> None:
    """Draw all of them."""
    PICTURES.mkdir(exist_ok=True)
    records = read_runs(find(runs))
    shown = representative([r for r in records if r.label == LABEL])
    plot_hidden_state(hidden_figures(shown)).savefig(PICTURES / "hidden_state.png")
    plot_gates([gate_figures(g) for g in shown.diagnostics["gates"]]).savefig(PICTURES / "gates.png")
    draw_model().savefig(PICTURES / "model.png")
    draw_conflict(records).savefig(PICTURES / "conflict.png")
    photograph(runs)


def hidden_figures(record: RunRecord) -> HiddenFigures:
    """From a run's diagnostics back to what the picture is drawn from."""
    hidden = record.diagnostics["hidden"]
    counts = torch.tensor([hidden["counts"][p] for p in PATTERNS], dtype=torch.float64)
    return HiddenFigures(hidden["tasks"], counts, torch.tensor(hidden["kinds"]), torch.tensor(hidden["true_kinds"]), [])


def gate_figures(gate: dict[str, Any]) -> GateFigures:
    """The same of a gate; entropy and share of the heaviest are not drawn."""
    return GateFigures(
        int(gate["level"]), str(gate["owner"]), list(gate["experts"]), torch.tensor(gate["weights"]), 0, 0
    )


def box(panel: Axes, x: float, y: float, text: str, colour: str, width: float = 1.7) -> None:
    """A named box around (x, y)."""
    style: dict[str, Any] = {
        "boxstyle": "round,pad=0.02,rounding_size=0.08",
        "facecolor": colour,
        "edgecolor": "#555555",
    }
    panel.add_patch(FancyBboxPatch((x - width / 2, y - 0.28), width, 0.56, **style))
    panel.text(x, y, text, ha="center", va="center", size=9)


def draw_model() -> Figure:
    """The latent head on a backbone."""
    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    panel = figure.subplots()
    arrow: dict[str, Any] = {"arrowprops": {"arrowstyle": "->", "color": "#555555"}}
    panel.annotate("", (2.1, 1.42), (2.1, 0.86), **arrow)
    panel.annotate("", (6.7, 2.42), (2.6, 0.86), **arrow)
    for x in (1.0, 3.2):
        panel.annotate("", (x, 2.42), (2.1, 1.98), **arrow)
        panel.annotate("", (x, 3.42), (x, 2.98), **arrow)
    panel.annotate("", (6.7, 3.42), (6.7, 2.98), **arrow)
    for x in (1.0, 3.2, 6.7):
        panel.annotate("", (3.6, 4.42), (x, 3.98), **arrow)
    box(panel, 2.1, 0.6, "fields of user, item, context: embeddings", "#dddddd", 4.4)
    box(panel, 2.1, 1.7, "backbone: MMoE, CGC, PLE ...", "#bbccee", 3.4)
    box(panel, 1.0, 2.7, "tower of click", "#bbccee")
    box(panel, 3.2, 2.7, "tower of like ...", "#bbccee")
    box(panel, 6.7, 2.7, "hidden state network", "#ffcccc", 2.6)
    box(panel, 1.0, 3.7, "P(click | UP)\nP(click | not UP)", "#bbccee")
    box(panel, 3.2, 3.7, "P(like | UP)\nP(like | not UP)", "#bbccee")
    box(panel, 6.7, 3.7, "P(UP), shared by all tasks", "#ffcccc", 2.6)
    box(panel, 3.6, 4.7, "P(t) = P(UP) P(t | UP) + P(not UP) P(t | not UP)", "#ccddaa", 5.4)
    panel.set(xlim=(-0.4, 8.2), ylim=(0.2, 5.1))
    panel.set_axis_off()
    return figure


def draw_conflict(records: list[RunRecord]) -> Figure:
    """Share of task pairs that pull apart, by model."""
    labels = list(dict.fromkeys(r.label for r in records))
    figure = Figure(figsize=(7, 3.6), dpi=120, layout="constrained")
    panel = figure.subplots()
    for number, (key, name, colour) in enumerate(
        (("share", "in a batch", "#4477aa"), ("rows", "in a single row", "#ee6677"))
    ):
        values = [
            [v for r in records if r.label == n and (v := r.figure(f"train/conflict/{key}")) is not None]
            for n in labels
        ]
        places = np.arange(len(labels)) + 0.4 * number - 0.2
        deviation = [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in values]
        panel.bar(
            places, [float(np.mean(v)) for v in values], 0.38, yerr=deviation, color=colour, label=name, capsize=3
        )
    panel.set(xticks=range(len(labels)), xticklabels=labels, ylabel="task pairs with gradients apart")
    panel.legend()
    return figure


def photograph(runs: str) -> None:
    """The report of the runs, and what it shows of one of them."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        out = Path(folder) / "report.html"
        command = [sys.executable, str(ROOT / "report.py"), f"runs={runs}", f"out={out}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 1080})
        page.goto(out.as_uri())
        page.evaluate(
            "document.querySelector('header p').textContent = document.querySelector('header p').textContent"
            ".replace(/of [^;]*;/, 'of runs;')"
        )  # whose machine it was is nobody's business
        page.wait_for_timeout(500)
        page.screenshot(path=PICTURES / "report.png")
        page.locator("#one-run").scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        page.evaluate("document.getElementById('run-about').textContent = ''")
        page.evaluate("window.scrollTo(0, document.getElementById('one-run').offsetTop - 70)")
        page.wait_for_timeout(1000)
        page.screenshot(path=PICTURES / "one_run.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:] or ["runs"])
