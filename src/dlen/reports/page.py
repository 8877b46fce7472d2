"""An HTML page that works offline: sections of tables and Plotly figures, drawn when they come into view."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from dlen.files import write_text

Cell = str | float | int | None


@dataclass(slots=True)
class Plot:
    """A figure with a caption.

    Attributes:
        title: title, in the caption.
        figure: ``data`` and ``layout`` of Plotly, as plain values.
        note: what the figure shows, after the title.
        wide: whether it takes the whole width.
    """

    title: str
    figure: dict[str, Any]
    note: str = ""
    wide: bool = False


@dataclass(slots=True)
class Table:
    """A sortable table.

    Attributes:
        title: title above the table.
        header: column names.
        rows: cells; numbers are sorted numerically, None is empty.
        layouts: number format of each column, such as ``{:.4f}``; "" for text.
        note: text below the title.
        classes: CSS class of each row, such as ``oracle``.
        marked: (row, column) of highlighted cells.
    """

    title: str
    header: list[str]
    rows: list[list[Cell]]
    layouts: list[str]
    note: str = ""
    classes: list[str] = field(default_factory=list)
    marked: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class Section:
    """A part of the page with its own heading.

    Attributes:
        title: title, in the heading and the navigation.
        plots: figures.
        tables: tables above the figures.
        note: text below the heading.
    """

    title: str
    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    note: str = ""

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Section:
        """Inverse of :func:`dataclasses.asdict`. Raises TypeError or KeyError for other content."""
        plots = [Plot(**plot) for plot in content["plots"]]
        return cls(content["title"], plots, [Table(**table) for table in content["tables"]], content["note"])


@dataclass(slots=True)
class RunRow:
    """One run in the page's table of runs, with the details shown when it is selected.

    Attributes:
        key: key of the run, which marks its traces (``meta.run``).
        name: name of the run.
        cells: cells of its row.
        about: a one-line description.
        plots: plots of this run only.
        config: config as YAML.
    """

    key: str
    name: str
    cells: list[Cell]
    about: str
    plots: list[Plot]
    config: str


@dataclass(slots=True)
class Runs:
    """The table of runs.

    Attributes:
        header: key, which filters use, and title of each column.
        layouts: number format of each column; "" for text.
        rows: rows of the runs.
        chosen: key of the run that is shown first.
    """

    header: list[tuple[str, str]]
    layouts: list[str]
    rows: list[RunRow]
    chosen: str


def plain(figure: go.Figure) -> dict[str, Any]:
    """A figure as plain values without a template; the page applies its own colours."""
    figure.layout.template = None
    content: dict[str, Any] = json.loads(figure.to_json())
    content["layout"].pop("template", None)
    return {"data": content["data"], "layout": content["layout"]}


def safe(text: object) -> str:
    """Escape a text for Plotly, which interprets some HTML."""
    return html.escape(str(text), quote=False)


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[Section], runs: Runs | None = None) -> None:
    """Write a page atomically.

    Args:
        path: path of the page.
        title: title of the page.
        subtitle: text below the title.
        sections: sections, in order; empty ones are skipped.
        runs: table of runs before the sections, with one run's plots after them.
    """
    kept = [s for s in sections if s.plots or s.tables or s.note]
    assets = files("dlen.reports") / "assets"
    style, script = ((assets / name).read_text() for name in ("page.css", "page.js"))
    links = [("runs", "Runs")] if runs else []
    links += [(_anchor(s.title), s.title) for s in kept]
    links += [("one-run", "One run")] if runs else []
    navigation = "".join(f'<a href="#{key}">{html.escape(name)}</a>' for key, name in links)
    body = [
        f"<header><h1>{html.escape(title)}</h1><p class=note>{html.escape(subtitle)}</p></header>",
        f'<nav><div>{navigation}<button id=theme type=button title="light or dark">&#9680;</button></div></nav><main>',
    ]
    specs: list[str] = []
    if runs:
        body.append(_runs(runs))
    for number, section in enumerate(kept):
        body.append(_section(section, number, specs))
    if runs:
        body.append(_one_run(runs, specs))
    text = "\n".join(
        [
            "<!doctype html><html lang=en><head><meta charset=utf-8>",
            '<meta name=viewport content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title><style>{style}</style></head><body>",
            *body,
            "</main>",
            *specs,
            f"<script>{get_plotlyjs()}</script><script>{script}</script></body></html>\n",
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def check(section: Section) -> None:
    """Raise what :func:`write_page` would raise for a section that was read from a file with invalid content."""
    for plot in section.plots:
        json.dumps(plot.figure, allow_nan=False)
    _section(section, 0, [])


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-") or "section"


def _spec(key: str, content: Any) -> str:
    """Data for the script, escaped so that a closing tag in a name does not end the script."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{key}">{text}</script>'


def _section(section: Section, number: int, specs: list[str]) -> str:
    parts = [f"<section id={_anchor(section.title)}><h2>{html.escape(section.title)}</h2>"]
    if section.note:
        parts.append(f"<p class=note>{html.escape(section.note)}</p>")
    parts += [_table(table) for table in section.tables]
    if section.plots:
        parts.append("<div class=plots>")
    for index, plot in enumerate(section.plots):
        key = f"figure-{number}-{index}"
        specs.append(_spec(key, plot.figure))
        caption = f"<figcaption><b>{html.escape(plot.title)}</b> {html.escape(plot.note)}</figcaption>"
        height = int(plot.figure["layout"].get("height", 380))
        place = f'<div class=plot data-figure="{key}" data-height="{height}"></div>'
        parts.append(f"<figure{' class=wide' if plot.wide else ''}>{caption}{place}</figure>")
    return "".join([*parts, "</div>" if section.plots else "", "</section>"])


def _head(header: Sequence[tuple[str, str]], layouts: Sequence[str]) -> str:
    cells = [
        f'<th scope=col data-key="{html.escape(key)}" title="{html.escape(key)}"{"" if layout else " class=text"}>'
        f"<button type=button>{html.escape(name)}</button></th>"
        for (key, name), layout in zip(header, layouts, strict=True)
    ]
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _cell(value: Cell, layout: str, *, marked: bool = False, inside: str = "") -> str:
    """A cell; numbers carry their full precision for sorting."""
    if isinstance(value, str) or (value is None and not layout):
        shown, attribute = inside or html.escape(value or ""), "" if layout else " class=text"
    else:
        missing = value is None or math.isnan(value)
        shown = "" if missing or value is None else html.escape((layout or "{}").format(value))
        number = "" if missing else str(value).replace("inf", "Infinity")  # spelled as in JavaScript
        attribute = f' data-value="{number}"' + ("" if layout else " class=text")
    return f"<td{attribute}>{f'<mark>{shown}</mark>' if marked else shown}</td>"


def _table(table: Table) -> str:
    marked = set(map(tuple, table.marked))
    lines = []
    for number, row in enumerate(table.rows):
        cells = [
            _cell(value, layout, marked=(number, column) in marked)
            for column, (value, layout) in enumerate(zip(row, table.layouts, strict=True))
        ]
        kind = table.classes[number] if number < len(table.classes) else ""
        lines.append(f'<tr class="{html.escape(kind)}">{"".join(cells)}</tr>')
    head = _head([(name.lower(), name) for name in table.header], table.layouts)
    title = f"<h3>{html.escape(table.title)}</h3>" if table.title else ""
    note = f"<p class=note>{html.escape(table.note)}</p>" if table.note else ""
    return f"{title}{note}<div class=scroll><table class=sortable>{head}<tbody>{''.join(lines)}</tbody></table></div>"


def _runs(runs: Runs) -> str:
    lines = []
    for row in runs.rows:
        link = f'<a href="#one-run" data-run="{row.key}">{html.escape(str(row.cells[0]))}</a>'
        cells = [
            _cell(value, layout, inside=link if column == 0 else "")
            for column, (value, layout) in enumerate(zip(row.cells, runs.layouts, strict=True))
        ]
        lines.append(f'<tr data-run="{row.key}">{"".join(cells)}</tr>')
    hint = (
        "A row must contain every word; model:dlen searches one column, auc>0.7 compares. The tooltip of a header is "
        "the name of its column, of which the beginning is enough."
    )
    return (
        "<section><h2>Runs</h2><div class=tools>"
        f'<input id=filter type=search placeholder="filter, such as  model:dlen auc&gt;0.7" aria-label="filter runs" '
        f'title="{html.escape(hint)}"><span id=count class=count></span></div>'
        f'<div class="scroll runs"><table class=sortable id=runs>{_head(runs.header, runs.layouts)}'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        f"<p class=note>{html.escape(hint)} Filters apply to curves as well; bars show all "
        "runs.</p></section>"
    )


def _one_run(runs: Runs, specs: list[str]) -> str:
    for row in runs.rows:
        plots = [asdict(plot) for plot in row.plots]
        specs.append(_spec(f"run-{row.key}", {"plots": plots, "about": row.about, "config": row.config}))
    options = "".join(
        f'<option value="{row.key}"{" selected" if row.key == runs.chosen else ""}>{html.escape(row.name)}</option>'
        for row in runs.rows
    )
    return (
        "<section id=one-run><h2>One run</h2><div class=tools>"
        f'<select id=run-choice aria-label="run">{options}</select></div>'
        "<p class=note id=run-about></p><div class=plots id=run-plots></div>"
        "<details><summary>Config</summary><pre id=run-config></pre></details></section>"
    )
