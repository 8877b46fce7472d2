"""Heat maps: gates, attention and gradient conflict of a run, and the gain over a grid of data settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import plotly.graph_objects as go

from dlen.reports.page import Plot, plain, safe
from dlen.reports.run_record import RunRecord


def _heat_map(
    values: Sequence[Sequence[float | None]],
    lines: Sequence[str],
    columns: Sequence[str],
    *,
    cell: str = "{:.2f}",
    **options: Any,
) -> go.Figure:
    """A heat map with cell values in the format ``cell``; lines run from top to bottom."""
    texts = [["" if v is None else cell.format(v) for v in line] for line in values]
    figure = go.Figure(
        go.Heatmap(
            z=list(values),
            x=[safe(c) for c in columns],
            y=[safe(line) for line in lines],
            text=texts if len(columns) <= 16 else None,
            texttemplate="%{text}" if len(columns) <= 16 else None,
            hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
            **options,
        )
    )
    height = 110 + 30 * max(len(lines), 4)
    axes = {"xaxis": {"tickangle": 40, "type": "category"}, "yaxis": {"autorange": "reversed", "type": "category"}}
    return figure.update_layout(height=height, **axes)


def gates(diagnostics: Mapping[str, Any]) -> list[Plot]:
    """One heat map per set of experts."""
    sets: dict[tuple[int, tuple[str, ...]], list[dict[str, Any]]] = {}
    for gate in diagnostics.get("gates", []):
        sets.setdefault((int(gate["level"]), tuple(gate["experts"])), []).append(gate)
    plots = []
    for (level, experts), of_set in sets.items():
        weights, owners = [g["weights"] for g in of_set], [g["owner"] for g in of_set]
        figure = _heat_map(weights, owners, experts, zmin=0, zmax=1, colorscale="Blues")
        plots.append(Plot(f"Gates, level {level}", plain(figure), "Mean weight of each expert for each task."))
    return plots


def attention(diagnostics: Mapping[str, Any]) -> list[Plot]:
    """One heat map per attention of the backbone."""
    plots = []
    for title, content in diagnostics.get("attention", {}).items():
        weights, columns = content["weights"], content["columns"]
        # Equal weights are in the middle of the scale, so uniform weights look uniform.
        most = max(2 / len(weights[0]), *(v for line in weights for v in line))
        figure = _heat_map(weights, content["lines"], columns, zmin=0, zmax=most, colorscale="Blues")
        note = f"Mean weights; each row sums to 1. Uniform attention would be {1 / len(columns):.3f}."
        plots.append(Plot(f"Attention, {title}", plain(figure), note))
    return plots


def conflict(record: RunRecord) -> Plot | None:
    """Mean cosine between the gradients of each pair of tasks."""
    cosines = {(a, b): record.figure(f"train/conflict/cosine/{a}-{b}") for a, b in combinations(record.tasks, 2)}
    known = [abs(v) for v in cosines.values() if v is not None]
    if not known:
        return None
    values = [[cosines.get((a, b), cosines.get((b, a))) for b in record.tasks] for a in record.tasks]
    most = max(0.05, *known)  # they are small: a scale to 1 shows nothing
    figure = _heat_map(values, record.tasks, record.tasks, zmin=-most, zmax=most, colorscale="RdBu")
    share, rows = record.figure("train/conflict/share"), record.figure("train/conflict/rows")
    note = "Mean cosine of two tasks' gradients with respect to the shared parameters."
    if share is not None and rows is not None:
        note += f" Conflicting pairs: {share:.1%} by batch, {rows:.1%} by row."
    return Plot("Gradient conflict", plain(figure), note)


def surface_maps(cells: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Gain of the last model over each pair of axes that vary together.

    Args:
        cells: content of a comparison's ``surface.json``.
    """
    axes = list(cells[0]["cell"])
    first = {axis: cells[0]["cell"][axis] for axis in axes}
    limit = max(abs(_gain(c)) for c in cells) or 1e-4
    plots = []
    for x, y in combinations(axes, 2):
        plane = [c for c in cells if all(c["cell"][a] == first[a] for a in axes if a not in (x, y))]
        columns, lines = (list(dict.fromkeys(str(c["cell"][axis]) for c in plane)) for axis in (x, y))
        if len(columns) < 2 or len(lines) < 2 or len(plane) < len(columns) * len(lines):
            continue
        gain = {(c["cell"][y], c["cell"][x]): _gain(c) for c in plane}
        values = [[gain.get((line, column)) for column in columns] for line in lines]
        figure = _heat_map(values, lines, columns, cell="{:+.4f}", zmin=-limit, zmax=limit, colorscale="RdBu")
        figure.update_layout(xaxis={"title": safe(x), "type": "category"}, yaxis={"title": safe(y), "type": "category"})
        plots.append(Plot(f"Gain in mean AUC by {x} and {y}", plain(figure), "Blue: gain; red: loss."))
    return plots


def _gain(cell: Mapping[str, Any]) -> float:
    """Difference in mean AUC of the last model of a cell."""
    return float(cell["rows"][-1]["differences"]["mean"]["mean"])
