"""A sample of a raw log as a source of its own, from which a dry run tells what preparing the whole log would take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import polars as pl

from dlen.data.writer import StoreWriter
from dlen.schema import Schema


@dataclass(slots=True)
class IdCounts:
    """The ids in the training rows of a sample.

    Attributes:
        counts: (value, block, count) by field with a vocabulary: how often an id is in each block of rows.
        factors: how many times as many training rows the log has, by field.
        min_count: the setting of each field.
    """

    counts: dict[str, pl.DataFrame]
    factors: dict[str, float]
    min_count: dict[str, int]


@dataclass(slots=True)
class RawSample:
    """What is known after a sample was prepared.

    Attributes:
        rows: rows of the whole log for each row of the sample, by split and group table.
        ids: counts the ids of fields with a vocabulary; those of other fields do not depend on the rows.
        most: most rows that an array of the store can have, by its name.
    """

    rows: dict[str, float]
    ids: Callable[[], IdCounts]
    most: dict[str, int] = field(default_factory=dict)


class SampledLog(Protocol):
    """A sample of a raw log.

    Attributes:
        originals: path of each sampled file, and of the file that it is a sample of.
        exact: whether the sample is the whole log.
    """

    originals: Mapping[Path, Path]
    exact: bool

    def write(self, writer: StoreWriter) -> tuple[Schema, RawSample]:
        """Prepare the sample, with every id that occurs in it."""


@runtime_checkable
class SampledSource(Protocol):
    """A source of which a sample can be prepared."""

    def sample(self, folder: Path, pieces: int) -> SampledLog:
        """Take about ``pieces`` pieces of the raw files, half a megabyte each; ``folder`` is for the sampled files."""
