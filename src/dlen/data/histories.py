"""Point-in-time histories: what happened before each row for its key, such as the videos that its user watched.

Rows are partitioned by key on disk and sorted by time, one partition at a time, so memory depends on the size of a
partition and not of the log. The events of a key are stored once, oldest first; the history of a row is the range of
the newest ones that are strictly earlier than the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from dlen.data.columns import Array, Places
from dlen.data.partitions import KeyPartitions
from dlen.data.sequences import StoredSequence
from dlen.data.writer import SequenceWriter

Encode = Callable[[pl.DataFrame], Array]  # (L,) events with their columns -> (L, N) codes


class HistoryTable:
    """Collects the rows of a log, then writes their events and finds the history of each row.

    Args:
        length: maximum number of events in the history of a row; the newest stay.
        scratch: a folder that does not exist yet.

    Attributes:
        partitions: the rows that were added.
    """

    def __init__(self, length: int, scratch: Path) -> None:
        self.length, self.scratch = length, scratch
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
            keys: Parquet file to write: each key with the range of its events, for new rows.

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
            frame = frame.sort("key", "when", "row")
            events = frame.filter("event")
            first = writer.append(encode(events), events["when"].to_numpy() * unit)
            begin, end, ranges = _ranges(frame, first)
            own = frame["row"].to_numpy()
            start[own, 0] = np.maximum(begin, end - self.length)
            length[own, 0] = np.minimum(end - begin, self.length)
            times[own, 0] = frame["when"].to_numpy() * unit
            of_keys.append(ranges)
        schema = {"key": pl.String, "first": pl.Int64, "last": pl.Int64}
        pl.concat([pl.DataFrame(schema=schema), *of_keys]).write_parquet(keys)
        return Places(start, length, times)


def _ranges(frame: pl.DataFrame, first: int) -> tuple[Array, Array, pl.DataFrame]:
    """For rows sorted by key and time, the range of the events of their key that are strictly earlier.

    Args:
        frame: n rows.
        first: place of the first event of these rows among all events.

    Returns:
        (n,) first place, (n,) place after the last one, and each key with the range of all of its events.
    """
    event = frame["event"].to_numpy()
    before = first + np.cumsum(event) - event  # events of all rows above
    new_key, new_when = (frame[name].ne_missing(frame[name].shift()).to_numpy() for name in ("key", "when"))
    starts = (np.where(new, np.arange(len(frame)), 0) for new in (new_key, new_key | new_when))
    begin, end = (before[np.maximum.accumulate(start)] for start in starts)
    keys = np.flatnonzero(new_key)
    ends = np.append(before[keys[1:]], first + event.sum())
    ranges = pl.DataFrame({"key": frame["key"].gather(keys), "first": before[keys], "last": ends})
    return begin, end, ranges.filter(pl.col("first") < pl.col("last"))


def histories_of(keys: pl.Series, when: Array, stored: StoredSequence, known: pl.DataFrame, length: int) -> Places:
    """Where the histories of new rows lie among the events of a store.

    Args:
        keys: (n,) text, null for no key.
        when: (n,) time in seconds.
        stored: the events.
        known: each key with the range of its events, as written by :meth:`HistoryTable.finish`.
        length: maximum number of events.
    """
    found = pl.DataFrame({"key": keys}).join(known, on="key", how="left", maintain_order="left")
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
