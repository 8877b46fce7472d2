"""progressive: for each appended day, measure a model that has not seen it, then train on it, from day to day."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from dlen.comparing.statistics import Difference, paired
from dlen.comparing.tables import markdown_table, print_markdown
from dlen.data.days import between
from dlen.data.prepare import prepare
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.files import check_links, check_writable, locked, read_figures, read_mapping, write_csv, write_json
from dlen.overrides import leaves
from dlen.progress import Stage
from dlen.targets import Targets
from dlen.training.configs import build, plain_values, settings_of
from dlen.training.fit import train
from dlen.training.run_folder import load_run_config
from dlen.training.stores import on_days_of, preparing_workers

FILE = "progressive.json"
MEASURES = ("auc", "ne", "calibration")
_START = "start"  # folder of the run that is measured on the first day
_FREE = ("days", "init_from")  # settings that may change when further days are added


def progressive(config: DictConfig) -> None:
    """Measure and train on one day after the other, and write ``progressive.json`` and ``progressive.csv``.

    Each day is a run of its own in a folder of its name: it starts from the weights of the day before, trains on the
    rows of the day once, and is tested on the day that follows. So the figures of a day are those of a model that has
    seen all days before it and nothing of it. Days that are done are not trained again.

    Args:
        config: config of ``progressive.py``.

    Raises:
        UserError: a setting is wrong, or there are no such days.
    """
    store = prepare(build(config.data, "data"), Path(config.data_dir), preparing_workers(config))
    days = between(store, *(None if v is None else str(v) for v in (config.days["from"], config.days.to)))
    folder = Path(config.run_dir or f"{config.runs_dir}/progressive/{config.data_name}/{config.model_name}")
    check_writable(folder)
    check_links(folder)
    with locked(folder / ".lock", "measuring these days"):
        _measure(config, store, days, folder)


def _measure(config: DictConfig, store: Store, days: Sequence[str], folder: Path) -> None:
    settings = {k: v for k, v in leaves(settings_of(config)) if k.split(".")[0] not in _FREE}
    _check_same(folder, settings)
    base = None if config.base_run is None else read_progressive(Path(str(config.base_run)))
    content: dict[str, Any] = {"model": config.model_name, "data": config.data_name, "seed": config.seed}
    content |= {"targets": Targets(store.schema.binary).names, "days": [], "settings": settings}
    run = folder / _START
    with Stage("progressive validation", len(days), "days") as stage:
        for trained, day in zip([None, *days], days, strict=False):
            before, run = run, run if trained is None else folder / trained.replace("/", "_")
            if (run / "metrics.json").exists():
                _check_done(config, run, trained, day)
            else:
                _run(config, store, run, before, trained, day)
            content["days"].append(_figures(run, day, content["targets"]))
            write_json(folder / FILE, content | _against(base, content))
            stage.advance(1)
    content |= _against(base, content)
    _write_csv(folder, content)
    print_markdown(described(content))
    print(f"Table: {folder}/{FILE}, progressive.csv; runs: {folder}/{_START} and one for each day but the last")


def read_progressive(folder: Path) -> dict[str, Any]:
    """Read what ``progressive.py`` has written; UserError if it is not there."""
    path = folder / FILE
    if not path.exists():
        raise UserError(f"{folder}: not a folder of progressive.py (no {FILE})")
    return read_mapping(path)


def _check_same(folder: Path, settings: dict[str, Any]) -> None:
    """Raise UserError if the days that are done were trained with other settings."""
    if not (folder / FILE).exists():
        return
    before = read_progressive(folder)["settings"]
    changed = [k for k in {**before, **settings} if before.get(k) != settings.get(k)]
    if changed:
        key = changed[0]
        raise UserError(
            f"config {key}: the days in {folder} were trained with {before.get(key)}, and it is {settings.get(key)} "
            "now; set another run_dir"
        )


def _check_done(config: DictConfig, run: Path, trained: str | None, day: str) -> None:
    """Raise UserError if a run that is done was measured on another day, or the first one starts from another run."""
    done = load_run_config(run, config.trust)
    if done.days.test != day:
        raise UserError(
            f"config days.from: {run} was measured on {done.days.test}, and it would be {day} now; set another run_dir"
        )
    if trained is None and done.init_from != config.init_from:
        raise UserError(f"config init_from: {run} starts from {done.init_from}; set another run_dir")


def _run(config: DictConfig, store: Store, folder: Path, before: Path, trained: str | None, day: str) -> None:
    """Train on a day and test on the next one; without a day, make the model that is measured on the first one."""
    run = OmegaConf.create(plain_values(config))
    run.run_dir, run.base_run = str(folder), None
    run.days = {"from": trained, "to": trained, "test": day, "validation": 0.0}
    if trained is not None:
        run.init_from, run.trainer.max_epochs = str(before), 1
    elif config.init_from is not None:
        seen = load_run_config(Path(config.init_from), config.trust).get("days") or {}
        run.days.update({key: seen.get(key) for key in ("from", "to")})
        run.trainer.max_epochs = 0
    shutil.rmtree(folder, ignore_errors=True)
    with _output_in(folder.with_name(f".{folder.name}.log"), folder / "train.log"):
        train(run, store=on_days_of(store, run))


@contextmanager
def _output_in(temporary: Path, log: Path) -> Iterator[None]:
    """Write what a run prints to a file of its folder."""
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)  # it may be a link
    with temporary.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        yield
    temporary.replace(log)


def _figures(run: Path, day: str, targets: Sequence[str]) -> dict[str, Any]:
    """The figures of a day, from the run that was tested on it."""
    metrics = read_figures(run / "metrics.json")
    figures: dict[str, Any] = {"day": day, "rows": metrics["test/rows"], "labels": metrics["data_test"]}
    return figures | {measure: {t: metrics.get(f"test/{measure}/{t}") for t in targets} for measure in MEASURES}


def _against(base: dict[str, Any] | None, content: dict[str, Any]) -> dict[str, Any]:
    """Differences in AUC from another model's on the days of both, paired by day, with an interval over the days."""
    if base is None:
        return {}
    others = {figures["day"]: figures for figures in base["days"]}
    pairs = [(figures, others[figures["day"]]) for figures in content["days"] if figures["day"] in others]
    for figures, other in pairs:
        if figures["labels"] != other["labels"]:
            raise UserError(f"config base_run: was measured on other rows of {figures['day']}; run it on the same data")
    differences: dict[str, Any] = {}
    for target in content["targets"]:
        values = [(f["auc"][target], o["auc"].get(target)) for f, o in pairs]
        known = [(ours, theirs) for ours, theirs in values if ours is not None and theirs is not None]
        if known:
            differences[target] = asdict(paired([ours for ours, _ in known], [theirs for _, theirs in known]))
    return {"base": base["model"], "differences": differences, "base_days": [other for _, other in pairs]}


def described(content: dict[str, Any]) -> str:
    """A table with a row for each day, and the differences from a base."""
    names = {"auc": "AUC", "ne": "NE", "calibration": "pred/obs"}
    targets = content["targets"]
    header = ["day", "rows", *(f"{names[m]} {t}" for m in MEASURES for t in targets)]
    rows = [
        [f["day"], f"{f['rows']:,}", *(_shown(f[m][t]) for m in MEASURES for t in targets)] for f in content["days"]
    ]
    means = [_mean([f[m][t] for f in content["days"]]) for m in MEASURES for t in targets]
    parts = [markdown_table(header, [*rows, ["mean", "", *map(_shown, means)]])]
    if differences := content.get("differences"):
        found = {target: Difference(**values) for target, values in differences.items()}
        lines = [[t, f"{d.mean:+.4f}", d.interval, str(d.seeds)] for t, d in found.items()]
        parts.append(f"Difference in AUC from {content['base']}, paired by day, with an interval over the days:")
        parts.append(markdown_table(["target", "mean", "95 %", "days"], lines))
    return "\n\n".join(parts)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _write_csv(folder: Path, content: dict[str, Any]) -> None:
    """A line for each day and target."""
    lines = [
        (figures["day"], target, figures["rows"], *(figures[measure][target] for measure in MEASURES))
        for figures in content["days"]
        for target in content["targets"]
    ]
    write_csv(folder / "progressive.csv", ["day", "target", "rows", *MEASURES], lines)
