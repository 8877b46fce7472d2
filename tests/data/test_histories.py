"""Point-in-time histories that go on from stored ones, against a slow loop over all pairs of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from dlen.data import partitions
from dlen.data.columns import Array
from dlen.data.histories import HistoryTable, histories_of, in_order
from dlen.data.sequences import StoredSequence
from dlen.data.writer import SequenceWriter

ROWS, LENGTH, UNIT = 300, 4, 0.1


def seen(events: StoredSequence, start: Array, length: Array) -> list[list[int]]:
    """The event numbers of each row."""
    values = events.values[:, 0].numpy()
    return [values[s : s + n].tolist() for s, n in zip(start[:, 0], length[:, 0], strict=True)]


@pytest.mark.parametrize("late", [0.0, 0.1])
def test_rows_added_later_see_the_newest_events_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: float
) -> None:
    """Rows of three days, each added to the events of those before; also new rows of any time, once all are stored."""
    monkeypatch.setattr(partitions, "PENDING", 40)
    rng = np.random.default_rng(0)
    keys = [None if rng.random() < 0.05 else f"k{rng.integers(12)}" for _ in range(ROWS)]
    when, event = rng.integers(0, 40, ROWS).astype(np.float64), rng.random(ROWS) < 0.7
    day = np.digitize(when, [15, 25]) + (rng.random(ROWS) < late)
    order = np.lexsort((np.arange(ROWS), when))

    def expected(of: str | None, time: float, known: Array) -> list[int]:
        earlier = [j for j in order if known[j] and event[j] and keys[j] == of and when[j] < time]
        return [int(j) for j in earlier][-LENGTH:] if of is not None else []

    stored = StoredSequence(
        torch.zeros(0, 1, dtype=torch.int32), torch.zeros(0, dtype=torch.float64), torch.zeros(1), False
    )
    known: list[pl.DataFrame] = []
    for number in range(day.max() + 1):
        rows, folder = np.flatnonzero(day == number), tmp_path / f"{number}"
        table = HistoryTable(LENGTH, folder / "scratch", (stored, in_order(known)) if known else None)
        for part in np.array_split(np.arange(len(rows)), 5):
            i = rows[part]
            texts = pl.Series([keys[j] for j in i], dtype=pl.String)
            table.add(part, texts, when[i], event[i], {"of0": pl.Series(i, dtype=pl.Int64)})
        writer = SequenceWriter(folder, "seen", 1)
        places = table.finish(len(rows), UNIT, lambda e: e["of0"].to_numpy()[:, None], writer, folder / "keys.parquet")
        writer.close()
        base = len(stored.when)
        values, times = (
            np.fromfile(folder / f"sequences/seen/{n}.bin", t) for n, t in (("values", "<i4"), ("when", "<f8"))
        )
        stored = StoredSequence(
            torch.cat([stored.values, torch.from_numpy(values)[:, None]]),
            torch.cat([stored.when, torch.from_numpy(times)]),
            stored.offsets,
            stored.gaps,
        )
        known.append(pl.read_parquet(folder / "keys.parquet").with_columns(pl.col("first", "last") + base))
        if not late:
            of_rows = [expected(keys[i], when[i], day <= number) for i in rows]
            assert seen(stored, places.start + base, places.length) == of_rows
    texts, anytime = pl.Series([*keys, "new"], dtype=pl.String), np.append(when, np.inf)
    places = histories_of(texts, anytime * UNIT, stored, in_order(known), LENGTH)
    of_new = [expected(key, time, day >= 0) for key, time in zip(texts, anytime, strict=True)]
    if not late:
        assert seen(stored, places.start, places.length) == of_new
    latest = histories_of(texts, np.full(len(texts), np.inf), stored, in_order(known), LENGTH)
    assert seen(stored, latest.start, latest.length) == [expected(key, np.inf, day >= 0) for key in texts]
