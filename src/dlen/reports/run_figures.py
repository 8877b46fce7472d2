"""Plotly figures of runs: plots that compare several runs, and all plots of a single run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dlen.comparing.statistics import Difference, paired
from dlen.reports.page import COLOURS, Plot, plain, safe
from dlen.reports.runs import RunRecord, read_run

_PATTERNS = {"no interaction": COLOURS[0], "interaction": COLOURS[1], "dislike": COLOURS[3]}
_KINDS = {"other": "another interaction", "silent": "silent liking", "detest": "detest"}
_KIND_COLOURS = (COLOURS[0], COLOURS[4], COLOURS[1])
_NEUTRAL = "#8a8f98"  # readable on white and on black
_PANEL = 260  # height of a panel, in pixels
_HISTORY = ("val/auc/", "train/loss")


def by_label(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Group runs by configuration, in order."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record.label, []).append(record)
    return groups


def one_of_each_seed(records: Sequence[RunRecord]) -> list[RunRecord]:
    """One run per seed, for statistics: if a seed was run twice, the last tested run counts."""
    kept: dict[int, RunRecord] = {}
    for record in sorted(records, key=lambda r: (bool(r.metrics), r.written)):
        kept[record.seed] = record
    return [kept[seed] for seed in sorted(kept)]


def representative(records: Sequence[RunRecord]) -> RunRecord:
    """The run with the best validation AUC."""
    return max(records, key=lambda record: record.selection)


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label."""
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}


def auc_bars(records: Sequence[RunRecord]) -> Plot | None:
    """Mean test AUC of each configuration, with the interval over its seeds, and the oracle as a line."""
    targets = [*records[0].targets, "mean"]
    values = {
        label: {t: [v for r in one_of_each_seed(runs) if (v := r.figure(f"test/auc/{t}")) is not None] for t in targets}
        for label, runs in by_label(records).items()
    }
    oracle = {t: v for t in targets for r in records if (v := r.figure(f"test/oracle/{t}")) is not None}
    known = [oracle.get(t) for t in records[0].tasks]
    if None not in known:
        oracle["mean"] = float(np.mean([v for v in known if v is not None]))
    return _auc_bars(values, targets, oracle)


def comparison_bars(content: Mapping[str, Any]) -> Plot | None:
    """Same as :func:`auc_bars`, for a comparison's ``table.json``."""
    targets = [*content["targets"], "mean"]
    values = {
        row["model"]: {t: [v for v in row["auc"][t] if v is not None] for t in targets} for row in content["rows"]
    }
    return _auc_bars(values, targets, content["oracle"])


def _auc_bars(
    values: Mapping[str, Mapping[str, Sequence[float]]], targets: Sequence[str], oracle: Mapping[str, float]
) -> Plot | None:
    figure = go.Figure()
    for (label, found), colour in zip(values.items(), colours(list(values)).values(), strict=True):
        shown = [t for t in targets if found[t]]
        if shown:
            halves = [_half(found[t]) for t in shown]
            _add_bars(figure, label, colour, shown, [float(np.mean(found[t])) for t in shown], halves, halves)
    if not figure.data:
        return None
    places = list(dict.fromkeys(t for trace in figure.data for t in trace.x))
    limits = {safe(target): value for target, value in oracle.items()}
    for place, target in enumerate(places):
        if target in limits:
            ends = {"x0": place - 0.45, "x1": place + 0.45, "y0": limits[target], "y1": limits[target]}
            figure.add_shape(type="line", line={"color": _NEUTRAL, "width": 3}, **ends)
    if oracle:
        line = {"color": _NEUTRAL, "width": 3}
        figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name="oracle")
    lowest = min(v for trace in figure.data if trace.type == "bar" for v in trace.y)
    highest = max([*oracle.values(), *(v + (e or 0) for t in figure.data if t.type == "bar" for v, e in _ends(t))])
    figure.update_layout(
        barmode="group",
        xaxis={"categoryorder": "array", "categoryarray": places, "type": "category"},
        yaxis={"title": "AUC", "range": [min(0.5, lowest), highest + 0.02]},
    )
    note = "Test split; bars begin at chance. Lines at their ends: 95 % interval over seeds, where there are several."
    return Plot("AUC", plain(figure), note, wide=True)


def _ends(trace: Any) -> list[tuple[float, float | None]]:
    return list(zip(trace.y, trace.error_y.array, strict=True))


def _half(values: Sequence[float]) -> float | None:
    """Half-width of the 95 % interval of a mean; None for one value."""
    if len(values) < 2:
        return None
    found = paired(values, [0.0] * len(values))
    return found.high - found.mean


def _add_bars(
    figure: go.Figure,
    label: str,
    colour: str,
    places: Sequence[str],
    values: Sequence[float],
    above: Sequence[float | None],
    below: Sequence[float | None],
) -> None:
    errors = {"type": "data", "symmetric": False, "array": list(above), "arrayminus": list(below), "thickness": 1}
    errors["visible"] = any(a is not None for a in above)
    figure.add_bar(
        x=[safe(place) for place in places],
        y=list(values),
        error_y=errors,
        name=safe(label),
        marker_color=colour,
        hovertemplate="%{x}: %{y:.4f}",
    )


def difference_bars(differences: Mapping[str, Mapping[str, Difference]], base: str, note: str) -> Plot | None:
    """MTL gain of each configuration over a base, by target, with intervals.

    Args:
        differences: differences by configuration and target.
        base: name of the base.
        note: description of the intervals.
    """
    figure = go.Figure()
    for (label, found), colour in zip(differences.items(), COLOURS[1:] * len(differences), strict=False):
        known = {t: d for t, d in found.items() if d is not None}
        if known:
            above = [None if np.isnan(d.high) else d.high - d.mean for d in known.values()]
            below = [None if np.isnan(d.low) else d.mean - d.low for d in known.values()]
            _add_bars(figure, label, colour, list(known), [d.mean for d in known.values()], above, below)
    if not figure.data:
        return None
    figure.update_layout(
        barmode="group", xaxis_type="category", yaxis={"title": "difference in AUC", "tickformat": "+.3f"}
    )
    return Plot(f"MTL gain over {base}", plain(figure), note, wide=True)


def gains(records: Sequence[RunRecord], base: str) -> Plot | None:
    """Paired differences from the runs of ``base`` with the same seeds; None if there are none."""
    groups = by_label(records)
    reference = groups.get(base) or next((runs for runs in groups.values() if runs[0].model == base), None)
    if reference is None:
        return None
    name, differences = reference[0].label, {}
    for label, runs in groups.items():
        if runs is reference:
            continue
        found = {}
        for target in [*records[0].targets, "mean"]:
            pairs = _pairs(runs, reference, f"test/auc/{target}")
            if pairs:
                found[target] = paired([own for own, _ in pairs], [other for _, other in pairs])
        differences[label] = found
    note = "Test split, seeds paired. Lines at the ends: 95 % interval over seeds, where there are several;"
    return difference_bars(differences, name, f"{note} compare.py joins the chance of the test rows to it.")


def _pairs(runs: Sequence[RunRecord], reference: Sequence[RunRecord], key: str) -> list[tuple[float, float]]:
    base = {r.seed: v for r in one_of_each_seed(reference) if (v := r.figure(key)) is not None}
    own = one_of_each_seed(runs)
    return [(v, base[r.seed]) for r in own if (v := r.figure(key)) is not None and r.seed in base]


def _panels(titles: Sequence[str], columns: int = 3) -> tuple[go.Figure, Callable[[int], dict[str, int]]]:
    """Small multiples, and a function from panel number to position."""
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[safe(t) for t in titles],
        vertical_spacing=0.32 / max(rows, 2),
        horizontal_spacing=0.22 / max(columns, 2),
    )
    figure.update_layout(height=_PANEL * rows + 90)
    return figure, lambda number: {"row": number // columns + 1, "col": number % columns + 1}


def learning_curves(records: Sequence[RunRecord]) -> Plot | None:
    """Validation AUC of each target and training loss by training step, with a line per run."""
    keys = [f"val/auc/{t}" for t in [*records[0].targets, "mean"]] + ["train/loss"]
    keys = [k for k in keys if any(k in r.curves for r in records)]
    if not keys:
        return None
    figure, place = _panels(["training loss" if k == "train/loss" else k.removeprefix("val/auc/") for k in keys])
    colour = colours(list(by_label(records)))
    named: set[str] = set()
    for record in records:
        for number, key in enumerate(keys):
            if key in record.curves:
                steps, values = record.curves[key]
                figure.add_scatter(
                    x=steps,
                    y=values,
                    mode="lines" if len(steps) > 1 else "markers",
                    line={"color": colour[record.label], "width": 1.5},
                    marker_color=colour[record.label],
                    name=safe(record.label),
                    legendgroup=record.label,
                    showlegend=record.label not in named,
                    hovertemplate=f"{safe(record.label)}, seed {record.seed}<br>step %{{x}}: %{{y:.4f}}<extra></extra>",
                    meta={"run": record.key},
                    **place(number),
                )
                named.add(record.label)
    return Plot("Learning curves", plain(figure), "Validation AUC by step, a line for each run.", wide=True)


def roc_curves(records: Sequence[RunRecord]) -> Plot | None:
    """ROC of each target; with several seeds, of the one with the best validation AUC."""
    seeds = "" if len(records) == 1 else "; of several seeds the one that validated best"
    return _by_target(records, "roc", "ROC", f"Test split{seeds}.", _add_roc)


def reliability_curves(records: Sequence[RunRecord]) -> Plot | None:
    """Share of positives against mean probability, in groups of equal size."""
    note = "Share of positives by mean probability, in 20 groups of equal size; on the diagonal is right."
    return _by_target(records, "reliability", "Reliability", note, _add_reliability)


def _by_target(records: Sequence[RunRecord], key: str, title: str, note: str, add: Callable[..., None]) -> Plot | None:
    shown = [representative(runs) for runs in by_label([r for r in records if r.diagnostics.get(key)]).values()]
    targets = [t for t in records[0].targets if any(t in r.diagnostics[key] for r in shown)]
    if not targets:
        return None
    figure, place = _panels(targets)
    colour = colours(list(by_label(records)))
    named: set[str] = set()
    for number, target in enumerate(targets):
        for record in shown:
            if target in record.diagnostics[key]:
                style = {
                    "name": safe(record.label),
                    "line": {"color": colour[record.label], "width": 1.5},
                    "marker_color": colour[record.label],
                    "legendgroup": record.label,
                    "showlegend": record.label not in named,
                    "meta": {"run": record.key},
                }
                add(figure, record.diagnostics[key][target], style, place(number))
                named.add(record.label)
        _add_diagonal(
            figure, key, [r.diagnostics[key][target] for r in shown if target in r.diagnostics[key]], place(number)
        )
    return Plot(title, plain(figure), note, wide=True)


def _add_roc(figure: go.Figure, curve: Sequence[Sequence[float]], style: dict[str, Any], place: dict[str, int]) -> None:
    style = {k: v for k, v in style.items() if k != "marker_color"}
    figure.add_scatter(x=curve[0], y=curve[1], mode="lines", **style, **place)
    figure.update_xaxes(title="share of negatives", range=[0, 1], **place)
    figure.update_yaxes(title="share of positives", range=[0, 1.01], **place)


def _add_reliability(
    figure: go.Figure, groups: Mapping[str, Sequence[float]], style: dict[str, Any], place: dict[str, int]
) -> None:
    figure.add_scatter(x=groups["predicted"], y=groups["observed"], mode="lines+markers", **style, **place)
    figure.update_traces(marker_size=5, selector={"mode": "lines+markers"})
    figure.update_xaxes(title="predicted", rangemode="tozero", **place)
    figure.update_yaxes(title="observed", rangemode="tozero", **place)


def _add_diagonal(figure: go.Figure, key: str, shown: Sequence[Any], place: dict[str, int]) -> None:
    end = 1.0 if key == "roc" else max(max(*g["predicted"], *g["observed"], 0) for g in shown)
    line = {"color": _NEUTRAL, "dash": "dot", "width": 1}
    figure.add_scatter(x=[0, end], y=[0, end], mode="lines", line=line, hoverinfo="skip", showlegend=False, **place)


def means(
    records: Sequence[RunRecord], title: str, keys: Mapping[str, str], axis: str, note: str = "", tick: str = ""
) -> Plot | None:
    """Bars of metrics from ``metrics.json``, mean over seeds, with one place per configuration.

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
        values = {
            label: [v for r in one_of_each_seed(runs) if (v := r.figure(key)) is not None]
            for label, runs in groups.items()
        }
        shown = [label for label, found in values.items() if found]
        if shown:
            halves = [_half(values[s]) for s in shown]
            heights = [float(np.mean(values[s])) for s in shown]
            _add_bars(figure, name, COLOURS[number], shown, heights, halves, halves)
            figure.data[-1].update(x=[_wrapped(s) for s in shown], hovertemplate="%{x}: %{y}")
    if not figure.data:
        return None
    figure.update_layout(
        barmode="group",
        xaxis={"type": "category", "tickangle": 0 if len(groups) < 7 else 45, "tickfont": {"size": 10}},
        yaxis={"title": axis, "tickformat": tick},
        showlegend=len(keys) > 1,
        legend={"y": 1.02, "yanchor": "bottom"},  # below the plot are names that may be long
    )
    return Plot(title, plain(figure), note)


def _wrapped(label: str) -> str:
    """A label with one word per line."""
    return "<br>".join(safe(word) for word in label.split(" "))


def speed_and_size(records: Sequence[RunRecord]) -> Plot | None:
    """Peak memory against training speed, with a point per run."""
    figure, groups = go.Figure(), by_label(records)
    for (label, runs), colour in zip(groups.items(), colours(list(groups)).values(), strict=True):
        for record in runs:
            speed, memory = record.figure("fit/samples_per_second"), record.figure("fit/peak_memory_mb")
            if speed is None or memory is None:
                continue
            figure.add_scatter(
                x=[speed],
                y=[memory],
                mode="markers",
                marker={"color": colour, "size": 9},
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
    return Plot(
        "Speed and memory", plain(figure), "A point for each run; runs on other machines or beside others differ."
    )


def draw_run(folder: Path) -> dict[str, go.Figure]:
    """The plots of :func:`run_plots` for a run folder, by title."""
    return {plot.title: go.Figure(plot.figure) for plot in run_plots(read_run(folder))}


def run_plots(record: RunRecord) -> list[Plot]:
    """All plots of one run."""
    found = [
        _history(record),
        *_hidden_state(record.diagnostics),
        _conflict(record),
        *_gates(record.diagnostics),
        *_attention(record.diagnostics),
        roc_curves([record]),
        reliability_curves([record]),
    ]
    return [plot for plot in found if plot is not None]


def _history(record: RunRecord) -> Plot | None:
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    for number, (key, (steps, values)) in enumerate(sorted(record.curves.items())):
        if not key.startswith(_HISTORY):
            continue
        loss = key == "train/loss"
        line = {"color": _NEUTRAL if loss else COLOURS[number % len(COLOURS)], "dash": "dot" if loss else "solid"}
        name = "training loss" if loss else key.removeprefix("val/auc/")
        figure.add_scatter(x=steps, y=values, mode="lines", line=line, name=safe(name), secondary_y=loss)
    if not figure.data:
        return None
    figure.update_layout(xaxis_title="step")
    figure.update_yaxes(title_text="validation AUC", secondary_y=False)
    figure.update_yaxes(title_text="training loss", secondary_y=True, showgrid=False)
    told = " The dotted line is the training loss, on the right." if "train/loss" in record.curves else ""
    return Plot("Training", plain(figure), f"Validation AUC.{told}")


def _hidden_state(diagnostics: Mapping[str, Any]) -> list[Plot]:
    """The distribution of P(UP) and the kinds of negatives; empty for a model without a hidden state."""
    hidden = diagnostics.get("hidden")
    return [_hidden_histogram(hidden), _negatives(hidden)] if hidden else []


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
                marker_color=_PATTERNS.get(pattern, _NEUTRAL),
                opacity=0.6,
                hovertemplate="P(UP) %{x:.2f}: density %{y:.2f}",
            )
    figure.update_layout(barmode="overlay", bargap=0, xaxis={"title": "P(UP)", "range": [0, 1]}, yaxis_title="density")
    return Plot("P(UP) by what happened", plain(figure), "Test rows, by their labels; each pattern has area 1.")


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


def _heat_map(
    values: Sequence[Sequence[float | None]], lines: Sequence[str], columns: Sequence[str], **options: Any
) -> go.Figure:
    """A heat map with cell values; lines run from top to bottom."""
    texts = [["" if v is None else f"{v:.2f}" for v in line] for line in values]
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


def _gates(diagnostics: Mapping[str, Any]) -> list[Plot]:
    """One heat map per set of experts."""
    sets: dict[tuple[int, tuple[str, ...]], list[dict[str, Any]]] = {}
    for gate in diagnostics.get("gates", []):
        sets.setdefault((int(gate["level"]), tuple(gate["experts"])), []).append(gate)
    found = []
    for (level, experts), gates in sets.items():
        weights, owners = [g["weights"] for g in gates], [g["owner"] for g in gates]
        figure = _heat_map(weights, owners, experts, zmin=0, zmax=1, colorscale="Blues")
        found.append(Plot(f"Gates, level {level}", plain(figure), "Mean weight of each expert for each task."))
    return found


def _attention(diagnostics: Mapping[str, Any]) -> list[Plot]:
    return [
        Plot(
            f"Attention, {title}",
            plain(
                _heat_map(m["weights"], m["lines"], m["columns"], zmin=0, zmax=_most(m["weights"]), colorscale="Blues")
            ),
            f"Mean weights; every line sums to 1. Equal ones would be {1 / len(m['columns']):.3f}.",
        )
        for title, m in diagnostics.get("attention", {}).items()
    ]


def _most(weights: Sequence[Sequence[float]]) -> float:
    """Upper end of a colour scale that has equal weights in its middle, so uniform weights look uniform."""
    return max(2 / len(weights[0]), *(v for line in weights for v in line))


def _conflict(record: RunRecord) -> Plot | None:
    """Mean cosine between the gradients of each pair of tasks."""
    cosines = {(a, b): record.figure(f"train/conflict/cosine/{a}-{b}") for a, b in combinations(record.tasks, 2)}
    if not any(v is not None for v in cosines.values()):
        return None
    values = [[cosines.get((a, b), cosines.get((b, a))) for b in record.tasks] for a in record.tasks]
    most = max(0.05, *(abs(v) for v in cosines.values() if v is not None))  # they are small: a scale to 1 shows nothing
    figure = _heat_map(values, record.tasks, record.tasks, zmin=-most, zmax=most, colorscale="RdBu")
    share, rows = record.figure("train/conflict/share"), record.figure("train/conflict/rows")
    note = "Mean cosine of two tasks' gradients of the shared parameters."
    if share is not None and rows is not None:
        note += f" Apart: {share:.1%} of pairs in a batch, {rows:.1%} in a row."
    return Plot("Gradient conflict", plain(figure), note)


def surface_maps(cells: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Gain of the last model over each pair of axes that vary together.

    Args:
        cells: content of a comparison's ``surface.json``.
    """
    axes = list(cells[0]["cell"])
    first = {axis: cells[0]["cell"][axis] for axis in axes}
    limit = max(abs(c["rows"][-1]["differences"]["mean"]["mean"]) for c in cells) or 1e-4
    found = []
    for x, y in combinations(axes, 2):
        plane = [c for c in cells if all(c["cell"][a] == first[a] for a in axes if a not in (x, y))]
        columns, lines = (list(dict.fromkeys(str(c["cell"][axis]) for c in plane)) for axis in (x, y))
        if len(columns) < 2 or len(lines) < 2 or len(plane) < len(columns) * len(lines):
            continue
        gain = {(c["cell"][y], c["cell"][x]): c["rows"][-1]["differences"]["mean"]["mean"] for c in plane}
        values = [[gain.get((line, column)) for column in columns] for line in lines]
        figure = _heat_map(values, lines, columns, zmin=-limit, zmax=limit, colorscale="RdBu")
        figure.data[0].text = [["" if v is None else f"{v:+.4f}" for v in line] for line in values]
        figure.update_layout(xaxis={"title": safe(x), "type": "category"}, yaxis={"title": safe(y), "type": "category"})
        found.append(Plot(f"Gain in mean AUC by {x} and {y}", plain(figure), "Blue gains, red loses."))
    return found


def session_changes(content: Mapping[str, Any], measures: Sequence[str]) -> Plot:
    """Changes of a comparison's ``sessions.json`` with intervals. Random and oracle are far off and omitted.

    Args:
        content: content of the file.
        measures: measures to draw.
    """
    figure = go.Figure()
    shown = [row for row in content["rows"] if row["changes"] and row["name"] not in ("random", "oracle")]
    for row, colour in zip(shown, COLOURS[1:] * len(shown), strict=False):
        changes = [row["changes"][m] for m in measures]
        above, below = [c["high"] - c["mean"] for c in changes], [c["mean"] - c["low"] for c in changes]
        _add_bars(figure, row["name"], colour, measures, [c["mean"] for c in changes], above, below)
        figure.data[-1].hovertemplate = "%{x}: %{y:+.1%}"
    figure.update_layout(barmode="group", xaxis_type="category", yaxis={"title": "change", "tickformat": "+.0%"})
    note = "The 95 % interval joins the chance of the seed and that of the users."
    return Plot(f"Change against {content['base']}", plain(figure), note, wide=True)
