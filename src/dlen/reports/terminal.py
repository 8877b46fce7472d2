"""The closing table of a run, on a terminal or in a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

_COLUMNS = {
    "auc": ("AUC", "{:.4f}"),
    "gain": ("gain", "{:+.4f}"),
    "auc_total": ("AUC (1)", "{:.4f}"),
    "auc_joint": ("AUC (4)", "{:.4f}"),
    "oracle": ("oracle", "{:.4f}"),
    "logloss": ("logloss", "{:.5f}"),
    "calibration": ("pred/obs", "{:.3f}"),
    "ece": ("ECE", "{:.5f}"),
}
_LATENT = {"up_any": "P(UP), any", "up_truth": "P(UP), truth"}


def print_figures(metrics: Mapping[str, Any], split: str, targets: list[str]) -> None:
    """Print one row for each target, and below them what is undefined and why.

    Args:
        metrics: the content of ``metrics.json``.
        split: the prefix of its keys.
        targets: tasks and joint events, in order.
    """
    rows = [*targets, *(k for k in _LATENT if f"{split}/auc/{k}" in metrics), "mean"]
    used = [m for m in _COLUMNS if any(f"{split}/{m}/{row}" in metrics for row in rows)]
    table = Table(title=f"{metrics['model']} on {metrics['data']}, {split} split, seed {metrics['seed']}")
    table.add_column("target")
    for measure in used:
        table.add_column(_COLUMNS[measure][0], justify="right")
    for row in rows:
        cells = [_cell(metrics, f"{split}/{m}/{row}", _COLUMNS[m][1]) for m in used]
        table.add_row(_LATENT.get(row, row), *cells, end_section=row == targets[-1])
    console = Console(soft_wrap=True)
    console.print(table)
    if f"{split}/auc/up_any" in metrics:
        console.print("P(UP), any: AUC of P(UP) against any interaction; truth: against the simulator's hidden state")
    if f"{split}/corr/up_truth" in metrics:
        console.print(f"Correlation of P(UP) with the true P(UP): {metrics[f'{split}/corr/up_truth']:.3f}")
    for key, reason in metrics.items():
        if key.startswith(f"undefined/{split}/"):
            console.print(f"{key.removeprefix('undefined/')}: undefined ({reason})", highlight=False)


def _cell(metrics: Mapping[str, Any], key: str, layout: str) -> str:
    if key not in metrics:
        return ""
    return "undefined" if metrics[key] is None else layout.format(metrics[key])
