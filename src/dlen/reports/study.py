"""A study's page, and its content as a file for reports: trials, importances, and a timeline of the workers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from dlen.checks import is_number
from dlen.files import write_json
from dlen.reports.colours import BLUE, GREEN, RED, YELLOW
from dlen.reports.comparison import comparison_sections
from dlen.reports.page import Cell, Plot, Section, Table, plain, safe, write_page
from dlen.sweeping.trial_records import (
    best_trial,
    last_value,
    mean_auc,
    params_of,
    pareto_front,
    seed_aucs,
    targets_of,
)

_RUNNING = "#bbbbbb"
_COLOURS = {"complete": BLUE, "pruned": YELLOW, "fail": RED, "running": _RUNNING, "best": GREEN}
_MOST_LINES = 12  # rows of the table of trials


def write_study(
    study: optuna.Study,
    title: str,
    trials: Sequence[FrozenTrial],
    objectives: Mapping[str, str],
    folder: Path,
    confirmation: Path | None = None,
) -> None:
    """Write ``study.html``, and ``study.json`` from which ``report.py`` draws the same sections.

    Args:
        study: study, for the importances.
        title: title of the page.
        trials: trials of the study.
        objectives: direction of each metric, by key.
        folder: folder of the study.
        confirmation: folder of the comparison of the best trial with the default, which is shown first.
    """
    plots = [Plot(name, plain(figure), wide=True) for name, figure in _figures(study, trials, objectives)]
    section = Section(f"{title} ({study.study_name})", plots, _tables(trials, objectives), _counts(trials))
    sections = [*([] if confirmation is None else comparison_sections(confirmation)), section]
    write_json(folder / "study.json", {"sections": [asdict(part) for part in sections]})
    write_page(folder / "study.html", section.title, f"study {study.study_name}", sections)


def _figures(
    study: optuna.Study, trials: Sequence[FrozenTrial], objectives: Mapping[str, str]
) -> list[tuple[str, go.Figure]]:
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    figures = [(f"History of {key}", _history(trials, i, key, way)) for i, (key, way) in enumerate(objectives.items())]
    if any(t.intermediate_values for t in trials):
        figures.append(("Validations", _validations(trials)))
    if len(complete) > 1:
        importances = _importances(study, objectives)
        figures += [("Importances", importances)] if importances else []
        figures.append(("AUC of each task by parameter", _slices(complete)))
        figures.append(("Parallel coordinates", _parallel(complete, objectives)))
    if len(objectives) > 1 and complete:
        figures.append(("Pareto front", _pareto(complete, objectives)))
    figures.append(("Workers", _timeline(trials)))
    return figures


def _state(trial: FrozenTrial) -> str:
    return trial.state.name.lower()


def _text(trial: FrozenTrial) -> str:
    lines = [f"trial {trial.number}, {_state(trial)}", *(f"{k} = {v}" for k, v in trial.params.items())]
    lines += [trial.user_attrs["reason"]] if "reason" in trial.user_attrs else []
    return "<br>".join(map(safe, lines))


def _history(trials: Sequence[FrozenTrial], index: int, key: str, direction: str) -> go.Figure:
    """Values in trial order, and the best so far."""
    figure = go.Figure()
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    figure.add_scatter(
        x=[t.number for t in complete],
        y=[t.values[index] for t in complete],
        text=[_text(t) for t in complete],
        mode="markers",
        name="complete",
        marker_color=_COLOURS["complete"],
    )
    pruned = [t for t in trials if t.state == TrialState.PRUNED and t.intermediate_values]
    if index == 0 and pruned:
        figure.add_scatter(
            x=[t.number for t in pruned],
            y=[last_value(t) for t in pruned],
            text=[_text(t) for t in pruned],
            mode="markers",
            name="pruned, last value",
            marker={"color": _COLOURS["pruned"], "symbol": "x"},
        )
    if complete:
        running = np.maximum.accumulate if direction == "maximize" else np.minimum.accumulate
        best = running([t.values[index] for t in complete])
        line = {"color": _COLOURS["best"], "shape": "hv"}
        figure.add_scatter(x=[t.number for t in complete], y=best, mode="lines", name="best so far", line=line)
    return figure.update_layout(xaxis_title="trial", yaxis_title=key)


def _validations(trials: Sequence[FrozenTrial]) -> go.Figure:
    """The reported metric of each trial by training step."""
    figure = go.Figure()
    for trial in trials:
        steps = sorted(trial.intermediate_values)
        figure.add_scatter(
            x=steps,
            y=[trial.intermediate_values[s] for s in steps],
            name=f"trial {trial.number}",
            text=_text(trial),
            line={"color": _COLOURS.get(_state(trial), _RUNNING), "width": 1},
            mode="lines+markers",
            marker_size=4,
            showlegend=False,
        )
    return figure.update_layout(xaxis_title="training step", yaxis_title="reported")


def _importances(study: optuna.Study, objectives: Mapping[str, str]) -> go.Figure | None:
    """PED-ANOVA importance of each parameter; None with too few trials or only conditional parameters."""
    figure = go.Figure()
    for index, key in enumerate(objectives):
        sign = 1 if objectives[key] == "minimize" else -1  # PED-ANOVA asks what makes a target low

        def target(trial: FrozenTrial, index: int = index, sign: int = sign) -> float:
            return sign * trial.values[index]

        try:
            with warnings.catch_warnings(category=UserWarning, action="ignore"):  # that it is so
                shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), target=target)
        except (ValueError, RuntimeError):
            return None
        figure.add_bar(x=list(shares.values()), y=list(shares), orientation="h", name=key)
    return figure.update_layout(xaxis_title="importance (PED-ANOVA)", yaxis_autorange="reversed")


def _slices(complete: Sequence[FrozenTrial]) -> go.Figure:
    """AUC of each task by each parameter: the mean over seeds, with a band from the lowest to the highest seed.

    Args:
        complete: complete trials.
    """
    tasks = targets_of(complete)
    params = params_of(complete)
    figure = make_subplots(
        max(len(tasks), 1),
        max(len(params), 1),
        shared_xaxes="columns",
        shared_yaxes="rows",
        vertical_spacing=min(0.02, 0.5 / max(len(tasks), 1)),
        horizontal_spacing=min(0.02, 0.5 / max(len(params), 1)),
    )
    for column, name in enumerate(params, 1):
        for row, task in enumerate(tasks, 1):
            _add_slice(figure, row, column, [t for t in complete if name in t.params], name, task)
        figure.update_xaxes(title_text=name, row=len(tasks), col=column)
        distributions = [t.distributions[name] for t in complete if name in t.params]
        if getattr(distributions[0], "log", False):
            figure.update_xaxes(type="log", col=column)
    for row, task in enumerate(tasks, 1):
        figure.update_yaxes(title_text=task, row=row, col=1)
    return figure.update_layout(height=220 * max(len(tasks), 1) + 80, showlegend=False)


def _add_slice(figure: go.Figure, row: int, column: int, trials: list[FrozenTrial], name: str, task: str) -> None:
    known = [(t, seed_aucs(t, task)) for t in trials]
    known = sorted(((t, v) for t, v in known if v), key=lambda pair: _sortable(pair[0].params[name]))
    if not known:
        return
    places = [t.params[name] if is_number(t.params[name]) else str(t.params[name]) for t, _ in known]
    mean = [float(np.mean(v)) for _, v in known]
    band = {
        "type": "data",
        "symmetric": False,
        "array": [max(v) - m for (_, v), m in zip(known, mean, strict=True)],
        "arrayminus": [m - min(v) for (_, v), m in zip(known, mean, strict=True)],
        "thickness": 1,
    }
    marker = {"color": _COLOURS["complete"], "size": 6}
    text = [_text(t) for t, _ in known]
    figure.add_scatter(x=places, y=mean, error_y=band, text=text, mode="markers", marker=marker, row=row, col=column)


def _sortable(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if is_number(value) else (1, 0.0, str(value))


def _parallel(complete: Sequence[FrozenTrial], objectives: Mapping[str, str]) -> go.Figure:
    """One line per trial through its parameters and values."""
    dimensions: list[dict[str, Any]] = []
    for name in params_of(complete):
        values = [t.params.get(name) for t in complete]
        if all(is_number(v) for v in values):
            dimensions.append({"label": name, "values": values})
        else:
            labels = list(dict.fromkeys(str(v) if v is not None else "-" for v in values))
            places = [labels.index(str(v) if v is not None else "-") for v in values]
            ticks = {"tickvals": list(range(len(labels))), "ticktext": labels}
            dimensions.append({"label": name, "values": places, **ticks})
    for index, key in enumerate(objectives):
        dimensions.append({"label": key, "values": [t.values[index] for t in complete]})
    colour = [t.values[0] for t in complete]
    line = {"color": colour, "colorscale": "Viridis", "showscale": True}
    return go.Figure(go.Parcoords(dimensions=dimensions, line=line))


def _pareto(complete: Sequence[FrozenTrial], objectives: Mapping[str, str]) -> go.Figure:
    """Every pair of objectives, with the trials of the Pareto front in green."""
    front = {t.number for t in pareto_front(complete, objectives)}
    colours = [_COLOURS["best"] if t.number in front else _COLOURS["complete"] for t in complete]
    keys = list(objectives)
    dimensions = [{"label": k, "values": [t.values[i] for t in complete]} for i, k in enumerate(keys)]
    figure = go.Figure(
        go.Splom(
            dimensions=dimensions,
            text=[_text(t) for t in complete],
            marker={"color": colours, "size": 6},
            diagonal_visible=False,
            showupperhalf=False,
        )
    )
    return figure.update_layout(height=200 * len(keys) + 100)


def _timeline(trials: Sequence[FrozenTrial]) -> go.Figure:
    """Trials of each worker over time, by the clocks of the workers' machines."""
    figure = go.Figure()
    known = [t for t in trials if t.datetime_start and t.datetime_complete and "worker" in t.user_attrs]
    for state in ("complete", "pruned", "fail"):
        shown = [t for t in known if _state(t) == state]
        figure.add_bar(
            base=[t.datetime_start for t in shown],
            x=[(t.datetime_complete - t.datetime_start).total_seconds() * 1000 for t in shown],  # type: ignore[operator]
            y=[t.user_attrs["worker"] for t in shown],
            text=[_text(t) for t in shown],
            textposition="none",
            orientation="h",
            name=state,
            marker={"color": _COLOURS[state], "line": {"color": "white", "width": 1}},
        )
    return figure.update_layout(barmode="overlay", xaxis_type="date")


def _counts(trials: Sequence[FrozenTrial]) -> str:
    counts = {state: sum(_state(t) == state for t in trials) for state in ("complete", "pruned", "fail")}
    steps = sum(int(t.user_attrs.get("steps", 0)) for t in trials)
    return f"{counts['complete']} complete, {counts['pruned']} pruned, {counts['fail']} failed; {steps:,} steps."


def _tables(trials: Sequence[FrozenTrial], objectives: Mapping[str, str]) -> list[Table]:
    """A table of the best trials."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    if best_trial(trials, objectives) is None:
        return []
    if len(objectives) > 1:
        ordered = sorted(complete, key=mean_auc, reverse=True)
    else:
        ordered = sorted(complete, key=lambda t: t.values[0], reverse=next(iter(objectives.values())) == "maximize")
    params = params_of(complete)
    header = ["trial", *objectives, *params, "seconds"]
    numeric = {name: all(is_number(t.params[name]) for t in complete if name in t.params) for name in params}
    layouts = ["{:d}", *["{:.4f}"] * len(objectives), *("{:.4g}" if numeric[n] else "" for n in params), "{:.0f}"]
    rows: list[list[Cell]] = [
        [t.number, *t.values, *(_cell(t, name, numeric[name]) for name in params), t.user_attrs.get("seconds")]
        for t in ordered[:_MOST_LINES]
    ]
    return [Table("Best trials, on validation", header, rows, layouts)]


def _cell(trial: FrozenTrial, name: str, numeric: bool) -> Cell:
    if name not in trial.params:
        return None
    return trial.params[name] if numeric else str(trial.params[name])
