"""All plots of a single run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dlen.reports.colours import BLUE, COLOURS, CYAN, NEUTRAL, RED, YELLOW
from dlen.reports.curves import curve_name, reliability_curves, roc_curves
from dlen.reports.heat_maps import attention, conflict, gates
from dlen.reports.page import Plot, plain, safe
from dlen.reports.run_record import RunRecord, read_run

_PATTERNS = {"no interaction": BLUE, "interaction": RED, "dislike": YELLOW}
_KINDS = {"other": "another interaction", "silent": "silent liking", "detest": "detest"}
_KIND_COLOURS = (BLUE, CYAN, RED)


def draw_run(folder: Path) -> dict[str, go.Figure]:
    """The plots of :func:`run_plots` for a run folder, by title."""
    return {plot.title: go.Figure(plot.figure) for plot in run_plots(read_run(folder))}


def run_plots(record: RunRecord) -> list[Plot]:
    """All plots of one run."""
    plots = [
        _history(record),
        *_hidden_state(record.diagnostics),
        conflict(record),
        *gates(record.diagnostics),
        *attention(record.diagnostics),
        roc_curves([record]),
        reliability_curves([record]),
    ]
    return [plot for plot in plots if plot is not None]


def _history(record: RunRecord) -> Plot | None:
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    for number, (key, (steps, values)) in enumerate(sorted(record.curves.items())):
        loss = key == "train/loss"
        if not loss and not key.startswith(("val/auc/", "val/xauc/")):
            continue
        line = {"color": NEUTRAL if loss else COLOURS[number % len(COLOURS)], "dash": "dot" if loss else "solid"}
        name = "training loss" if loss else curve_name(key)
        figure.add_scatter(x=steps, y=values, mode="lines", line=line, name=safe(name), secondary_y=loss)
    if not figure.data:
        return None
    figure.update_layout(xaxis_title="step")
    figure.update_yaxes(title_text="validation AUC", secondary_y=False)
    figure.update_yaxes(title_text="training loss", secondary_y=True, showgrid=False)
    loss_note = " The dotted line is the training loss, on the right axis." if "train/loss" in record.curves else ""
    return Plot("Training", plain(figure), f"Validation AUC.{loss_note}")


def _hidden_state(diagnostics: Mapping[str, Any]) -> list[Plot]:
    """P(UP), the kinds of negatives and what they leave unexplained; empty for a model without a hidden state."""
    hidden = diagnostics.get("hidden")
    if not hidden:
        return []
    return [_hidden_histogram(hidden), _negatives(hidden), *([_pairs(hidden)] if hidden.get("pairs") else [])]


def _pairs(hidden: Mapping[str, Any]) -> Plot:
    """Co-occurrence of each pair of tasks beside that of the model; the strongest at the top."""
    pairs = sorted(hidden["pairs"], key=lambda pair: pair["lift"][1])
    low, lift, high = zip(*(pair["lift"] for pair in pairs), strict=True)
    figure = go.Figure(
        go.Scatter(
            x=lift,
            y=[safe(" and ".join(pair["tasks"])) for pair in pairs],
            error_x={
                "array": [h - x for h, x in zip(high, lift, strict=True)],
                "arrayminus": [x - less for less, x in zip(low, lift, strict=True)],
            },
            mode="markers",
            marker={"color": BLUE, "size": 9},
            hovertemplate="%{y}: %{x:.2f}<extra></extra>",
        )
    )
    figure.add_vline(x=1, line={"color": NEUTRAL})
    figure.update_layout(
        height=110 + 24 * len(pairs), xaxis={"title": "observed / expected rows", "rangemode": "tozero"}
    )
    note = (
        "Rows in which both tasks happen, over those that the model expects; error bars: three standard deviations. "
        "Far above 1, both are signs of the same thing: model.head.views joins them."
    )
    return Plot("What P(UP) leaves unexplained", plain(figure), note)


def _hidden_histogram(hidden: Mapping[str, Any]) -> Plot:
    figure = go.Figure()
    for pattern, counts in hidden["counts"].items():
        total = sum(counts)
        if total:
            width = 1 / len(counts)
            figure.add_bar(
                x=[(i + 0.5) * width for i in range(len(counts))],
                y=[c / total / width for c in counts],
                width=width,
                name=f"{safe(pattern)} ({total:,} rows)",
                marker_color=_PATTERNS.get(pattern, NEUTRAL),
                opacity=0.6,
                hovertemplate="P(UP) %{x:.2f}: density %{y:.2f}",
            )
    figure.update_layout(barmode="overlay", bargap=0, xaxis={"title": "P(UP)", "range": [0, 1]}, yaxis_title="density")
    return Plot("P(UP) by what happened", plain(figure), "Test rows, by their labels; each histogram has area 1.")


def _negatives(hidden: Mapping[str, Any]) -> Plot:
    figure = go.Figure()
    sources = [("the model's", hidden["kinds"])]
    sources += [("the truth", hidden["true_kinds"])] if hidden.get("true_kinds") else []
    tasks = [safe(t) for t in hidden["tasks"]]
    for number, (source, kinds) in enumerate(sources):
        for kind, colour, shares in zip(hidden["negatives"], _KIND_COLOURS, zip(*kinds, strict=True), strict=True):
            figure.add_bar(
                x=[tasks, [source] * len(tasks)],
                y=list(shares),
                name=_KINDS.get(kind, safe(kind)),
                marker={"color": colour, "pattern": {"shape": "/" if number else ""}},
                showlegend=number == 0,
                legendgroup=kind,
                hovertemplate="%{y:.1%}",
            )
    figure.update_layout(
        barmode="stack",
        yaxis={"title": "share of negatives", "tickformat": ".0%", "range": [0, 1]},
        legend={"y": 1.02, "yanchor": "bottom"},  # below the plot are two lines of names
    )
    return Plot("What a negative means", plain(figure), "The paper's three kinds; hatched: the simulator's truth.")
