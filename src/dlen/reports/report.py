"""report: write one page about the runs, comparisons and studies that match a pattern of folders."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dlen import __version__
from dlen.errors import UserError
from dlen.files import check_writable, read_json, read_mapping
from dlen.metric_names import own_names
from dlen.reports.benchmark import benchmark_sections
from dlen.reports.colours import COLOURS
from dlen.reports.comparison import comparison_sections
from dlen.reports.curves import learning_curves, reliability_curves, roc_curves, speed_and_size
from dlen.reports.dots import auc_dots, gains, means
from dlen.reports.heat_maps import surface_maps
from dlen.reports.page import Cell, Plot, RunRow, Runs, Section, Table, check, write_page
from dlen.reports.progressive import progressive_sections
from dlen.reports.run_labels import by_label, differing, representative
from dlen.reports.run_plots import run_plots
from dlen.reports.run_record import RunRecord
from dlen.reports.runs import COMPARISON, PROGRESSIVE, Matches, find, read_runs
from dlen.reports.workspace import build_workspace, publish

_ABOUT = (  # metrics of a run other than its AUCs, as columns of the table
    ("logloss", "logloss of all labels", "test/logloss/labels", "{:.4f}"),
    ("up_any", "AUC of P(UP), any", "test/auc/up_any", "{:.4f}"),
    ("up_truth", "AUC of P(UP), truth", "test/auc/up_truth", "{:.4f}"),
    ("conflict", "conflict in a batch", "train/conflict/share", "{:.1%}"),
    ("speed", "samples/s", "fit/samples_per_second", "{:,.0f}"),
    ("seconds", "seconds", "fit/seconds", "{:.0f}"),
    ("memory", "peak MiB", "fit/peak_memory_mb", "{:,.0f}"),
    ("steps", "steps", "fit/steps", "{:,.0f}"),
    ("parameters", "dense parameters", "model/dense_parameters", "{:,.0f}"),
)


def report(config: DictConfig) -> None:
    """Write the page.

    Args:
        config: config of ``report.py``.

    Raises:
        UserError: nothing matches, or the page cannot be written.
    """
    out = Path(config.out)
    _check_out(out)
    project = None if config.wandb is None else config.wandb.split("/")
    matches = find(config.runs if isinstance(config.runs, str) else [str(pattern) for pattern in config.runs], _KINDS)
    plots = _drawn(read_runs(matches), matches)
    records = [record for record, _ in plots]
    sections = [*_data_sections(records, str(config.base)), *_other_sections(matches)]
    if len(by_label(records)) > 1:
        sections.append(_config_section(records))
    for line in matches.unreadable:
        print(f"warning: {line}", file=sys.stderr)
    counts = Counter({"run": len(records)})
    for name, (what, _) in _KINDS.items():
        counts[what] += len(matches.folders[name])
    content = ", ".join(f"{n} {_plural(what, n)}" for what, n in counts.items() if n)
    subtitle = f"{content} of {config.runs}; dlen {__version__}, {datetime.now():%Y-%m-%d %H:%M}"
    try:
        write_page(out, "Report", subtitle, sections, _runs_table(plots) if plots else None)
    except OSError as error:
        raise UserError(f"config out: {out}: cannot be written ({error.strerror})") from None
    print(f"Report: {out} ({content})")
    if project is not None:
        if not records:
            raise UserError(f"config wandb: {config.runs} matches no run, and a workspace needs at least one")
        print(publish(build_workspace(records, *project), out.with_name("workspace.json")))


def _check_out(out: Path) -> None:
    try:
        check_writable(out.parent)
    except UserError:
        raise UserError(f"config out: folder {out.parent} cannot be written; choose another") from None
    if out.is_dir():
        raise UserError(f"config out: {out} is a folder; name a file")


def _drawn(records: Sequence[RunRecord], matches: Matches) -> list[tuple[RunRecord, list[Plot]]]:
    """The runs with valid files, with their plots. The others are skipped with a warning."""
    drawn = []
    for record in records:
        try:
            plots = run_plots(record)
            for plot in plots:
                json.dumps(plot.figure, allow_nan=False)
            drawn.append((record, plots))
        except Exception as error:  # whatever a damaged file raises
            matches.skip(record.folder, f"{type(error).__name__}: {error}")
    return drawn


def _plural(what: str, number: int) -> str:
    return what if number == 1 else {"study": "studies"}.get(what, f"{what}s")


def _runs_table(drawn: Sequence[tuple[RunRecord, list[Plot]]]) -> Runs:
    records = [record for record, _ in drawn]
    targets = list(dict.fromkeys(t for r in records for t in r.targets))
    values = list(dict.fromkeys(t for r in records for t in r.values))
    header = [("run", "run"), ("data", "data"), ("model", "model"), ("seed", "seed"), ("state", "state")]
    header += [("validation", "validation AUC"), ("auc", "mean AUC"), *((f"auc/{t}", f"AUC {t}") for t in targets)]
    own = dict.fromkeys(name for record in records for name in own_names(record.metrics, "test"))
    about = [
        (f"{m}/{t}", f"{m.upper()} {t}", f"test/{m}/{t}", "{:.5g}") for t in values for m in ("xauc", "rmse", "mae")
    ]
    about += [*_ABOUT, *((f"own/{name}", name, f"test/{name}/mean", "{:.4f}") for name in own)]
    header += [(key, name) for key, name, _, _ in about]
    layouts = ["", "", "", "{:d}", "", *["{:.4f}"] * (2 + len(targets)), *(layout for *_, layout in about)]
    rows = []
    for r, plots in sorted(drawn, key=lambda pair: (pair[0].data, pair[0].label, pair[0].seed)):
        cells: list[Cell] = [r.folder.name, r.data, r.label, r.seed, "tested" if r.metrics else "unfinished"]
        cells.append(None if math.isinf(r.selection) else r.selection)
        keys = [f"test/auc/{t}" for t in ("mean", *targets)] + [key for _, _, key, _ in about]
        cells += [r.figure(key) for key in keys]
        name = f"{r.data}, {r.label}, seed {r.seed} ({r.folder.name})"
        rows.append(RunRow(r.key, name, cells, _about(r), plots, _config_text(r)))
    shown = [r for r in records if r.diagnostics.get("hidden")] or [r for r in records if r.diagnostics] or records
    return Runs(header, layouts, rows, representative(shown).key)


def _about(record: RunRecord) -> str:
    parts = [str(record.folder), f"data {record.fingerprint}"]
    parts += [f"code {record.metrics['code']}"] if "code" in record.metrics else []
    for key, text in (("fit/precision", "precision {}"), ("fit/steps", "{} steps")):
        parts += [text.format(record.metrics[key])] if key in record.metrics else []
    undefined = [k.removeprefix("undefined/") for k in record.metrics if k.startswith("undefined/test/auc")]
    return "; ".join(parts + [f"undefined: {', '.join(undefined)}"] * bool(undefined))


def _config_text(record: RunRecord) -> str:
    return "\n".join(f"{key}: {json.dumps(value, default=str)}" for key, value in record.settings.items())


def _data_sections(records: Sequence[RunRecord], base: str) -> list[Section]:
    """Compare the runs on each data set."""
    sections = []
    for data in dict.fromkeys(r.data for r in records):
        of_data = [r for r in records if r.data == data]
        conflict = {"train/conflict/share": "in a batch", "train/conflict/rows": "in a row"}
        hidden = {
            "test/auc/up_any": "against any interaction",
            "test/auc/up_truth": "against the truth",
        }
        orders = {f"test/xauc/{t}": t for t in of_data[0].values[: len(COLOURS)]}
        plots = [
            gains(of_data, base),
            auc_dots(of_data),
            means(of_data, "XAUC", orders, "XAUC", "Pairs that a regression orders rightly; mean over seeds."),
            learning_curves(of_data),
            roc_curves(of_data),
            reliability_curves(of_data),
            means(of_data, "Hidden state", hidden, "AUC of P(UP)", "Mean over seeds."),
            means(of_data, "Gradient conflict", conflict, "task pairs apart", "Over the whole training.", ".0%"),
            means(of_data, "Speed", {"fit/samples_per_second": "samples/s"}, "training samples/s"),
            speed_and_size(of_data),
        ]
        note = "" if plots[0] is not None else f"Gains need a run with the label or model {base} (base=...)."
        sections.append(Section(f"Runs on {data}", [p for p in plots if p is not None], note=note))
    return sections


def _config_section(records: Sequence[RunRecord]) -> Section:
    """The settings in which configurations differ, with unusual values highlighted."""
    firsts: dict[tuple[str, str], RunRecord] = {}
    for record in records:
        firsts.setdefault((record.data, record.label), record)
    shown = list(firsts.values())
    several = len({r.data for r in shown}) > 1
    rows: list[list[Cell]] = []
    marked = []
    for number, key in enumerate(differing(shown)):
        values = [_shown(r.settings.get(key)) for r in shown]
        usual = Counter(values).most_common(1)[0][0]
        marked += [(number, column + 1) for column, value in enumerate(values) if value != usual]
        rows.append([key, *values])
    header = ["setting", *(f"{r.data}, {r.label}" if several else r.label for r in shown)]
    table = Table("", header, rows, [""] * len(header), marked=marked)
    note = "Settings that differ between configurations; values other than the most common one are marked."
    return Section("Config differences", tables=[table], note=note)


def _shown(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)


def _other_sections(matches: Matches) -> list[Section]:
    """Comparisons, surfaces, studies, benchmarks, progressive validations. Invalid files are skipped with a warning."""
    sections = []
    for name, folders in matches.folders.items():
        for folder in folders:
            try:
                of_folder = _KINDS[name][1](folder)
                for section in of_folder:
                    check(section)
                sections += of_folder
            except Exception as error:  # whatever a damaged file raises
                matches.skip(folder, f"{type(error).__name__}: {error}")
    return sections


def _study_sections(folder: Path) -> list[Section]:
    """The sections of ``study.html``."""
    content = read_mapping(folder / "study.json")
    return [Section.from_dict(part) for part in content["sections"]]


def _surface_sections(folder: Path) -> list[Section]:
    """The gain over a grid of data settings."""
    cells = read_json(folder / "surface.json")
    axes = list(cells[0]["cell"])
    rows: list[list[Any]] = []
    for cell in cells:
        last = cell["rows"][-1]
        gain = last["differences"]["mean"]
        positives = sum(cell["identity"]["training_positives"].values())
        figures = [positives, gain["mean"], gain["low"], gain["high"]]
        rows.append([*(str(cell["cell"][axis]) for axis in axes), *figures])
    layouts = [*[""] * len(axes), "{:,.0f}", *["{:+.4f}"] * 3]
    table = Table("", [*axes, "training positives", "gain in mean AUC", "low", "high"], rows, layouts)
    title = f"{cells[0]['title']} ({folder.name})"
    note = f"{cells[0]['rows'][-1]['model']} over {cells[0]['base']}."
    return [Section(title, surface_maps(cells), [table], note)]


_KINDS: dict[str, tuple[str, Callable[[Path], list[Section]]]] = {  # by file: what it is, and what reads its folder
    COMPARISON: ("comparison", comparison_sections),
    "surface.json": ("comparison", _surface_sections),
    "study.json": ("study", _study_sections),
    "benchmark.json": ("benchmark", benchmark_sections),
    PROGRESSIVE: ("progressive validation", progressive_sections),
}
