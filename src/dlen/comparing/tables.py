"""Tables of a comparison: Markdown in the paper's layout, and all values as CSV and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from dlen.comparing.statistics import LEVEL, Difference
from dlen.files import write_csv, write_json, write_text

_EXTRAS = {
    "auc/up_any": ("AUC of P(UP), any", "{:.4f}"),
    "auc/up_truth": ("AUC of P(UP), truth", "{:.4f}"),
    "corr/up_truth": ("correlation of P(UP) with truth", "{:.3f}"),
    "share": ("conflict in a batch", "{:.1%}"),
    "rows": ("conflict in a row", "{:.1%}"),
    "model/dense_parameters": ("dense parameters", "{:,.0f}"),
    "model/flops_per_row": ("FLOPs of a row", "{:,.0f}"),
    "fit/samples_per_second": ("samples/s", "{:,.0f}"),
    "fit/seconds": ("seconds of training", "{:.0f}"),
}
BENCHMARK_FIGURES = {  # of an entry of a benchmark; a key without a slash is a measure of each task
    "gauc": ("GAUC", "{:.4f}"),
    "ne": ("NE", "{:.4f}"),
    **{key: _EXTRAS[key] for key in ("model/dense_parameters", "fit/seconds")},
}


@dataclass(frozen=True, slots=True)
class Row:
    """One model of a comparison.

    Attributes:
        model: name of the model.
        auc: AUC of each seed, by target and ``mean``.
        differences: paired difference from the base, by target and ``mean``; empty for the base itself.
        extras: other metrics of each seed, by key of :data:`_EXTRAS` or of the user's own, such as ``f1/mean``.
    """

    model: str
    auc: dict[str, list[float]]
    differences: dict[str, Difference]
    extras: dict[str, list[float]]

    def wins(self, targets: Sequence[str]) -> tuple[int, int, int]:
        """Count the targets in which the model is ahead, is clearly ahead, and is clearly behind."""
        differences = [self.differences[t] for t in targets if t in self.differences]
        ahead = [d for d in differences if d.mean > 0]
        return len(ahead), sum(d.clear for d in ahead), sum(d.clear for d in differences if d.mean < 0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models x seeds on one test split.

    Attributes:
        title: title of the experiment.
        base: the model that the others are paired with.
        targets: binary tasks, then joint events, then ``xauc/T`` of regression tasks.
        tasks: number of leading targets that are binary tasks and enter the mean, which is of the XAUCs without any.
        seeds: seeds of each model.
        rows: one row per model.
        oracle: AUC of a simulator's true probabilities, by target, and ``mean``; empty for real logs.
        paper: the paper's metrics, as configured.
        identity: identity of the data.
        folders: run folders, by model and seed.
    """

    title: str
    base: str
    targets: list[str]
    tasks: int
    seeds: list[int]
    rows: list[Row]
    oracle: dict[str, float]
    paper: dict[str, Any]
    identity: dict[str, Any]
    folders: dict[str, str]

    @property
    def base_row(self) -> Row:
        """The row of the base model."""
        return next(row for row in self.rows if row.model == self.base)

    @property
    def ceiling(self) -> float | None:
        """Mean oracle AUC over the tasks; None if it is unknown."""
        return self.oracle.get("mean")


def markdown(comparison: Comparison) -> str:
    """The whole report."""
    c = comparison
    data = f"Data `{c.identity['data']}` ({c.identity['test_rows']:,} test rows), {count_seeds(c.seeds)}."
    parts = [f"## {c.title}", data]
    parts.append(_auc_table(c))
    caption = f"AUC on the test split. In brackets the paired difference to {c.base}"
    if len(c.seeds) > 1:
        caption += "; ± is the standard deviation over seeds, * marks those whose "
        caption += f"{LEVEL:.0%} interval, over seeds and test rows together, is clear of zero."
    else:
        caption += ". With one seed the spread is unknown: intervals cover test rows alone, and nothing is clear."
    if any(target.startswith("xauc/") for target in c.targets):
        caption += " xauc is the share of pairs that a regression orders rightly; its intervals are over seeds alone."
    parts.append(caption)
    if len(c.rows) > 1:
        parts += ["### Paired differences", _difference_table(c)]
    if any(row.extras for row in c.rows):
        parts += ["### Beside the AUC", _extras_table(c)]
    if c.paper:
        note = f" Note: {c.paper['note']}." if c.paper.get("note") else ""
        parts += [f"### Published figures\n\nNot ours, and not measured here.{note}"]
        parts.append(_paper_table(c))
    return "\n\n".join(parts) + "\n"


def count_seeds(seeds: Sequence[int]) -> str:
    """The number of seeds with its unit."""
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"


def best_of(settings: str, trials: int) -> str:
    """The settings that a search chose, and of how many."""
    chosen = settings or "defaults"
    return f"{chosen}, best of {trials}" if trials > 1 else chosen


def mean_and_spread(values: Sequence[float], layout: str = "{:.4f}") -> str:
    """Mean and standard deviation over seeds."""
    if np.isnan(values).any():
        return "undefined"
    spread = f" ± {layout.format(np.std(values, ddof=1))}" if len(values) > 1 and np.ptp(values) > 0 else ""
    return layout.format(np.mean(values)) + spread


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with every column but the first right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _auc_table(c: Comparison) -> str:
    columns = [*c.targets, "mean"]
    rows = []
    for row in c.rows:
        cells = []
        for target in columns:
            d = row.differences.get(target)
            gain = f" ({d.starred})" if d else ""
            cells.append(mean_and_spread(row.auc[target]) + gain)
        rows.append([row.model, *cells])
    if c.oracle:
        rows.append(["oracle", *(f"{c.oracle[t]:.4f}" if t in c.oracle else "" for t in [*c.targets, "mean"])])
    return markdown_table(["model", *columns], rows)


def _difference_table(c: Comparison) -> str:
    tasks = c.targets[: c.tasks]
    header = ["model", *(f"{t} [95 %]" for t in [*c.targets, "mean"]), "tasks won (clear), clearly lost"]
    if c.ceiling is not None:
        header.append("gap to the oracle cut by")
    rows = []
    for row in c.rows:
        if row.model == c.base:
            continue
        cells = []
        for target in [*c.targets, "mean"]:
            d = row.differences.get(target)
            cells.append(f"{d.mean:+.4f} {d.interval}" if d else "undefined")
        ahead, clear, lost = row.wins(tasks)
        cells.append(f"{ahead} of {len(tasks)} ({clear}), {lost}")
        if c.ceiling is not None:
            gap = c.ceiling - float(np.mean(c.base_row.auc["mean"]))
            cells.append(f"{row.differences['mean'].mean / gap:+.1%}" if "mean" in row.differences else "undefined")
        rows.append([row.model, *cells])
    return markdown_table(header, rows)


def _extras_table(c: Comparison) -> str:
    user_keys = dict.fromkeys(key for row in c.rows for key in row.extras if key not in _EXTRAS)
    columns = _EXTRAS | {key: (key, "{:.5g}") for key in user_keys}  # errors of regressions, the user's own metrics
    used = [key for key in columns if any(key in row.extras for row in c.rows)]
    rows = [
        [row.model, *(mean_and_spread(row.extras[k], columns[k][1]) if k in row.extras else "" for k in used)]
        for row in c.rows
    ]
    return markdown_table(["model", *(columns[k][0] for k in used)], rows)


def _paper_table(c: Comparison) -> str:
    figures: dict[str, dict[str, float]] = c.paper["auc"]
    columns = list(dict.fromkeys(target for auc in figures.values() for target in auc))
    base = figures.get(c.base, {})
    rows = []
    for model, auc in figures.items():
        cells = [
            f"{auc[t]:.4f}" + (f" ({auc[t] - base[t]:+.4f})" if t in base and model != c.base else "")
            if t in auc
            else ""
            for t in columns
        ]
        rows.append([f"{model}, published", *cells])
    return markdown_table(["model", *columns], rows)


def print_markdown(text: str) -> None:
    """Print Markdown: rendered on a terminal, plain elsewhere."""
    console = Console()
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        print(text)


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write ``table.md``, ``table.csv`` (a line per model, target and seed) and ``table.json`` (everything)."""
    write_text(folder / "table.md", markdown(comparison))
    base = comparison.base_row
    lines = [
        (row.model, target, seed, value, other, value - other)
        for row in comparison.rows
        for target, values in row.auc.items()
        for seed, value, other in zip(comparison.seeds, values, base.auc[target], strict=True)
    ]
    write_csv(folder / "table.csv", ["model", "target", "seed", "auc", "base_auc", "difference"], lines)
    write_json(folder / "table.json", asdict(comparison))
