"""Partitioned folders such as ``day=2026-11-24/part-0.parquet``, whose names are columns of the files in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from dlen.data.bad_rows import BadRowError
from dlen.data.sources.cells import LINE
from dlen.data.sources.expression import Expression, read_label

_ENDINGS = (".csv", ".tsv", ".tab", ".txt", ".parquet", ".pq", ".gz", ".bz2", ".xz")
_NULL = "__HIVE_DEFAULT_PARTITION__"  # Hive's name for an empty value


def partition_of(folder: str) -> tuple[str, str | None] | None:
    """Column and value of the name of a folder, as Hive and Spark write it; None for an ordinary name."""
    column, equals, value = folder.partition("=")
    if not equals or not column or folder.startswith("."):
        return None
    return unquote(column), None if value in ("", _NULL) else unquote(value)


def partitions_of(path: Path) -> dict[str, str | None]:
    """Columns and values of all folders of a path; of two with the same column, the inner one counts."""
    return dict(found for folder in path.parts[:-1] if (found := partition_of(folder)) is not None)


def label_of(path: Path, column: str) -> str:
    """What tells a file from those of other partitions: the value of a column, or of all columns, or its name."""
    values, name = {name: value or "" for name, value in partitions_of(path).items()}, path
    while name.suffix.lower() in _ENDINGS:
        name = name.with_suffix("")
    return values.get(column) or "/".join(values.values()) or name.name


def with_partitions(frame: pl.DataFrame, partitions: Mapping[str, str | None]) -> pl.DataFrame:
    """Add the columns of the folders to rows of a file."""
    return frame.with_columns(pl.lit(value, pl.String).alias(name) for name, value in partitions.items())


def selected(paths: Sequence[Path], where: Expression | None, spec: Path) -> list[Path]:
    """The files that a ``where`` does not exclude by their folders alone.

    Args:
        where: the expression that rows have to satisfy; None for all rows.
        spec: path of the YAML, for messages.
    """
    return [path for path in paths if where is None or not _excluded(path, where, spec)]


def _excluded(path: Path, where: Expression, spec: Path) -> bool:
    partitions = partitions_of(path)
    if not set(where.columns) <= set(partitions):
        return False
    row = with_partitions(pl.DataFrame({LINE: [1]}), partitions)
    try:
        return bool(read_label(row, path, "where", where, spec)[0] != 1)
    except BadRowError:
        return False  # the rows themselves tell what is wrong
