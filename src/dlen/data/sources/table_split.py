"""Assigns the rows of a table to train, validation and test."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import polars as pl

from dlen.data.bad_rows import BadRowError
from dlen.data.columns import Array
from dlen.data.sample import Sample
from dlen.data.sources.cells import LINE, Rising, hashes, id_text, moments
from dlen.data.sources.table_paths import SPLITS
from dlen.data.sources.table_spec import TableSpec
from dlen.errors import UserError
from dlen.hashing import fraction
from dlen.valid import did_you_mean

_TWO_FORMS = "holds {now} here and {then} in {other}, so rows have no order; write the column in one form"


class RowSplit:
    """How rows are split.

    Args:
        spec: spec of the table.
        files: files by split, or under ``all``.

    Attributes:
        names: names of the splits.
    """

    names: tuple[str, ...] = SPLITS

    def __init__(self, spec: TableSpec, files: dict[str, list[Path]]) -> None:
        self.spec, self.path = spec.split, spec.path
        self._by_files = set(files) == set(SPLITS)
        self._has_test = "test" in files
        self._file_numbers = {p: n for n, p in enumerate(p for paths in files.values() for p in paths)}
        self._rising = Rising(spec.split.column, _TWO_FORMS)
        self._sample, self._boundaries = Sample(), np.zeros(0)
        self._seen_values: set[str] = set()

    def needs_times(self) -> bool:
        """Whether :meth:`look` has to see all rows to find the start of validation and of test."""
        if self.spec.by != "time" or self._by_files:
            return False
        if self.spec.test_from is not None:
            starts = [self._start("validation_from"), self._start("test_from")]
            if starts[0] > starts[1]:
                raise UserError(
                    f"{self.path}: split.validation_from: {self.spec.validation_from} is later than test_from, "
                    f"{self.spec.test_from}"
                )
            self._boundaries = np.array(starts)
            return False
        return True

    def look(self, frame: pl.DataFrame, path: Path, file_split: str) -> None:
        """Look at the times of rows."""
        if file_split != "test":
            self._sample.add(self._times(frame, path))

    def agrees(self, other: RowSplit) -> bool:
        """Whether another one found times of the same form in the rows that follow."""
        return self._rising.agrees(other._rising)

    def merge(self, other: RowSplit) -> None:
        """Add what another one found in the rows that follow."""
        self._rising.merge(other._rising)
        self._sample.merge(other._sample)
        self._seen_values |= other._seen_values

    def set_boundaries(self) -> None:
        """Find the start of validation and of test."""
        times, self._sample = self._sample.sorted(), Sample()
        test = 0.0 if self._has_test else self.spec.test
        places = [round(len(times) * (1 - self.spec.validation - test)), round(len(times) * (1 - test))]
        self._boundaries = np.array([times[p] if p < len(times) else np.inf for p in places], np.float64)

    def _start(self, key: str) -> float:
        """Start of a split in units of the column: a number, or microseconds for a time."""
        value = getattr(self.spec, key)
        if isinstance(value, str | date):
            frame = pl.DataFrame({LINE: [0], key: [value.isoformat() if isinstance(value, date) else value]})
            try:
                return float(moments(frame, key, self.path)[0])
            except BadRowError as error:
                raise UserError(f"{self.path}: split.{key}: {error.problem.partition(': ')[2]}") from None
        return float(value)

    def _times(self, frame: pl.DataFrame, path: Path) -> Array:
        spec = self.spec
        values, dated = self._rising.read(frame, path)
        if spec.test_from is not None and dated != isinstance(spec.test_from, str | date):
            kind, example = ("times", "2023-11-14") if dated else ("numbers", "1700000000")
            raise UserError(
                f"{self.path}: split.test_from: {spec.test_from!r} cannot be compared with column {spec.column} of "
                f"{path.name}, which holds {kind}; write test_from and validation_from like {example}"
            )
        if values.null_count():
            lines = frame.filter(values.is_null())[LINE].to_list()
            raise BadRowError(path, lines, f"column {spec.column}: is empty, but split.by: time needs it in every row")
        return values.to_numpy()

    def assign(self, frame: pl.DataFrame, path: Path, file_split: str) -> Array:
        """(n,) 0 for train, 1 for validation, 2 for test."""
        spec = self.spec
        if file_split == "test" or self._by_files:
            return np.full(len(frame), SPLITS.index(file_split))
        if spec.by == "column":
            cells = id_text(frame[spec.column], path)
            self._seen_values |= set(cells.unique().drop_nulls())
            validation, test = (
                cells.is_in(values).fill_null(False).to_numpy() for values in (spec.validation, spec.test)
            )
            return np.where(test, 2, np.where(validation, 1, 0))
        if spec.by == "time":
            place = np.searchsorted(self._boundaries, self._times(frame, path), side="right")
            return np.minimum(place, 2 if file_split == "all" else 1)
        # Each row is assigned separately, including rows without a value of the column: they do not form a group.
        keys = frame[LINE].to_numpy().astype(np.int64) + (self._file_numbers[path] << 40)
        if spec.by == "hash":
            cells = id_text(frame[spec.column], path)
            keys = np.where(cells.is_null(), keys, (hashes(cells.fill_null("")) >> np.uint64(1)).astype(np.int64))
        where = fraction(keys, spec.seed)
        test_share = spec.test if file_split == "all" else 0.0
        return np.where(where < test_share, 2, np.where(where < test_share + spec.validation, 1, 0))

    def check_values(self) -> None:
        """Raise UserError for a value listed in a split by column that occurs in no row."""
        spec = self.spec
        if spec.by != "column" or self._by_files:
            return
        for key in ("validation",) if self._has_test else ("validation", "test"):
            for value in getattr(spec, key):
                if value not in self._seen_values:
                    hint = did_you_mean(value, self._seen_values)
                    raise UserError(f"{self.path}: split.{key}: {value!r} is in no row of column {spec.column}{hint}")
