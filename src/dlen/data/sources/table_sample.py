"""A sample of a table: pieces of its files, read like the files themselves."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
import polars as pl

from dlen.data.bad_rows import BadRows
from dlen.data.raw_sample import IdCounts, RawSample
from dlen.data.sources.cells import LINE
from dlen.data.sources.raw_pieces import Taken, measure, spread, take
from dlen.data.sources.table_passes import TablePasses
from dlen.data.sources.table_paths import SPLITS
from dlen.data.sources.table_spec import TableSpec
from dlen.data.sources.table_vectors import vectors_of
from dlen.data.writer import StoreWriter
from dlen.errors import UserError
from dlen.schema import Schema


class TableSample:
    """Pieces of the files of a table. Joined tables are read as they are.

    Args:
        spec: spec of the table.
        files: files by split, or under ``all``.
        join_files: files of each join.
        bad_rows: maximum number of unreadable rows.
        folder: folder for the sampled files.
        pieces: number of pieces of all files together.
    """

    def __init__(
        self,
        spec: TableSpec,
        files: Mapping[str, list[Path]],
        join_files: dict[str, list[Path]],
        bad_rows: int,
        folder: Path,
        pieces: int,
    ) -> None:
        self.min_count = {name: field.min_count for name, field in spec.fields.items()}
        self.spec, self.join_files, self.bad = deepcopy(spec), join_files, BadRows(bad_rows)
        for field in self.spec.fields.values():
            field.min_count = 1
        self.taken: dict[Path, Taken] = {}
        self.files: dict[str, list[Path]] = {}
        self.factors: dict[str, float] = {}
        self.originals: dict[Path, Path] = {}
        measured = {split: measure(paths) for split, paths in files.items()}
        for paths, of_split in zip(files.values(), measured.values(), strict=True):
            if not any(file.pieces for file in of_split):
                raise UserError(f"{paths[0]}: has no rows")
        total = sum(file.pieces for of_split in measured.values() for file in of_split)
        self.exact = total <= pieces
        for split, of_split in measured.items():
            all_pieces = sum(file.pieces for file in of_split)
            wanted = max(round(pieces * all_pieces / total), 1)
            counts = [pieces] * len(of_split) if self.exact else spread(of_split, wanted)
            chosen = [(file, count) for file, count in zip(of_split, counts, strict=True) if count]
            self.files[split], shares = [], 0.0
            for file, count in chosen:
                # Below folders of the same names, since those of partitions are columns
                below = [part for part in file.path.absolute().parts[1:] if part != ".."]
                path = folder.joinpath(str(len(self.taken)), *below)
                taken = take(file, path, count, spec)
                self.taken[path], self.originals[path] = taken, file.path
                self.files[split].append(path)
                shares += file.pieces * taken.share
            self.factors[split] = max(all_pieces / shares, 1.0)

    def write(self, writer: StoreWriter) -> tuple[Schema, RawSample]:
        """Prepare the sample, with every id that occurs in it."""
        sampled = not self.exact
        passes = TablePasses(self.spec, self.files, self.join_files, self.bad, writer, sampled=sampled)
        with np.errstate(divide="ignore", invalid="ignore"):  # a sample may have no label of a task
            schema = passes.run()
        first = self.factors.get("all", self.factors.get("train", 1.0))
        rows = {split: self.factors.get(split, first) for split in SPLITS}
        joined = {f"vectors/{v.name}/values": 1 + v.joined for v in vectors_of(passes.columns) if v.joined}
        return schema, RawSample(rows, lambda: self._count(passes, first), joined)

    def _count(self, passes: TablePasses, factor: float) -> IdCounts:
        """Count the ids of the training rows, of which the log has ``factor`` times as many."""
        parts: dict[str, list[pl.DataFrame]] = {}
        ends = np.cumsum([len(taken.starts) for taken in self.taken.values()])
        blocks = dict(zip(self.taken, [0, *ends.tolist()], strict=False))  # before each file
        for frame, path in passes.training_rows():
            block = np.searchsorted(self.taken[path].starts, frame[LINE].to_numpy(), "right") + blocks[path]
            for column in passes.columns:
                for name, (row, values) in column.occurrences(frame, path).items():
                    of_chunk = pl.DataFrame({"value": values, "block": block[row]}).drop_nulls("value")
                    parts.setdefault(name, []).append(
                        of_chunk.group_by("value", "block").agg(pl.len().cast(pl.Int64).alias("count"))
                    )
        sums = {name: pl.concat(of_field).group_by("value", "block") for name, of_field in parts.items()}
        counts = {name: of_field.agg(pl.col("count").sum()) for name, of_field in sums.items()}
        return IdCounts(counts, dict.fromkeys(counts, factor), self.min_count)
