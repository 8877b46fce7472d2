"""Table 2 of a comparison: effect of each ranking on interactions, stay time and page views, and where P(UP) pays."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dlen.comparing.session_policies import Sessions
from dlen.comparing.statistics import LEVEL, Difference
from dlen.comparing.tables import count_seeds, markdown_table
from dlen.files import write_csv, write_json, write_text


def sessions_markdown(sessions: Sessions) -> str:
    """The table in the paper's layout, the absolute levels, and the changes at other values of ``detest``."""
    plan = sessions.plan
    measures = list(sessions.rows[0].levels)
    caption = (
        f"{plan.users * plan.sessions:,} sessions of {plan.users:,} users, {count_seeds(sessions.seeds)} of each "
        "model; users, candidates and moods are the same for every ranking. Change against "
        f"{sessions.base}; of `detested`, the share of impressions that the user did not like, in points. "
        f"In brackets the {LEVEL:.0%} interval over seeds and users; * clear of zero."
    )
    rows = [
        [row.name, *(_change(row.changes.get(m), m) for m in measures)]
        for row in sessions.rows
        if row.name != sessions.base
    ]
    levels = [[row.name, *(_level(row.levels[m], m) for m in measures)] for row in sessions.rows]
    parts = [f"## {sessions.title}", caption, markdown_table(["ranking", *measures], rows)]
    parts += ["### Levels", markdown_table(["ranking", *measures], levels)]
    if sessions.sensitivity:
        names = list(next(iter(sessions.sensitivity.values())))
        cells = [
            [name, *(_change(by_name[name], "stay time") for by_name in sessions.sensitivity.values())]
            for name in names
        ]
        header = ["stay time", *(f"detest {d:g}" for d in sessions.sensitivity)]
        text = "Change of the stay time against the base, by how much sooner a user leaves after an item not liked."
        parts += [f"### Where P(UP) pays\n\n{text}", markdown_table(header, cells)]
    if sessions.paper:
        header = ["", *sessions.paper["changes"]]
        row = ["DLEN with P(UP), the paper's", *(f"{v:+.2f} %" for v in sessions.paper["changes"].values())]
        parts += [f"### The paper's own figures\n\n{sessions.paper['note']}.", markdown_table(header, [row])]
    return "\n\n".join(parts) + "\n"


def _change(change: Difference | None, measure: str) -> str:
    if change is None:
        return ""
    layout = "{:+.1%}" if measure != "detested" else "{:+.1f}"
    scale = 1 if measure != "detested" else 100
    mean, low, high = (layout.format(scale * v) for v in (change.mean, change.low, change.high))
    return f"{mean}{'*' if change.clear else ''} [{low}, {high}]"


def _level(value: float, measure: str) -> str:
    return f"{value:.1f} s" if measure == "stay time" else f"{value:.2f}" if measure == "page views" else f"{value:.2%}"


def write_sessions(sessions: Sessions, folder: Path) -> None:
    """Write ``sessions.md``, ``.csv`` and ``.json``; ``report.py`` reads the JSON file."""
    write_text(folder / "sessions.md", sessions_markdown(sessions))
    lines: list[tuple[Any, ...]] = []
    for row in sessions.rows:
        for measure, level in row.levels.items():
            change = row.changes.get(measure)
            figures = ("", "", "") if change is None else (change.mean, change.low, change.high)
            lines.append((row.name, measure, level, *figures))
    write_csv(folder / "sessions.csv", ["ranking", "measure", "level", "change", "low", "high"], lines)
    content = asdict(sessions)
    content["sensitivity"] = [{"detest": d, "changes": c} for d, c in content["sensitivity"].items()]
    write_json(folder / "sessions.json", content)
