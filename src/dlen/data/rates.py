"""Point-in-time rates: how often a label was 1 for a key, as known before each row.

With a time, a row sees only rows of strictly earlier periods. Without a time, a training row sees the training rows
of other folds, and any other row sees all training rows. A row's own label never enters its features, nor does the
label of a later row.

Rows are first partitioned by key on disk and then counted one partition at a time, so memory depends on the size of a
partition and not of the log. All rows of a key are in the same partition.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from dlen.data.columns import Array
from dlen.data.partitions import KeyPartitions, key_codes, read_partition
from dlen.data.sample import Sample

if TYPE_CHECKING:  # processes that prepare a piece of the log import no torch, which takes a second
    from dlen.data.store import Store

_BINS = 1024  # maximum number of period bins for the rate over all keys


@dataclass(frozen=True, slots=True)
class Settings:
    """How rates are computed.

    Attributes:
        targets: T, the number of counted labels.
        timed: whether rows have a period; otherwise they have a fold.
        smoothing: m, the weight of the rate over all keys, in rows.
        training_only: count only labels of training rows instead of labels of all earlier rows.
    """

    targets: int
    timed: bool
    smoothing: float
    training_only: bool


def lift(positives: Array, rows: Array, all_positives: Array, all_rows: Array, smoothing: float) -> Array:
    """Log-odds of a key's smoothed rate minus log-odds of the rate over all keys; 0 for a key without rows.

        logit((s + m p) / (n + m)) - logit(p),    p = (S + 1) / (N + 2)

    The difference stays comparable if the overall rate drifts, or if it is estimated from few rows.

    Args:
        positives: s, positives of the key.
        rows: n, rows of the key.
        all_positives: S, positives of all keys.
        all_rows: N, rows of all keys.
        smoothing: m, above 0.
    """
    p = (all_positives + 1) / (all_rows + 2)
    rate = (positives + smoothing * p) / (rows + smoothing)
    return np.log(rate / (1 - rate)) - np.log(p / (1 - p))


class RateTable:
    """The history of one kind of key. Add all rows first, then query features of these rows and of new ones.

    The sums are the number of rows n, then for each label the rows for which it is observed, then those for which it is
    1. After :meth:`restore`, the added rows continue the stored history: they see it as if all rows had been added at
    once, and only the sums of their own keys are read and written.

    Args:
        settings: how rates are computed.
        scratch: a folder that does not exist yet; None if no rows are added.

    Attributes:
        count_sum: sum of the last feature, log(1 + n), over the training rows, available after counting.
        count_squares: sum of its squares.
    """

    def __init__(self, settings: Settings, scratch: Path | None = None) -> None:
        self.settings, self.scratch = settings, scratch
        self.sums = ["n", *(f"{kind}{t}" for kind in "ns" for t in range(settings.targets))]
        self._partitions = None if scratch is None else KeyPartitions(scratch, "counting rates")
        self._sample, self._last = Sample(), -np.inf
        self._before: list[Path] = []  # stored histories that the added rows continue
        self.count_sum = self.count_squares = 0.0

    def add(self, row: Array, keys: pl.Series, when: Array, training: Array, labels: Array, observed: Array) -> None:
        """Add n rows.

        Args:
            row: (n,) unique row numbers.
            keys: (n,) text; null if a row has no key and therefore no history.
            when: (n,) periods, or fold numbers starting at 0.
            training: (n,) whether each row is a training row.
            labels: (n, T) 0 or 1.
            observed: (n, T) whether each label counts.
        """
        only = self.settings.training_only or not self.settings.timed
        counted = training.astype(bool) if only else np.ones(len(row), bool)
        counts = {f"n{t}": observed[:, t] & counted for t in range(self.settings.targets)}
        counts |= {f"s{t}": counts[f"n{t}"] & (labels[:, t] == 1) for t in range(self.settings.targets)}
        columns = {"row": row.astype(np.int64), "key": keys, "when": np.asarray(when, np.float64)}
        frame = pl.DataFrame({**columns, "training": training.astype(bool), "n": counted, **counts})
        frame = frame.filter(pl.col("key").is_not_null())
        self._sample.add(frame["when"].to_numpy())
        self._last = max(self._last, float(frame["when"].to_numpy().max(initial=-np.inf)))
        self.partitions.add(frame)

    @property
    def partitions(self) -> KeyPartitions:
        """The rows that were added."""
        assert self._partitions is not None
        return self._partitions

    def merge(self, other: RateTable) -> None:
        """Add the times of the rows of another table, besides its partitions."""
        self._sample.merge(other._sample)
        self._last = max(self._last, other._last)

    def finish(self, rows: int, history: Path) -> Array:
        """Count, write the history from which features of new rows are computed, and return the features of every row.

        Args:
            rows: R, an upper bound: all row numbers are below it.
            history: Parquet file to write.

        Returns:
            (R, T + 1) float32, memory-mapped from the scratch folder: the :func:`lift` of each label, then log(1 + n),
            where n is the number of rows of the key. Rows without a key have zeros.
        """
        assert self.scratch is not None
        parts = self.partitions.finish()
        self._set_overall(parts)
        shape = (max(rows, 1), self.settings.targets + 1)
        features = np.memmap(self.scratch / "features.bin", np.float32, "w+", shape=shape)
        folder = self.scratch / "history"
        folder.mkdir()
        for number, frame in enumerate(self.partitions.with_progress(parts)):
            if self._before:
                of_key, of_all, key_history = self._continued(frame)
            else:
                of_key, of_all, key_history = self._timed(frame) if self.settings.timed else self._folded(frame)
            of_part = self._features(of_key, of_all)
            features[frame["row"].to_numpy()] = of_part
            counts = of_part[frame["training"].to_numpy(), -1].astype(np.float64)
            self.count_sum, self.count_squares = self.count_sum + counts.sum(), self.count_squares + (counts**2).sum()
            key_history.write_parquet(folder / f"{number:04d}.parquet")
        if not parts:
            pl.DataFrame(schema=self._schema()).write_parquet(folder / "none.parquet")
        pl.scan_parquet(sorted(folder.iterdir()), glob=False).sink_parquet(history)
        return features

    def close(self) -> None:
        """Remove the scratch folder."""
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def kept(self) -> dict[str, Any]:
        """What :func:`kept_rates` needs in addition to the history: settings, and sums over all keys."""
        return {"settings": asdict(self.settings), "edges": self.edges.tolist(), "overall": self.overall.tolist()}

    def restore(self, kept: Mapping[str, Any], histories: Sequence[Path]) -> None:
        """Load the history of a finished table, and what later ones added to it."""
        self.edges = np.asarray(kept["edges"], np.float64)
        self.overall = np.asarray(kept["overall"], np.int64).reshape(-1, len(self.sums))
        self._before = list(histories)

    @cached_property
    def history(self) -> pl.DataFrame:
        """The restored history: cumulative sums by key and period."""
        if len(self._before) == 1:
            return pl.read_parquet(self._before[0])
        return self._stored(pl.scan_parquet(self._before)).sort("key", "when").collect()

    # Counting

    def _stored(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Stored sums, each key and period once. Sums only grow, so of several the largest is the latest."""
        return rows.group_by("key", "when").agg(pl.col(self.sums).max())

    def _schema(self) -> dict[str, Any]:
        return {"key": pl.String, "when": pl.Float64} | dict.fromkeys(self.sums, pl.Int64)

    def _set_overall(self, parts: list[Path]) -> None:
        """Set ``overall`` (E + 1, sums), the sums over all keys.

        With a time, it holds the sums before each of E period edges, then the total. Without a time, it holds the sums
        of each fold, then the total. Many periods are grouped into up to 1024 bins.
        """
        bins = np.zeros((0, len(self.sums)), np.int64)
        if self.settings.timed:
            # The bins of a stored history stay, so a late row sees the rate over all keys as of the edge before it.
            # Half of many old edges are enough: no row sees more by that.
            stored = self.edges if self._before else np.zeros(0)
            while len(stored) > 2 * _BINS:
                kept = np.append(np.arange(0, len(stored) - 1, 2), len(stored) - 1)
                stored, self.overall = stored[kept], self.overall[np.append(kept, -1)]
            times = np.unique(self._sample.sorted())
            times = times[times >= stored[-1]] if len(stored) else times
            first = times[:: max(-(-len(times) // _BINS), 1)]
            end = np.nextafter(self._last, np.inf)
            self.edges = np.concatenate([stored[:-1], first, [end]]) if len(times) else stored
            bins = np.diff(self.overall, axis=0)[: len(stored) - 1] if len(stored) else bins
        else:
            self.edges = np.arange(1 + max(self._last, -1.0))
        bins = np.concatenate([bins, np.zeros((len(self.edges) - len(bins), len(self.sums)), np.int64)])
        for part in parts:
            frame = read_partition(part)
            place = np.searchsorted(self.edges, frame["when"].to_numpy(), side="right") - 1
            # If there are many periods, they are sampled. Rows before the first edge go into the first bin.
            bins += _sums_by(np.maximum(place, 0), frame.select(self.sums), len(bins))
        total = bins.sum(0, keepdims=True)
        self.overall = np.concatenate([bins.cumsum(0) - bins if self.settings.timed else bins, total])

    def _timed(self, frame: pl.DataFrame) -> tuple[Array, Array, pl.DataFrame]:
        """Sums over earlier periods, of each row's key and of all keys; and cumulative sums of each key by period."""
        codes, keys = key_codes(frame["key"])
        when = frame["when"].to_numpy()
        order = np.lexsort((when, codes))
        codes, when = codes[order], when[order]
        new_key = np.append(True, codes[1:] != codes[:-1])
        first = np.flatnonzero(new_key | np.append(True, when[1:] != when[:-1]))  # start of each (key, period)
        sums = np.add.reduceat(frame.select(self.sums).to_numpy().astype(np.int64)[order], first, axis=0)
        upto = sums.cumsum(0)
        starts = np.flatnonzero(new_key[first])  # start of each key among its periods
        earlier = (upto - sums)[starts]
        other_keys = np.repeat(earlier, np.diff(np.append(starts, len(first))), axis=0)
        of_key = np.empty((len(order), len(self.sums)), np.int64)
        of_key[order] = np.repeat(upto - sums - other_keys, np.diff(np.append(first, len(order))), axis=0)
        seen = sums[:, 0] > 0
        columns = dict(zip(self.sums, (upto - other_keys)[seen].T, strict=True))
        history = pl.DataFrame({"key": keys.gather(codes[first][seen]), "when": when[first][seen], **columns})
        return of_key, self._overall_before(frame["when"].to_numpy()), history

    def _continued(self, frame: pl.DataFrame) -> tuple[Array, Array, pl.DataFrame]:
        """As :meth:`_timed`, after the stored sums of the same keys; also of stored periods that come after a row."""
        first = frame.lazy().group_by("key").agg(pl.col("when").min().alias("first"))
        stored = pl.scan_parquet(self._before).join(first, on="key")
        sums = pl.col(self.sums)
        is_before = pl.col("when") < pl.col("first")
        upto = stored.filter(is_before).group_by("key").agg(pl.max("when"), sums.max())
        before, after = pl.collect_all([upto, self._stored(stored.filter(~is_before))], engine="streaming")
        earlier = pl.concat([before, after]).sort("key", "when")
        # As rows of the log: one for all that came before the key's first row, then one for each period
        earlier = earlier.with_columns((sums - sums.shift(1, fill_value=0)).over("key"))
        rows = pl.concat([earlier, frame.select("key", "when", sums.cast(pl.Int64))])
        of_key, of_all, history = self._timed(rows)
        new = history.join(before.select("key", "when"), on=["key", "when"], how="anti")
        return of_key[len(earlier) :], of_all[len(earlier) :], new

    def _folded(self, frame: pl.DataFrame) -> tuple[Array, Array, pl.DataFrame]:
        """Sums over other folds, of each row's key and of all keys; and totals of each key, with ``when`` set to -1."""
        codes, keys = key_codes(frame["key"])
        fold, folds = frame["when"].to_numpy().astype(np.int64), len(self.edges)
        training = frame["training"].to_numpy()[:, None]
        by_fold = _sums_by(codes * folds + fold, frame.select(self.sums), len(keys) * folds)
        total = by_fold.reshape(len(keys), folds, -1).sum(1)
        of_key = total[codes] - by_fold[codes * folds + fold] * training
        seen = total[:, 0] > 0
        columns = dict(zip(self.sums, total[seen].T, strict=True))
        history = pl.DataFrame({"key": keys.filter(pl.Series(seen)), **columns}).insert_column(
            1, pl.lit(-1.0).alias("when")
        )
        return of_key, self.overall[-1] - self.overall[fold] * training, history

    def _overall_before(self, when: Array) -> Array:
        """(n, sums) over all keys in the bins that end before each period."""
        place = np.searchsorted(self.edges, when, side="right") - 1
        sums: Array = self.overall[np.maximum(place, 0)] * (place >= 0)[:, None]
        return sums

    # Features

    def features(self, keys: pl.Series, when: Array | None) -> Array:
        """(n, T + 1) features of new rows from the stored history, in the format of :meth:`finish`.

        Args:
            keys: (n,) text, null for no key.
            when: (n,) periods; None without a time.
        """
        rows = pl.DataFrame({"key": keys.fill_null(""), "when": np.full(len(keys), -1.0) if when is None else when})
        if self.settings.timed:
            rows = rows.with_row_index("place").sort("key", "when")
            how: dict[str, Any] = {"strategy": "backward", "allow_exact_matches": False, "check_sortedness": False}
            latest = rows.join_asof(self.history, on="when", by="key", **how).sort("place")
        else:
            latest = rows.join(self.history, on=["key", "when"], how="left", maintain_order="left")
        of_key = latest.select(pl.col(self.sums).fill_null(0)).to_numpy().astype(np.int64)
        of_all = np.broadcast_to(self.overall[-1], of_key.shape) if when is None else self._overall_before(when)
        features = self._features(of_key, of_all)
        features[keys.is_null().to_numpy()] = 0
        return features

    def latest(self) -> pl.DataFrame:
        """Each key once, with the features of a row after all others: ``0``, ``1``, ... and ``count``."""
        keys = self.history["key"].unique(maintain_order=True)
        features = self.features(keys, np.full(len(keys), np.inf) if self.settings.timed else None)
        columns = {f"{t}": features[:, t] for t in range(self.settings.targets)}
        return pl.DataFrame({"key": keys, **columns, "count": features[:, -1]})

    def _features(self, of_key: Array, of_all: Array) -> Array:
        """(n, T + 1) features from sums (n, sums) of each row's key and of all keys."""
        targets = self.settings.targets
        features = np.empty((len(of_key), targets + 1), np.float32)
        for t in range(targets):
            n, s = 1 + t, 1 + targets + t
            features[:, t] = lift(of_key[:, s], of_key[:, n], of_all[:, s], of_all[:, n], self.settings.smoothing)
        features[:, -1] = np.log1p(of_key[:, 0])
        return features


def kept_rates(store: Store, field: str) -> RateTable:
    """Load the rate table of a field from a store."""
    kept = store.content["histories"][field]
    table = RateTable(Settings(**kept["settings"]))
    table.restore(kept, store.histories(field))
    return table


def _sums_by(groups: Array, columns: pl.DataFrame, number: int) -> Array:
    """(number, columns) sums of 0/1 columns by group."""
    return np.stack([np.bincount(groups[c.to_numpy()], minlength=number) for c in columns], 1)
