"""Point-in-time histories: what happened before each row for its key, such as the videos that its user watched.

Rows are partitioned by key on disk and sorted by time, one partition at a time, so memory depends on the size of a
partition and not of the log. The events of a key are stored once, oldest first; the history of a row is the range of
the newest ones that are strictly earlier than the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from dlen.data.columns import Array, Places
from dlen.data.partitions import KeyPartitions
from dlen.data.ragged import places_of
from dlen.data.writer import SequenceWriter

if TYPE_CHECKING:  # processes that prepare a piece of the log import no torch, which takes a second
    from dlen.data.sequences import StoredSequence
    from dlen.data.store import Store

_STORED = 1 << 62  # subtracted from the places of stored events, which gives them row numbers before all others
Encode = Callable[[pl.DataFrame], Array]  # (L,) events with their columns -> (L, N) codes


class HistoryTable:
    """Collects the rows of a log, then writes their events and finds the history of each row.

    Args:
        length: maximum number of events in the history of a row; the newest stay.
        scratch: a folder that does not exist yet.
        before: stored events with their ranges, see :func:`histories_of`, which the rows come after. Those that a row
            may see are written once more, next to the row's own.

    Attributes:
        partitions: the rows that were added.
    """

    def __init__(self, length: int, scratch: Path, before: tuple[StoredSequence, pl.DataFrame] | None = None) -> None:
        self.length, self.scratch, self.before = length, scratch, before
        self.partitions = KeyPartitions(scratch, "sorting histories")

    def add(self, row: Array, keys: pl.Series, when: Array, event: Array, values: Mapping[str, pl.Series]) -> None:
        """Add n rows.

        Args:
            row: (n,) unique row numbers.
            keys: (n,) text; null if a row has no key and therefore no history.
            when: (n,) periods.
            event: (n,) whether later rows see this row in their history.
            values: what they see of it, for the encoder of :meth:`finish`; (n,) each.
        """
        of_events = pl.DataFrame(dict(values)).with_columns(pl.when(pl.Series(event)).then(pl.all()).name.keep())
        columns = {"row": row.astype(np.int64), "key": keys, "when": np.asarray(when, np.float64), "event": event}
        frame = pl.DataFrame(columns).hstack(of_events)
        self.partitions.add(frame.filter(pl.col("key").is_not_null()))

    def finish(self, rows: int, unit: float, encode: Encode, writer: SequenceWriter, keys: Path) -> Places:
        """Write the events, and return where the history of each row lies, memory-mapped from the scratch folder.

        Args:
            rows: R, an upper bound: all row numbers are below it.
            unit: seconds in a unit of the periods; stored times are in seconds.
            encode: turns events into codes.
            writer: receives the events of all keys.
            keys: Parquet file to write: each key with the range of its events, and the time since which rows see it.

        Returns:
            Places of Q = 1 sequence. Rows without a key have no events.
        """
        parts, of_keys = self.partitions.finish(), []
        shape = (max(rows, 1), 1)
        start, length, times = (
            np.memmap(self.scratch / f"{name}.bin", dtype, "w+", shape=shape)
            for name, dtype in (("start", np.int64), ("length", np.int16), ("when", np.float64))
        )
        for frame in self.partitions.with_progress(parts):
            frame = frame.with_columns(pl.col("when") * unit)
            frame = pl.concat([frame, *self._stored(frame)], how="diagonal").sort("key", "when", "row")
            events, number = frame.filter("event"), frame["row"].to_numpy()
            codes, is_new = np.empty((len(events), writer.width), np.int32), events["row"] >= 0
            codes[is_new.to_numpy()] = encode(events.filter(is_new))
            if self.before is not None:
                places = events["row"].filter(~is_new).to_numpy() + _STORED
                codes[~is_new.to_numpy()] = self.before[0].values.numpy()[places]
            first = writer.append(codes, events["when"].to_numpy())
            begin, end, ranges = _ranges(frame, first)
            new = number >= 0
            begin, end, own = begin[new], end[new], number[new]
            start[own, 0] = np.maximum(begin, end - self.length)
            length[own, 0] = np.minimum(end - begin, self.length)
            times[own, 0] = frame["when"].to_numpy()[new]
            of_keys.append(ranges)
        schema = {"key": pl.String, "since": pl.Float64, "first": pl.Int64, "last": pl.Int64}
        pl.concat([pl.DataFrame(schema=schema), *of_keys]).write_parquet(keys)
        return Places(start, length, times)

    def _stored(self, frame: pl.DataFrame) -> list[pl.DataFrame]:
        """The stored events that rows of the same keys may see, as rows that come first."""
        if self.before is None:
            return []
        stored, known = self.before
        latest = known.unique("key", keep="last", maintain_order=True)
        since = frame.group_by("key", maintain_order=True).agg(pl.col("when").min()).join(latest, on="key")
        when = stored.when.numpy()
        first, last = since["first"].to_numpy(), since["last"].to_numpy()
        first = np.maximum(first, _bisect(when, first, last, since["when"].to_numpy()) - self.length)
        places = places_of(first, last - first)
        keys = since["key"].gather(np.repeat(np.arange(len(since)), last - first))
        return [pl.DataFrame({"row": places - _STORED, "key": keys, "when": when[places], "event": True})]


def _ranges(frame: pl.DataFrame, first: int) -> tuple[Array, Array, pl.DataFrame]:
    """For rows sorted by key and time, the range of the events of their key that are strictly earlier.

    Args:
        frame: n rows.
        first: place of the first event of these rows among all events.

    Returns:
        (n,) first place, (n,) place after the last one, and each key with the range of all of its events and the time
        of its first row that is not a stored event.
    """
    event = frame["event"].to_numpy()
    before = first + np.cumsum(event) - event  # events of all rows above
    new_key, new_when = (frame[name].ne_missing(frame[name].shift()).to_numpy() for name in ("key", "when"))
    starts = (np.where(new, np.arange(len(frame)), 0) for new in (new_key, new_key | new_when))
    begin, end = (before[np.maximum.accumulate(start)] for start in starts)
    keys = np.flatnonzero(new_key)
    ends = np.append(before[keys[1:]], first + event.sum())
    since = frame.select(pl.when(pl.col("row") >= 0).then("when").min().over("key"))["when"].gather(keys)
    ranges = pl.DataFrame({"key": frame["key"].gather(keys), "since": since, "first": before[keys], "last": ends})
    return begin, end, ranges.filter(pl.col("first") < pl.col("last"))


def stored_history(store: Store, name: str) -> tuple[StoredSequence, pl.DataFrame]:
    """The events of a history in a store, and the ranges for :func:`histories_of`."""
    events, files = store.events(name)
    moved = [pl.read_parquet(path).with_columns(pl.col("first", "last") + start) for path, start in files]
    return events, in_order(moved)


def in_order(known: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Ranges of stored events, in the order in which they were written, without those that no row sees any more."""
    ranges = pl.concat(known)
    later = pl.col("since").shift(-1).reverse().cum_min().reverse().over("key")
    return ranges.filter(later.is_null() | (pl.col("since") < later))


def histories_of(keys: pl.Series, when: Array, stored: StoredSequence, known: pl.DataFrame, length: int) -> Places:
    """Where the histories of new rows lie among the events of a store.

    Args:
        keys: (n,) text, null for no key.
        when: (n,) time in seconds.
        stored: the events.
        known: keys with the range of their events, as written by :meth:`HistoryTable.finish`; of a key with several,
            a row sees the last one whose ``since`` is not later than the row.
        length: maximum number of events.
    """
    rows = pl.DataFrame({"key": keys.fill_null(""), "when": np.asarray(when, np.float64)}).with_row_index("place")
    how: dict[str, Any] = {"left_on": "when", "right_on": "since", "by": "key", "check_sortedness": False}
    found = rows.sort("key", "when").join_asof(known.sort("key", "since"), **how).sort("place")
    found = found.with_columns(pl.when(keys.is_not_null()).then(pl.col("first", "last")))
    begin, last = (found[name].fill_null(0).to_numpy() for name in ("first", "last"))
    end = _bisect(stored.when.numpy(), begin, last, when)
    kept = np.minimum(end - begin, length)
    return Places((end - kept)[:, None], kept.astype(np.int16)[:, None], np.asarray(when, np.float64)[:, None])


def _bisect(values: Array, low: Array, high: Array, wanted: Array) -> Array:
    """For each of n ascending ranges of ``values``, the first place that is not below the wanted value."""
    low, high = low.astype(np.int64), high.astype(np.int64)
    while (open_ := low < high).any():
        middle = (low + high) // 2
        below = open_ & (values[np.where(open_, middle, 0)] < wanted)
        low = np.where(below, middle + 1, low)
        high = np.where(open_ & ~below, middle, high)
    return low
