"""Sections of a page about one progressive validation, from the file that progressive.py writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plotly.subplots import make_subplots

from dlen.comparing.statistics import Difference
from dlen.files import read_mapping
from dlen.reports.colours import NEUTRAL, colours_of
from dlen.reports.comparison import numbers_of
from dlen.reports.dots import difference_dots
from dlen.reports.page import Cell, Plot, Section, Table, plain, safe

_MEASURES = {"auc": "AUC", "ne": "normalised entropy", "calibration": "predicted / observed"}
_HEIGHT = 260  # of a row of panels, in pixels


def progressive_sections(folder: Path) -> list[Section]:
    """The figures of each day, as curves and as a table, and the differences from the base."""
    content = read_mapping(folder / "progressive.json")
    days, targets = content["days"], content["targets"]
    columns = [(measure, target) for measure in _MEASURES for target in targets]
    rows: list[list[Cell]] = [[d["day"], d["rows"], *(d[m][t] for m, t in columns)] for d in days]
    header = ["day", "rows", *(f"{_MEASURES[measure]} {target}" for measure, target in columns)]
    table = Table("", header, rows, ["", "{:,.0f}", *["{:.4f}"] * len(columns)])
    plots = [_curves(content)]
    differences = {t: Difference(**numbers_of(d)) for t, d in content.get("differences", {}).items()}
    if differences:
        note = "Differences in AUC, paired by day. Error bars: 95 % interval over the days."
        plots += [p for p in [difference_dots({content["model"]: differences}, content["base"], note)] if p]
    note = "The figures of a day are those of the model before it trains on the day."
    title = f"Progressive validation: {content['model']} on {content['data']} ({folder.name})"
    return [Section(title, plots, [table], note)]


def _curves(content: dict[str, Any]) -> Plot:
    """A row of panels for each measure, with a panel for each target."""
    targets, lines = content["targets"], {content["model"]: content["days"]}
    if content.get("base_days"):
        lines[f"{content['base']}, the base"] = content["base_days"]
    titles = [f"{name} {target}" for name in _MEASURES.values() for target in targets]
    figure = make_subplots(len(_MEASURES), len(targets), subplot_titles=[safe(title) for title in titles])
    for (label, days), colour in zip(lines.items(), colours_of(list(lines)).values(), strict=True):
        for row, measure in enumerate(_MEASURES, 1):
            for column, target in enumerate(targets, 1):
                figure.add_scatter(
                    x=[safe(d["day"]) for d in days],
                    y=[d[measure][target] for d in days],
                    mode="lines+markers",
                    line={"color": colour, "width": 1.5},
                    marker={"color": colour, "size": 5},
                    name=safe(label),
                    legendgroup=label,
                    showlegend=row == column == 1,
                    hovertemplate=f"{safe(label)}<br>%{{x}}: %{{y:.4f}}<extra></extra>",
                    row=row,
                    col=column,
                )
    figure.add_hline(1, line={"color": NEUTRAL, "dash": "dot", "width": 1}, row=len(_MEASURES), col="all")
    figure.update_xaxes(type="category")
    figure.update_layout(height=_HEIGHT * len(_MEASURES) + 90)
    return Plot("Day by day", plain(figure), "One point per day.", wide=True)
