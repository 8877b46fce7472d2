"""Curves of runs: learning curves, ROC and reliability with a panel per target, and speed against memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dlen.reports.colours import NEUTRAL, colours_of
from dlen.reports.page import Plot, plain, safe
from dlen.reports.run_labels import by_label, representative
from dlen.reports.run_record import RunRecord

_PANEL = 260  # height of a panel, in pixels
Place = dict[str, int]  # row and column of a panel


class _Panels:
    """Small multiples with a legend that shows each configuration once."""

    def __init__(self, titles: Sequence[str], records: Sequence[RunRecord]) -> None:
        self.columns = min(3, len(titles))
        rows = -(-len(titles) // self.columns)
        self.figure = make_subplots(
            rows,
            self.columns,
            subplot_titles=[safe(t) for t in titles],
            vertical_spacing=0.32 / max(rows, 2),
            horizontal_spacing=0.22 / max(self.columns, 2),
        )
        self.figure.update_layout(height=_PANEL * rows + 90)
        self._colours = colours_of(list(by_label(records)))
        self._in_legend: set[str] = set()

    def place(self, number: int) -> Place:
        """Position of a panel."""
        return {"row": number // self.columns + 1, "col": number % self.columns + 1}

    def style(self, record: RunRecord) -> dict[str, Any]:
        """Style of a run's next trace."""
        colour = self._colours[record.label]
        style = {
            "name": safe(record.label),
            "line": {"color": colour, "width": 1.5},
            "marker_color": colour,
            "legendgroup": record.label,
            "showlegend": record.label not in self._in_legend,
            "meta": {"run": record.key},
        }
        self._in_legend.add(record.label)
        return style


def learning_curves(records: Sequence[RunRecord]) -> Plot | None:
    """Validation AUC of each target, XAUC of each regression, and training loss by step, with a line per run."""
    keys = [f"val/auc/{t}" for t in [*records[0].targets, "mean"]]
    keys += [*(f"val/xauc/{t}" for t in records[0].values), "train/loss"]
    keys = [k for k in keys if any(k in r.curves for r in records)]
    if not keys:
        return None
    titles = ["training loss" if k == "train/loss" else curve_name(k) for k in keys]
    panels = _Panels(titles, records)
    for record in records:
        for number, key in enumerate(keys):
            if key in record.curves:
                steps, values = record.curves[key]
                panels.figure.add_scatter(
                    x=steps,
                    y=values,
                    mode="lines" if len(steps) > 1 else "markers",
                    hovertemplate=f"{safe(record.label)}, seed {record.seed}<br>step %{{x}}: %{{y:.4f}}<extra></extra>",
                    **panels.style(record),
                    **panels.place(number),
                )
    return Plot("Learning curves", plain(panels.figure), "Validation AUC by step, one line per run.", wide=True)


def curve_name(key: str) -> str:
    """The target of a validation AUC, and that of an XAUC with this word."""
    return key.removeprefix("val/").removeprefix("auc/").replace("xauc/", "XAUC ")


def roc_curves(records: Sequence[RunRecord]) -> Plot | None:
    """ROC of each target; with several seeds, of the one with the best validation AUC."""
    seeds = "" if len(records) == 1 else "; of several seeds, the one with the best validation AUC"
    return _by_target(records, "roc", "ROC", f"Test split{seeds}.", _add_roc)


def reliability_curves(records: Sequence[RunRecord]) -> Plot | None:
    """Share of positives against mean probability, in groups of equal size."""
    note = "Share of positives by mean probability, in 20 groups of equal size; calibrated models are on the diagonal."
    return _by_target(records, "reliability", "Reliability", note, _add_reliability)


def _by_target(
    records: Sequence[RunRecord],
    key: str,
    title: str,
    note: str,
    add: Callable[[go.Figure, Any, dict[str, Any], Place], float],
) -> Plot | None:
    """A panel per target, with a curve of each configuration.

    Args:
        records: runs of one data set.
        key: key of the diagnostics.
        title: title of the plot.
        note: text after the title.
        add: adds one curve, and returns the end of the diagonal.
    """
    shown = [representative(runs) for runs in by_label([r for r in records if r.diagnostics.get(key)]).values()]
    targets = [t for t in records[0].targets if any(t in r.diagnostics[key] for r in shown)]
    if not targets:
        return None
    panels = _Panels(targets, records)
    for number, target in enumerate(targets):
        place = panels.place(number)
        end = max(
            add(panels.figure, record.diagnostics[key][target], panels.style(record), place)
            for record in shown
            if target in record.diagnostics[key]
        )
        line = {"color": NEUTRAL, "dash": "dot", "width": 1}
        ends = {"x": [0, end], "y": [0, end]}
        panels.figure.add_scatter(**ends, mode="lines", line=line, hoverinfo="skip", showlegend=False, **place)
    return Plot(title, plain(panels.figure), note, wide=True)


def _add_roc(figure: go.Figure, curve: Sequence[Sequence[float]], style: dict[str, Any], place: Place) -> float:
    del style["marker_color"]
    figure.add_scatter(x=curve[0], y=curve[1], mode="lines", **style, **place)
    figure.update_xaxes(title="share of negatives", range=[0, 1], **place)
    figure.update_yaxes(title="share of positives", range=[0, 1.01], **place)
    return 1.0


def _add_reliability(
    figure: go.Figure, groups: Mapping[str, Sequence[float]], style: dict[str, Any], place: Place
) -> float:
    figure.add_scatter(x=groups["predicted"], y=groups["observed"], mode="lines+markers", **style, **place)
    figure.update_traces(marker_size=5, selector={"mode": "lines+markers"})
    figure.update_xaxes(title="predicted", rangemode="tozero", **place)
    figure.update_yaxes(title="observed", rangemode="tozero", **place)
    return max(*groups["predicted"], *groups["observed"], 0)


def speed_and_size(records: Sequence[RunRecord]) -> Plot | None:
    """Peak memory against training speed, with a point per run."""
    figure, groups = go.Figure(), by_label(records)
    colours = colours_of(list(groups))
    for label, runs in groups.items():
        for record in runs:
            speed, memory = record.figure("fit/samples_per_second"), record.figure("fit/peak_memory_mb")
            if speed is None or memory is None:
                continue
            figure.add_scatter(
                x=[speed],
                y=[memory],
                mode="markers",
                marker={"color": colours[label], "size": 9},
                name=safe(label),
                legendgroup=label,
                showlegend=record is runs[0],
                meta={"run": record.key},
                text=f"{safe(label)}, seed {record.seed}",
                hovertemplate="%{text}<br>%{x:,.0f} samples/s, %{y:,.0f} MiB<extra></extra>",
            )
    if not figure.data:
        return None
    figure.update_layout(
        xaxis={"title": "training samples/s", "rangemode": "tozero"},
        yaxis={"title": "peak memory, MiB", "rangemode": "tozero"},
    )
    note = "One point per run. Runs on other machines, or that shared one, are not comparable."
    return Plot("Speed and memory", plain(figure), note)
