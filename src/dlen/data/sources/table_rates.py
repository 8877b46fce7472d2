"""Rates and counts of a table: the history of a user, an item or a pair of them in the log before each row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import polars as pl

from dlen.data.columns import Array
from dlen.data.partitions import KeyPartitions
from dlen.data.rates import RateTable, Settings
from dlen.data.sources.cells import ROW
from dlen.data.sources.expression import Expression
from dlen.data.sources.table_log import LogColumn
from dlen.data.sources.table_spec import FieldSpec, TableSpec, names_of
from dlen.data.writer import StoreWriter
from dlen.schema import Field, Kind

if TYPE_CHECKING:  # processes that prepare a piece of the log import no torch, which takes a second
    from dlen.data.store import Store

_ROUNDING = 1e-5  # of counts in 32 bits


class RateColumn(LogColumn):
    """A ``rate`` of a table's YAML, as one number per label; or a ``count``, as the standardised count of rows.

    A rate comes without the count, which beside it costs more than it brings on logs that do not change over time, and
    is even on others (docs/log.md).

    Args:
        name: name of the field.
        spec: settings of the field.
        table: spec of the whole table.
        labels: the parsed label of each task.
        scratch: folder for intermediate files; None to restore from a store.
    """

    def __init__(
        self,
        name: str,
        spec: FieldSpec,
        table: TableSpec,
        labels: dict[str, Expression],
        scratch: Path | None = None,
    ) -> None:
        rate = spec.rate if spec.rate is not None else spec.count
        assert rate is not None
        super().__init__(name, spec, table, labels, rate.by, rate.of)
        self.of = rate.of
        settings = Settings(len(self.of), self.clock.timed, rate.smoothing, table.rates.rows == "train")
        self.table = RateTable(settings, None if scratch is None else scratch / f"rate-{name}")
        self._training = 0  # training rows
        self._features: Array | None = None
        self._restored = False

    def show(self, frame: pl.DataFrame, path: Path, where: Array, labels: Array, observed: Array) -> None:
        """Add rows of every split, with labels (n, T) and whether each label counts."""
        if self._restored and not self.clock.timed:  # no row but a training row counts, and none of these is one
            return
        row = self.numbered(frame)
        when = self.clock.periods(frame, path) if self.clock.timed else self.clock.folds(row)
        counted = [self.label(of, frame, path, labels, observed) for of in self.of]
        shape = (len(self.of), len(frame))
        self.table.add(
            row,
            self.keys(frame, path),
            when,
            where == 0,
            np.array([label for label, _ in counted], np.uint8).reshape(shape).T,
            np.array([known for _, known in counted], bool).reshape(shape).T,
        )
        self._training += int((where == 0).sum())

    @property
    def partitions(self) -> KeyPartitions:
        return self.table.partitions

    def merge(self, other: Self) -> None:
        super().merge(other)
        self.table.merge(other.table)
        self._training += other._training

    def freeze(self, writer: StoreWriter) -> None:
        """Count the rows, then scale by mean and deviation of the training rows."""
        self._count(writer)
        # A lift is already centred and in log-odds. Only the count is scaled, with statistics independent of labels.
        rows = max(self._training, 1)  # a split without training rows is reported later
        mean = self.table.count_sum / rows
        deviation = max(self.table.count_squares / rows - mean**2, 0.0) ** 0.5
        self.mean, self.deviation = np.zeros(len(self.of) + 1), np.ones(len(self.of) + 1)
        self.mean[-1] = mean
        if deviation > _ROUNDING * max(mean, 1.0):
            self.deviation[-1] = deviation
        for place, name in self._outputs():
            statistics = {"mean": float(self.mean[place]), "deviation": float(self.deviation[place])}
            output = "count" if place == len(self.of) else str(place)
            key = {"by": self.names, "separators": self.separators}
            writer.statistics[name] = statistics | {"rate": {"history": self.name, "output": output, **key}}

    def extend(self, writer: StoreWriter) -> None:
        """Count the rows of an appended day after those of the store, whose scale stays."""
        if self.clock.timed:
            self._count(writer)

    def _count(self, writer: StoreWriter) -> None:
        self._features = self.table.finish(self.rows, writer.history(self.name))
        writer.histories[self.name] = {**self.table.kept(), "dated": self.clock.rising.dated}

    def notes(self) -> dict[str, str]:
        origin = "earlier rows" if self.clock.timed else f"{self.clock.spec.folds} folds"
        return {f"rate_of_{self.name}": f"by {', '.join(self.by)}, from {origin}"}

    def restore(self, store: Store) -> None:
        self._restored = True
        self.table.restore(store.content["histories"][self.name], store.histories(self.name))
        self.clock.rising.dated = store.content["histories"][self.name]["dated"]
        self.mean, self.deviation = np.zeros(len(self.of) + 1), np.ones(len(self.of) + 1)
        for place, name in self._outputs():
            statistics = store.content["statistics"][name]
            self.mean[place], self.deviation[place] = statistics["mean"], statistics["deviation"]

    def fields(self) -> list[Field]:
        """One number per label, or one for the count."""
        return [Field(name, Kind.NUMERIC, self.spec.side) for _, name in self._outputs()]

    def numbers(self, frame: pl.DataFrame, path: Path) -> list[Array]:
        """Features of rows passed to :meth:`show`, or of new rows after :meth:`restore`."""
        if self._features is not None:
            features = self._features[frame[ROW].to_numpy()]
        else:
            when = self.clock.periods(frame, path, new=True) if self.clock.timed else None
            features = self.table.features(self.keys(frame, path), when)
        scaled = (features - self.mean) / self.deviation
        return [scaled[:, place] for place, _ in self._outputs()]

    def _outputs(self) -> list[tuple[int, str]]:
        """Feature index and name of each number: the labels of a rate, or the count."""
        return list(enumerate(names_of(self.name, self.spec)))
