"""Sections of a page about one comparison, from the files that compare.py writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlen.comparing.statistics import Difference
from dlen.files import read_mapping
from dlen.reports.dots import comparison_dots, difference_dots
from dlen.reports.page import Cell, Section, Table


def comparison_sections(folder: Path) -> list[Section]:
    """The table and the gains of one comparison, as written by ``compare.py``."""
    content = read_mapping(folder / "table.json")
    targets, rows = [*content["targets"], "mean"], content["rows"]
    header = ["model", *targets]
    cells: list[list[Any]] = [[row["model"], *(_mean(row["auc"][t]) for t in targets)] for row in rows]
    classes = [""] * len(cells)
    if content["oracle"]:
        cells.append(["oracle", *(content["oracle"].get(t) for t in targets)])
        classes.append("oracle")
    seeds = content["seeds"]
    note = f"AUC on the test split, mean over {len(seeds)} seed{'s' if len(seeds) > 1 else ''}."
    table = Table("", header, cells, ["", *["{:.4f}"] * len(targets)], note, classes)
    differences = {
        row["model"]: {t: Difference(**numbers_of(row["differences"][t])) for t in targets if t in row["differences"]}
        for row in rows
        if row["differences"]
    }
    intervals = "Paired differences. Error bars: 95 % interval over seeds and test rows."
    plots = [difference_dots(differences, content["base"], intervals), comparison_dots(content)]
    section = Section(f"{content['title']} ({folder.name})", [p for p in plots if p], [table])
    return [section, *_session_sections(folder)]


def _session_sections(folder: Path) -> list[Section]:
    """Feed sessions, if the comparison has them."""
    path = folder / "sessions.json"
    if not path.exists():
        return []
    content = read_mapping(path)
    measures = list(content["rows"][0]["levels"])
    rows: list[list[Cell]] = [
        [row["name"], *(row["changes"][m]["mean"] for m in measures)] for row in content["rows"] if row["changes"]
    ]
    note = f"Relative change against {content['base']}; for detested (share of impressions not liked), the difference."
    table = Table("", ["ranking", *measures], rows, ["", *["{:+.1%}"] * len(measures)], note)
    changes = {
        row["name"]: {m: Difference(**numbers_of(row["changes"][m])) for m in measures}
        for row in content["rows"]
        if row["changes"] and row["name"] not in ("random", "oracle")  # these are far off
    }
    note = "Error bars: 95 % interval over seeds and users."
    plot = difference_dots(changes, content["base"], note, "Change against", "change", "+.0%", "+.1%")
    return [Section(f"Sessions: {content['title']} ({folder.name})", [plot] if plot else [], [table])]


def numbers_of(content: dict[str, Any]) -> dict[str, Any]:
    """Replace None by nan, which JSON lacks."""
    return {key: float("nan") if value is None else value for key, value in content.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean; None without values or if one is missing."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
