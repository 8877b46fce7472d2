"""Rates that a table's ids get without being asked for: those of every task, from earlier rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import polars as pl

from dlen.data.sources.expression import Expression
from dlen.data.sources.table_log import Clock, times_of
from dlen.data.sources.table_rates import RateColumn
from dlen.data.sources.table_rows import TableRows
from dlen.data.sources.table_spec import FieldSpec, RateSpec, TableSpec, names_of
from dlen.data.sources.table_split import RowSplit

_LOOKED_AT = 1 << 18  # rows of the log from which the fields are chosen
_FEWEST_IDS = 256  # a field with fewer ids has enough rows of each for its vectors to tell the same
_KNOWN = 0.25  # least share of the rows whose id occurred before


class IdRateColumn(RateColumn):
    """A rate that the YAML does not ask for, so new rows need no time: without one they come after all others."""

    @property
    def inputs(self) -> list[str]:
        return self.by

    @property
    def happened(self) -> list[str]:
        return [str(self.clock.column)]

    def notes(self) -> dict[str, str]:
        """None: the table names all of its fields at once."""
        return {}


def offered_rates(spec: TableSpec, labels: dict[str, Expression], scratch: Path | None = None) -> list[IdRateColumn]:
    """A rate of all binary tasks for each id field that may get one; see ``rates.ids`` of a table's YAML.

    They are offered only where it is known when each row happened, and only if the YAML has no ``rate`` or ``count``
    of its own.

    Args:
        spec: spec of the table.
        labels: the parsed label of each task.
        scratch: folder for intermediate files; None to restore from a store.
    """
    tasks = [name for name, task in spec.tasks.items() if not task.is_regression]
    rated = any(field.kind == "rate" for field in spec.fields.values())
    if spec.rates.ids == "none" or rated or not tasks or not _is_timed(spec, labels):
        return []
    taken = {name for entry, field in spec.fields.items() for name in names_of(entry, field)}
    offered = []
    for name, field in spec.fields.items():
        if field.kind != "id" or field.share or name == spec.position:
            continue
        rate = FieldSpec(kind="rate", side=field.side, rate=RateSpec(of=tasks, by=[name]))
        if not taken & set(names_of(f"{name}_rate", rate)):
            offered.append(IdRateColumn(f"{name}_rate", rate, spec, labels, scratch))
    return offered


def _is_timed(spec: TableSpec, labels: dict[str, Expression]) -> bool:
    """Whether it is known when each row happened. A time that is only a field may be that of something else."""
    if not spec.rates.time and (spec.split.by != "time" or len(times_of(spec)) > 1):
        return False
    time = Clock(spec).column
    return time is not None and all(time not in label.columns for label in labels.values())


def worth_a_rate(offered: Sequence[IdRateColumn], rows: TableRows, split: RowSplit) -> list[IdRateColumn]:
    """Those of the rates whose field has many ids that come again, judged by the first training rows of the log."""
    if not offered:
        return []
    ids: dict[str, set[str]] = {column.name: set() for column in offered}
    counts = dict.fromkeys(ids, 0)

    def look(file_split: str, frame: pl.DataFrame, path: Path) -> int:
        training = frame.filter(pl.Series(split.assign(frame, path, file_split) == 0))
        for column in offered:
            keys = column.keys(training, path).drop_nulls()
            counts[column.name] += len(keys)
            ids[column.name].update(keys.unique())
        return len(training)

    looked_at = 0
    for frame, path, file_split in rows.chunks("looking for ids"):
        looked_at += rows.readable(frame, path, partial(look, file_split))[1]
        if looked_at >= _LOOKED_AT:
            break
    chosen = []
    for column in offered:
        distinct, count = len(ids[column.name]), counts[column.name]
        if distinct > _FEWEST_IDS and count - distinct >= _KNOWN * count:
            chosen.append(column)
    return chosen
