"""Finds the runs, comparisons and studies of a report, and reads the runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

import polars as pl

from dlen.errors import UserError, one_line
from dlen.files import read_mapping
from dlen.reports.run_labels import name_data, set_labels
from dlen.reports.run_record import RunRecord, read_run

COMPARISON, PROGRESSIVE = "table.json", "progressive.json"


@dataclass(slots=True)
class Matches:
    """What a pattern matches.

    Attributes:
        runs: run folders.
        folders: folders of each kind of result, by its file. The runs of a progressive validation are left out: each is
            tested on another day.
        names: name of each run in its comparison, by folder.
        unreadable: a line for each folder that was skipped.
    """

    runs: list[Path] = field(default_factory=list)
    folders: dict[str, list[Path]] = field(default_factory=dict)
    names: dict[Path, str] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def skip(self, folder: Path, reason: str) -> None:
        """Record that a folder is skipped."""
        self.unreadable.append(f"{folder}: is left out because it cannot be read ({reason})")


def find(patterns: str | Sequence[str], results: Iterable[str] = (COMPARISON,)) -> Matches:
    """Find every run, comparison and study that a pattern matches, or that is below a match.

    A comparison adds its own runs. Trials belong to their study and do not count as runs, unless the pattern names
    them.

    Args:
        patterns: a folder, a :mod:`glob` pattern in which ``**`` matches any folders, or several of them.
        results: files by which the folders of results other than runs are known.

    Raises:
        UserError: nothing matches.
    """
    matches = Matches()
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    tops = [top for pattern in patterns for top in _tops(pattern)]
    folders = {f.resolve(): f for top in tops for f in _folders(top)}
    matches.folders = {name: [f for f in folders.values() if (f / name).is_file()] for name in results}
    runs = {key: folder for key, folder in folders.items() if _is_run(folder)}
    for comparison in matches.folders.get(COMPARISON, []):
        for name, folder in _runs_of(comparison):
            matches.names.setdefault(folder.resolve(), name)
            if _is_run(folder):
                runs.setdefault(folder.resolve(), folder)
    matches.runs = list(runs.values())
    if not (matches.runs or any(matches.folders.values())):
        raise UserError(
            f"config runs: {', '.join(map(repr, patterns))} matches no run, comparison, study or benchmark; give "
            "a folder such as runs, or a quoted pattern such as 'runs/feed/*/*'"
        )
    return matches


def _tops(pattern: str) -> list[Path]:
    """The folder of this exact name, else the matches of the pattern; for a file, its folder."""
    names = [pattern] if Path(pattern).exists() else sorted(glob(pattern, recursive=True))  # noqa: PTH207  # may be absolute
    paths = [Path(name) for name in names]
    if "trials" not in pattern:
        paths = [p for p in paths if not any(q.name == "trials" and _is_study(q.parent) for q in (p, *p.parents))]
    return [p if p.is_dir() else p.parent for p in paths]


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "schema.json").is_file()


def _folders(top: Path) -> Iterator[Path]:
    """A folder and all folders below it that can contain results."""
    for path, names, _ in os.walk(top):
        folder = Path(path)
        yield folder
        skipped = ("trials", "workers") if _is_study(folder) else ()
        ends = _is_run(folder) or (folder / PROGRESSIVE).is_file()
        names[:] = [] if ends else sorted(n for n in names if n not in skipped and not n.startswith("."))


def _is_study(folder: Path) -> bool:
    return (folder / "study.json").is_file() or (folder / "workers").is_dir()


def _runs_of(comparison: Path) -> list[tuple[str, Path]]:
    """A comparison's runs with the names of their models; empty if the table cannot be read."""
    try:
        content = read_mapping(comparison / COMPARISON)
        by_model: dict[str, list[str]] = {}
        for name, folder in content["folders"].items():
            by_model.setdefault(str(name).rsplit(", seed ", 1)[0], []).append(Path(str(folder)).name)
    except (UserError, KeyError, TypeError, AttributeError):
        return []
    caches = [parent / "compare" / "cache" for parent in comparison.resolve().parents]
    cache = next((c for c in caches if c.is_dir()), comparison)
    return [(model, cache / folder) for model, folders in by_model.items() for folder in folders]


def read_runs(matches: Matches) -> list[RunRecord]:
    """Read every run and label it. Unreadable runs are skipped, with a line in ``matches.unreadable``."""
    records: list[RunRecord] = []
    for folder in matches.runs:
        try:
            records.append(read_run(folder, f"r{len(records)}"))
        except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, pl.exceptions.PolarsError) as e:
            matches.skip(folder, one_line(e)[:200])
    name_data(records)
    set_labels(records, matches.names)
    order = {name: i for i, name in enumerate(dict.fromkeys(matches.names.values()))}  # runs of comparisons first
    return sorted(records, key=lambda record: order.get(record.label, len(order)))
