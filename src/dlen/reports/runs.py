"""Read run folders for a report: metrics, curves and config of each, and which runs have the same settings."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

import polars as pl

from dlen.checks import is_number
from dlen.errors import UserError
from dlen.files import check_regular, read_figures, read_mapping, read_yaml
from dlen.overrides import leaves

_CURVES = ("val/auc/", "val/logloss/labels", "train/loss", "train/conflict/share", "train/conflict/rows")
# Settings in which two runs of one configuration may differ: the seed and the locations of files.
_FREE = ("seed", "run_dir", "runs_dir", "data_dir", "ckpt", "base_run", "logger", "metrics.scores", "trust")
_MOST_KEYS = 3  # in a label
_LOG_BYTES = 1 << 28  # of a log; a thousand validations take a million
_PART = re.compile(r"^model\.((embedding|backbone|head)\.)?")  # prefix that labels omit


@dataclass(slots=True)
class RunRecord:
    """One run folder.

    Attributes:
        key: key on the page.
        folder: run folder.
        metrics: content of ``metrics.json``; empty before the run has ended.
        settings: all config values, by dotted key.
        data: name of the data set, followed by its fingerprint if several data sets have this name.
        fingerprint: fingerprint of the data.
        tasks: task names.
        targets: tasks and joint events.
        curves: steps and values of the drawn curves, by key.
        logged: all logged keys.
        diagnostics: diagnostics of the test split; empty if the run has none.
        seed: seed of weights and training order.
        written: when its config was written, in seconds since the epoch.
        label: short description of the settings, the same for all seeds.
    """

    key: str
    folder: Path
    metrics: dict[str, Any]
    settings: dict[str, Any]
    data: str
    fingerprint: str
    tasks: list[str]
    targets: list[str]
    curves: dict[str, tuple[list[int], list[float]]]
    logged: list[str]
    diagnostics: dict[str, Any]
    seed: int
    written: float
    label: str = ""

    @property
    def model(self) -> str:
        """Name of the model's config."""
        return str(self.settings.get("model_name", "model"))

    @property
    def selection(self) -> float:
        """Best validation AUC, used to choose among seeds; minus infinity if there is none."""
        value = self.figure("val/auc/mean")
        curve = self.curves.get("val/auc/mean", ([], []))[1]
        return value if value is not None else max(curve, default=float("-inf"))

    def figure(self, key: str) -> float | None:
        """A number of ``metrics.json``; None if it is undefined or missing."""
        value = self.metrics.get(key)
        return float(value) if is_number(value) else None


@dataclass(slots=True)
class Found:
    """What a pattern matches.

    Attributes:
        runs: run folders.
        comparisons: folders of comparisons.
        surfaces: folders of comparisons over a grid.
        studies: folders of studies.
        names: name of each run in its comparison, by folder.
        unreadable: a line for each folder that was skipped.
    """

    runs: list[Path] = field(default_factory=list)
    comparisons: list[Path] = field(default_factory=list)
    surfaces: list[Path] = field(default_factory=list)
    studies: list[Path] = field(default_factory=list)
    names: dict[Path, str] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)


def find(patterns: str | Sequence[str]) -> Found:
    """Find every run, comparison and study that a pattern matches, or that is below a match.

    A comparison adds its own runs. Trials belong to their study and do not count as runs, unless the pattern names
    them.

    Args:
        patterns: a folder, a :mod:`glob` pattern in which ``**`` matches any folders, or several of them.

    Raises:
        UserError: nothing matches.
    """
    found = Found()
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    matches = [match for pattern in patterns for match in _matches(pattern)]
    folders = {f.resolve(): f for match in matches for f in _folders(match)}
    for folder in folders.values():
        for name, group in (
            ("table.json", found.comparisons),
            ("surface.json", found.surfaces),
            ("study.json", found.studies),
        ):
            if (folder / name).is_file():
                group.append(folder)
    runs = {key: folder for key, folder in folders.items() if _is_run(folder)}
    for comparison in found.comparisons:
        for name, folder in _runs_of(comparison):
            found.names.setdefault(folder.resolve(), name)
            if _is_run(folder):
                runs.setdefault(folder.resolve(), folder)
    found.runs = list(runs.values())
    if not (found.runs or found.comparisons or found.surfaces or found.studies):
        raise UserError(
            f"config runs: {', '.join(map(repr, patterns))} matches no run, comparison or study; give a folder such as "
            "runs, or a quoted pattern such as 'runs/feed/*/*'"
        )
    return found


def _matches(pattern: str) -> list[Path]:
    """The folder of this exact name, else the matches of the pattern; for a file, its folder."""
    names = [pattern] if Path(pattern).exists() else sorted(glob(pattern, recursive=True))  # noqa: PTH207  # may be absolute
    found = [Path(name) for name in names]
    if "trials" not in pattern:
        found = [m for m in found if not any(p.name == "trials" and _is_study(p.parent) for p in (m, *m.parents))]
    return [m if m.is_dir() else m.parent for m in found]


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "schema.json").is_file()


def _folders(top: Path) -> Iterator[Path]:
    """A folder and all folders below it that can contain results."""
    for path, names, _ in os.walk(top):
        folder = Path(path)
        yield folder
        skipped = ("trials", "workers") if _is_study(folder) else ()
        names[:] = [] if _is_run(folder) else sorted(n for n in names if n not in skipped and not n.startswith("."))


def _is_study(folder: Path) -> bool:
    return (folder / "study.json").is_file() or (folder / "workers").is_dir()


def _runs_of(comparison: Path) -> list[tuple[str, Path]]:
    """A comparison's runs with the names of their models; empty if the table cannot be read."""
    try:
        content = read_mapping(comparison / "table.json")
        named = {str(name).rsplit(", seed ", 1)[0]: [] for name in content["folders"]}  # type: dict[str, list[str]]
        for name, folder in content["folders"].items():
            named[str(name).rsplit(", seed ", 1)[0]].append(Path(str(folder)).name)
    except (UserError, KeyError, TypeError, AttributeError):
        return []
    caches = [parent / "compare" / "cache" for parent in comparison.resolve().parents]
    cache = next((c for c in caches if c.is_dir()), comparison)
    return [(name, cache / folder) for name, folders in named.items() for folder in folders]


def read_runs(found: Found) -> list[RunRecord]:
    """Read every run. Unreadable runs are skipped, with a line in ``found.unreadable``.

    Returns:
        The runs, labelled.
    """
    records: list[RunRecord] = []
    for folder in found.runs:
        try:
            records.append(read_run(folder, f"r{len(records)}"))
        except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, pl.exceptions.PolarsError) as e:
            found.unreadable.append(f"{folder}: is left out, as it cannot be read ({' '.join(str(e).split())[:200]})")
    _name_data(records)
    _label(records, found.names)
    order = {name: i for i, name in enumerate(dict.fromkeys(found.names.values()))}  # runs of comparisons first
    return sorted(records, key=lambda record: order.get(record.label, len(order)))


def read_run(folder: Path, key: str = "") -> RunRecord:
    """Read one run folder, without a label.

    Raises:
        UserError, OSError, ValueError, KeyError, TypeError, AttributeError, PolarsError: a file is missing or broken.
    """
    config = read_yaml(folder / "config.yaml")
    schema = read_mapping(folder / "schema.json")
    tasks = [str(task["name"]) for task in schema["tasks"]]
    targets = [*tasks, *(str(task["joint"]) for task in schema["tasks"] if task.get("joint"))]
    curves, logged = _read_logs(folder / "logs" / "metrics.csv")
    return RunRecord(
        key,
        folder,
        _found(folder / "metrics.json", read_figures),
        dict(leaves(config)),
        str(config["data_name"]),
        str(schema["fingerprint"]),
        tasks,
        targets,
        curves,
        logged,
        _found(folder / "diagnostics_test.json", read_mapping),
        int(config["seed"]),
        (folder / "config.yaml").stat().st_mtime,
    )


def _found(path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Read a mapping; empty if there is no file."""
    return read(path) if path.exists() else {}


def _read_logs(path: Path) -> tuple[dict[str, tuple[list[int], list[float]]], list[str]]:
    """Steps and values of the logged keys that are drawn, and all logged keys."""
    if not path.exists():
        return {}, []
    if check_regular(path) > _LOG_BYTES:
        raise UserError(f"{path}: is larger than {_LOG_BYTES:,} bytes, which no log of a run is")
    frame = pl.read_csv(path, infer_schema=False, glob=False)
    if "step" not in frame.columns:
        return {}, []
    curves = {}
    for column in frame.columns:
        if column.startswith(_CURVES):
            pair = frame.select(
                pl.col("step").cast(pl.Int64, strict=False), value=pl.col(column).cast(pl.Float64, strict=False)
            ).drop_nulls()
            pair = pair.filter(pl.col("value").is_finite()).sort("step", maintain_order=True)
            if len(pair):
                curves[column] = (pair["step"].to_list(), pair["value"].to_list())
    return curves, [column for column in frame.columns if column not in ("step", "epoch")]


def _name_data(records: Sequence[RunRecord]) -> None:
    """Add the fingerprint to the names of different data sets that share a name."""
    contents: dict[str, set[str]] = {}
    for record in records:
        contents.setdefault(record.data, set()).add(record.fingerprint)
    for record in records:
        if len(contents[record.data]) > 1:
            record.data = f"{record.data} {record.fingerprint[:6]}"


def identity(record: RunRecord) -> dict[str, Any]:
    """The settings shared by all seeds of one configuration."""
    return {k: v for k, v in record.settings.items() if not k.startswith(_FREE)}


def _label(records: Sequence[RunRecord], names: Mapping[Path, str]) -> None:
    """Label each configuration by its name in a comparison, or by its model and the settings in which it differs."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        settings = {k: v for k, v in identity(record).items() if k != "model_name"}
        groups.setdefault(json.dumps([record.fingerprint, settings], sort_keys=True, default=str), []).append(record)
    alike: dict[tuple[str, str], list[RunRecord]] = {}
    for group in groups.values():
        alike.setdefault((group[0].data, group[0].model), []).append(group[0])
    described = {
        first.key: text for firsts in alike.values() for first, text in zip(firsts, _described(firsts), strict=True)
    }
    taken: dict[tuple[str, str], int] = {}
    for group in groups.values():
        first = group[0]
        named = next((names[r.folder.resolve()] for r in group if r.folder.resolve() in names), None)
        label = named or described[first.key]
        number = taken[first.data, label] = taken.get((first.data, label), 0) + 1
        for record in group:
            record.label = label if number == 1 else f"{label} #{number}"


def _described(alike: Sequence[RunRecord]) -> list[str]:
    """Describe configurations of one model by its name and the settings in which each differs from the majority."""
    shown: list[list[str]] = [[] for _ in alike]
    for key in differing(alike):
        part = key.removesuffix("._target_")
        everywhere = all(key in record.settings for record in alike)
        if key.endswith("._partial_") or (part == key and not everywhere):
            continue  # the name of the part already implies settings that only some parts have
        values = [record.settings.get(key) for record in alike]
        written = [json.dumps(value, default=str) for value in values]
        usual, count = Counter(written).most_common(1)[0]
        for own, value, text in zip(shown, values, written, strict=True):
            if text != usual or 2 * count <= len(values):
                own.append(f"{_PART.sub('', part)}={_short(value)}")
    return [" ".join([r.model, *own[:_MOST_KEYS], *_more(own)]) for r, own in zip(alike, shown, strict=True)]


def _more(settings: Sequence[str]) -> list[str]:
    """The number of settings that a label omits."""
    return [f"+{len(settings) - _MOST_KEYS}"] if len(settings) > _MOST_KEYS else []


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "-".join(map(str, value))
    return (
        str(value).rsplit(".", 1)[-1].removesuffix("Backbone").removesuffix("Head")
        if "dlen." in str(value)
        else str(value)
    )


def differing(records: Sequence[RunRecord]) -> list[str]:
    """Keys of the settings in which configurations differ, those of the model first."""
    every = [identity(record) for record in records]
    keys = list(dict.fromkeys(key for settings in every for key in settings))
    found = [key for key in keys if len({json.dumps(s.get(key), default=str) for s in every}) > 1]
    return sorted(found, key=lambda key: not key.startswith("model"))
