"""The final table of a run, on a terminal or in a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dlen.metric_names import own_names

_COLUMNS = {  # limited to 80 characters; metrics.json has more
    "auc": ("AUC", "{:.4f}"),
    "base": ("base AUC", "{:.4f}"),
    "gain": ("gain", "{:+.4f}"),
    "auc_total": ("AUC (1)", "{:.4f}"),
    "auc_joint": ("AUC (4)", "{:.4f}"),
    "oracle": ("oracle", "{:.4f}"),
    "gauc": ("GAUC", "{:.4f}"),
    "logloss": ("logloss", "{:.5f}"),
    "calibration": ("pred/obs", "{:.3f}"),
    "xauc": ("XAUC", "{:.4f}"),
    "rmse": ("RMSE", "{:.5g}"),
    "mae": ("MAE", "{:.5g}"),
}
_LATENT = {"up_any": "P(UP), any", "up_truth": "P(UP), truth"}
_KINDS = {"other": "another", "silent": "silent", "detest": "detest"}


def print_figures(
    metrics: Mapping[str, Any],
    split: str,
    targets: list[str],
    base: Mapping[str, Any] | None = None,
    rows_of_split: int = 0,
) -> None:
    """Print one row per target, followed by the undefined metrics with their reasons.

    Args:
        metrics: content of ``metrics.json``.
        split: split name, the prefix of the keys.
        targets: names of tasks and joint events, in order.
        base: metrics of the base run, whose AUC gets a column; None without one.
        rows_of_split: number of rows of the split; the title reports if fewer were measured.
    """
    if base is not None:
        metrics = {
            **metrics,
            **{k.replace("/auc/", "/base/"): v for k, v in base.items() if k.startswith(f"{split}/auc/")},
        }
    latent = _LATENT | {f"up_{t}": f"P(UP), {t}" for t in targets}
    rows = [*targets, *(k for k in latent if f"{split}/auc/{k}" in metrics), "mean"]
    wide = base is not None or f"{split}/xauc/mean" in metrics  # no room next to the columns of those
    left_out = ("auc_total", "auc_joint", "gauc") if wide else ()
    columns = _COLUMNS | {name: (name, "{:.4f}") for name in own_names(metrics, split)}
    used = [m for m in columns if m not in left_out and any(f"{split}/{m}/{row}" in metrics for row in rows)]
    title = f"{metrics['model']} on {metrics['data']}, {split} split, seed {metrics['seed']}"
    measured = metrics.get(f"{split}/rows", rows_of_split)
    title += f"; {measured:,} of its {rows_of_split:,} rows" if measured < rows_of_split else ""
    title += f"; base: {base['model']}, seed {base['seed']}" if base is not None else ""
    table = Table(title=escape(title))  # brackets in names are not markup
    table.add_column("target")
    for measure in used:
        table.add_column(escape(columns[measure][0]), justify="right")
    for row in rows:
        cells = [_cell(metrics, f"{split}/{m}/{row}", columns[m][1]) for m in used]
        table.add_row(escape(latent.get(row, row)), *cells, end_section=row == targets[-1])
    console = Console(soft_wrap=True)
    console.print(table)
    if f"{split}/auc/up_any" in metrics:
        _print_hidden_state(console, metrics, split, targets)
    if "train/conflict/share" in metrics:
        share, cosine, rows = (metrics[f"train/conflict/{k}"] for k in ("share", "cosine", "rows"))
        console.print(
            f"Gradient conflict: {share:.1%} of task pairs in a batch, {rows:.1%} in a row; mean cosine {cosine:.3f}",
            highlight=False,
        )
    for key, reason in metrics.items():
        if key.startswith(f"undefined/{split}/"):
            console.print(f"{key.removeprefix('undefined/')}: undefined ({reason})", highlight=False, markup=False)


def _cell(metrics: Mapping[str, Any], key: str, layout: str) -> str:
    if key not in metrics:
        return ""
    return "undefined" if metrics[key] is None else layout.format(metrics[key])


def _print_hidden_state(console: Console, metrics: Mapping[str, Any], split: str, targets: list[str]) -> None:
    """Print the statistics of P(UP) and the kinds of negatives of each task."""
    tasks = [t for t in targets if f"{split}/negatives/other/{t}" in metrics]
    table = Table(title="Negatives: another interaction, silent liking, or detest")
    table.add_column("task")
    shown = [k for k in ("negatives", "negatives_true") if any(f"{split}/{k}/other/{t}" in metrics for t in tasks)]
    for key in shown:
        for kind in _KINDS.values():
            table.add_column(kind if key == "negatives" else f"{kind}, truth", justify="right")
    for task in tasks:
        table.add_row(
            escape(task), *(_cell(metrics, f"{split}/{k}/{kind}/{task}", "{:.1%}") for k in shown for kind in _KINDS)
        )
    console.print(table)
    mean, std, saturated = (metrics[f"{split}/hidden/{k}"] for k in ("mean", "std", "saturated"))
    console.print(f"P(UP): mean {mean:.3f}, deviation {std:.3f}, {saturated:.1%} saturated", highlight=False)
    for key, of_state in metrics.items():
        match key.split("/"):
            case [stage, "hidden", name, "mean"] if stage == split and of_state is not None:
                console.print(f"P({escape(name)}): mean {of_state:.3f}", highlight=False)
    note = "P(UP), any: AUC of P(UP) against any interaction; truth: against the simulator's hidden state"
    console.print(note, highlight=False)
    correlation = metrics.get(f"{split}/corr/up_truth")
    if correlation is not None:
        console.print(f"Correlation of P(UP) with the true P(UP): {correlation:.3f}", highlight=False)
