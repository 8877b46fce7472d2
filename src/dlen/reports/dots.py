"""Means with intervals, by configuration: of runs, and of the files of a comparison.

Dots and not bars: a bar from chance hides gains of .002, and a bar that begins elsewhere exaggerates them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dlen.comparing.statistics import Difference, paired
from dlen.reports.colours import COLOURS, NEUTRAL, colours_of
from dlen.reports.page import Plot, plain, safe
from dlen.reports.run_labels import by_label, figures, one_of_each_seed
from dlen.reports.run_record import RunRecord

_GROUPED = {"scattermode": "group", "scattergap": 0.4}  # places the dots of one target next to each other


def auc_dots(records: Sequence[RunRecord]) -> Plot | None:
    """Mean test AUC of each configuration, with the interval over its seeds, and the oracle as a line."""
    targets = [*records[0].targets, "mean"]
    values = {
        label: {target: figures(runs, f"test/auc/{target}") for target in targets}
        for label, runs in by_label(records).items()
    }
    oracle = {t: v for t in targets for r in records if (v := r.figure(f"test/oracle/{t}")) is not None}
    known = [oracle.get(t) for t in records[0].tasks]
    if None not in known:
        oracle["mean"] = float(np.mean([v for v in known if v is not None]))
    return _auc_dots(values, targets, oracle)


def comparison_dots(content: Mapping[str, Any]) -> Plot | None:
    """Same as :func:`auc_dots`, for a comparison's ``table.json``."""
    targets = [*content["targets"], "mean"]
    values = {
        row["model"]: {t: [v for v in row["auc"][t] if v is not None] for t in targets} for row in content["rows"]
    }
    return _auc_dots(values, targets, content["oracle"])


def _auc_dots(
    values: Mapping[str, Mapping[str, Sequence[float]]], targets: Sequence[str], oracle: Mapping[str, float]
) -> Plot | None:
    figure = go.Figure()
    colours = colours_of(list(values))
    for label, by_target in values.items():
        _add_means(figure, label, colours[label], {t: by_target[t] for t in targets})
    if not figure.data:
        return None
    dots = list(figure.data)
    places = list(dict.fromkeys(place for trace in dots for place in trace.x))
    _add_oracle(figure, places, oracle)
    spread = [(y, half or 0.0) for trace in dots for y, half in zip(trace.y, trace.error_y.array, strict=True)]
    low = min([*oracle.values(), *(y - half for y, half in spread)])
    high = max([*oracle.values(), *(y + half for y, half in spread)])
    margin = 0.05 * (high - low) + 0.001
    figure.update_layout(
        **_GROUPED,
        xaxis={"categoryorder": "array", "categoryarray": places, "type": "category"},
        yaxis={"title": "AUC", "range": [low - margin, high + margin]},
    )
    note = "Test split; the axis does not begin at chance. Error bars: 95 % interval over seeds, if there are several."
    return Plot("AUC", plain(figure), note, wide=True)


def _add_oracle(figure: go.Figure, places: Sequence[str], oracle: Mapping[str, float]) -> None:
    """A line over the bars of each target, and an entry in the legend."""
    line = {"color": NEUTRAL, "width": 3}
    heights = {safe(target): value for target, value in oracle.items()}
    for place, target in enumerate(places):
        if target in heights:
            ends = {"x0": place - 0.45, "x1": place + 0.45, "y0": heights[target], "y1": heights[target]}
            figure.add_shape(type="line", line=line, **ends)
    if oracle:
        figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name="oracle")


def _half_interval(values: Sequence[float]) -> float | None:
    """Half-width of the 95 % interval of a mean; None for one value."""
    if len(values) < 2:
        return None
    interval = paired(values, [0.0] * len(values))
    return interval.high - interval.mean


def _add_means(figure: go.Figure, label: str, colour: str, values: Mapping[str, Sequence[float]]) -> bool:
    """Means with their intervals, by place. Without any value, nothing is added, and False returned."""
    values = {place: numbers for place, numbers in values.items() if numbers}
    halves = [_half_interval(numbers) for numbers in values.values()]
    if values:
        _add_dots(figure, label, colour, list(values), [float(np.mean(v)) for v in values.values()], halves, halves)
    return bool(values)


def _add_dots(
    figure: go.Figure,
    label: str,
    colour: str,
    places: Sequence[str],
    values: Sequence[float],
    above: Sequence[float | None],
    below: Sequence[float | None],
) -> None:
    errors = {"type": "data", "symmetric": False, "array": list(above), "arrayminus": list(below)}
    figure.add_scatter(
        x=[safe(place) for place in places],
        y=list(values),
        error_y={**errors, "visible": any(a is not None for a in above), "color": colour, "thickness": 1.5, "width": 4},
        mode="markers",
        marker={"color": colour, "size": 9},
        name=safe(label),
        hovertemplate="%{x}: %{y:.4f}",
    )


def difference_dots(
    differences: Mapping[str, Mapping[str, Difference]],
    base: str,
    note: str,
    title: str = "MTL gain over",
    axis: str = "difference in AUC",
    tick: str = "+.4f",
    hover: str = ".4f",
) -> Plot | None:
    """Differences of each configuration from a base, by target, with intervals.

    Args:
        differences: differences by configuration and target.
        base: name of the base.
        note: description of the intervals.
        title: title of the plot, before the name of the base.
        axis: title of the vertical axis.
        tick: tick format of the axis.
        hover: format of a difference under the pointer.
    """
    figure = go.Figure()
    for (label, by_target), colour in zip(differences.items(), COLOURS[1:] * len(differences), strict=False):
        if by_target:
            found = by_target.values()
            above = [None if np.isnan(d.high) else d.high - d.mean for d in found]
            below = [None if np.isnan(d.low) else d.mean - d.low for d in found]
            _add_dots(figure, label, colour, list(by_target), [d.mean for d in found], above, below)
            figure.data[-1].hovertemplate = f"%{{x}}: %{{y:{hover}}}"
    if not figure.data:
        return None
    figure.update_layout(**_GROUPED, xaxis_type="category", yaxis={"title": axis, "tickformat": tick, "zeroline": True})
    return Plot(f"{title} {base}", plain(figure), note, wide=True)


def gains(records: Sequence[RunRecord], base: str) -> Plot | None:
    """Paired differences from the runs of ``base`` with the same seeds; None if there are none."""
    groups = by_label(records)
    reference = groups.get(base) or next((runs for runs in groups.values() if runs[0].model == base), None)
    if reference is None:
        return None
    targets = [*records[0].targets, "mean"]
    differences = {
        label: {t: d for t in targets if (d := _difference(runs, reference, f"test/auc/{t}")) is not None}
        for label, runs in groups.items()
        if runs is not reference
    }
    note = (
        "Test split, paired by seed. Error bars: 95 % interval over seeds, if there are several; compare.py also "
        "includes the sampling error of the test rows."
    )
    return difference_dots(differences, reference[0].label, note)


def _difference(runs: Sequence[RunRecord], reference: Sequence[RunRecord], key: str) -> Difference | None:
    """Difference of a metric between runs with the same seeds; None if no seed has both."""
    base = {r.seed: v for r in one_of_each_seed(reference) if (v := r.figure(key)) is not None}
    pairs = [(v, base[r.seed]) for r in one_of_each_seed(runs) if (v := r.figure(key)) is not None and r.seed in base]
    return paired([value for value, _ in pairs], [value for _, value in pairs]) if pairs else None


def means(
    records: Sequence[RunRecord], title: str, keys: Mapping[str, str], axis: str, note: str = "", tick: str = ""
) -> Plot | None:
    """Metrics from ``metrics.json``, mean over seeds, with one place per configuration.

    Args:
        records: runs of one data set.
        title: title of the plot.
        keys: name of each metric, by key.
        axis: title of the vertical axis.
        note: text after the title.
        tick: tick format of the axis.
    """
    figure, groups = go.Figure(), by_label(records)
    for number, (key, name) in enumerate(keys.items()):
        values = {label: figures(runs, key) for label, runs in groups.items()}
        if _add_means(figure, name, COLOURS[number], values):
            labels = [_wrapped(label) for label, numbers in values.items() if numbers]
            figure.data[-1].update(x=labels, hovertemplate="%{x}: %{y}")
    if not figure.data:
        return None
    figure.update_layout(
        **_GROUPED,
        xaxis={"type": "category", "tickangle": 0 if len(groups) < 7 else 45, "tickfont": {"size": 10}},
        yaxis={"title": axis, "tickformat": tick},
        showlegend=len(keys) > 1,
        legend={"y": 1.02, "yanchor": "bottom"},  # below the plot are names that may be long
    )
    return Plot(title, plain(figure), note)


def _wrapped(label: str) -> str:
    """A label with one word per line."""
    return "<br>".join(safe(word) for word in label.split(" "))
