"""Point-in-time rates against a slow loop over all pairs of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlen.data import partitions, rates
from dlen.data.rates import RateTable, Settings, lift

ROWS = 250


@dataclass
class Log:
    """Rows in no time order, some with missing keys."""

    keys: list[str | None]
    when: np.ndarray
    training: np.ndarray
    labels: np.ndarray
    observed: np.ndarray

    @classmethod
    def draw(cls, seed: int, timed: bool, periods: int = 40) -> Log:
        rng = np.random.default_rng(seed)
        keys = [None if rng.random() < 0.05 else f"k{rng.integers(25)}" for _ in range(ROWS)]
        when = rng.integers(0, periods if timed else 5, ROWS).astype(float)
        labels, observed = rng.integers(0, 2, (ROWS, 2)), rng.random((ROWS, 2)) < 0.8
        return cls(keys, when, rng.random(ROWS) < 0.7, labels, observed)


def logit(p: float) -> float:
    return math.log(p) - math.log(1 - p)


def slow_features(log: Log, settings: Settings, i: int) -> list[float]:
    """The definition, row by row."""
    if log.keys[i] is None:
        return [0.0] * (settings.targets + 1)
    if settings.timed:
        seen = [j for j in range(ROWS) if log.when[j] < log.when[i] and (log.training[j] or not settings.training_only)]
    else:
        seen = [j for j in range(ROWS) if log.training[j] and not (log.training[i] and log.when[j] == log.when[i])]
    seen = [j for j in seen if log.keys[j] is not None]
    own = [j for j in seen if log.keys[j] == log.keys[i]]
    features = []
    for t in range(settings.targets):
        all_n, n = sum(log.observed[j, t] for j in seen), sum(log.observed[j, t] for j in own)
        all_s = sum(log.observed[j, t] and log.labels[j, t] for j in seen)
        s = sum(log.observed[j, t] and log.labels[j, t] for j in own)
        overall = (all_s + 1) / (all_n + 2)
        features.append(logit((s + settings.smoothing * overall) / (n + settings.smoothing)) - logit(overall))
    return [*features, math.log1p(len(own))]


def made(log: Log, settings: Settings, folder: Path, chunk: int = 37) -> tuple[np.ndarray, RateTable]:
    """Features of all rows, and the table restored from its saved state."""
    table = RateTable(settings, folder / "scratch")
    add(table, log, np.arange(ROWS), chunk)
    features = np.array(table.finish(ROWS, folder / "history.parquet"))
    again = RateTable(settings)
    again.restore(table.kept(), [folder / "history.parquet"])
    table.close()
    assert not (folder / "scratch").exists()
    return features, again


def add(table: RateTable, log: Log, rows: np.ndarray, chunk: int = 37) -> None:
    """Add some rows of a log, numbered by their places in ``rows``."""
    for first in range(0, len(rows), chunk):
        part, number = rows[first : first + chunk], np.arange(len(rows))[first : first + chunk]
        keys = pl.Series([log.keys[i] for i in part], dtype=pl.String)
        table.add(number, keys, log.when[part], log.training[part], log.labels[part], log.observed[part])


def new_rows(table: RateTable, log: Log) -> np.ndarray:
    return table.features(pl.Series(log.keys, dtype=pl.String), log.when if table.settings.timed else None)


@pytest.mark.slow
@pytest.mark.parametrize("pending", [60, 1 << 20])
@pytest.mark.parametrize("training_only", [False, True])
@pytest.mark.parametrize("timed", [False, True])
def test_every_row_sees_what_the_definition_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: bool, training_only: bool, pending: int
) -> None:
    """In one part in memory and in several on disk; the saved history gives later rows the same values."""
    monkeypatch.setattr(partitions, "PENDING", pending)
    log, settings = Log.draw(1, timed), Settings(2, timed, 5.0, training_only)
    features, restored = made(log, settings, tmp_path)
    expected = np.array([slow_features(log, settings, i) for i in range(ROWS)])
    np.testing.assert_allclose(features, expected, atol=1e-5)
    later = slice(None) if timed else ~log.training  # the fold of a training row is known only while preparing
    np.testing.assert_allclose(new_rows(restored, log)[later], expected[later], atol=1e-5)


@pytest.mark.parametrize("timed", [False, True])
def test_many_periods_in_few_bins_see_no_more_than_they_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: bool
) -> None:
    """The rate over all keys is then somewhat older than necessary, but still includes no later row."""
    monkeypatch.setattr(rates, "_BINS", 3)
    log = Log.draw(2, timed)
    before, _ = made(log, Settings(2, timed, 5.0, False), tmp_path / "a")
    for row in (int(np.argmax(log.when)), int(np.argmin(log.when)), 17):
        changed = Log(log.keys, log.when, log.training, log.labels.copy(), log.observed)
        later = log.when >= log.when[row] if timed else (log.when == log.when[row]) | ~log.training
        changed.labels[later] = 1 - changed.labels[later]
        after, _ = made(changed, Settings(2, timed, 5.0, False), tmp_path / f"b{row}")
        if timed or log.training[row]:
            np.testing.assert_array_equal(after[row], before[row])


def test_a_key_without_rows_is_told_nothing_and_smoothing_pulls_towards_all_keys() -> None:
    zero = np.zeros(1)
    assert lift(zero, zero, np.array([50]), np.array([1000]), 20.0)[0] == 0
    near, far = (lift(np.array([30]), np.array([100]), np.array([50]), np.array([1000]), m)[0] for m in (5.0, 500.0))
    assert 0 < far < near < logit(0.3) - logit(0.05)


def test_the_latest_of_each_key_is_what_a_row_after_all_others_sees(tmp_path: Path) -> None:
    log, settings = Log.draw(3, timed=True), Settings(2, True, 5.0, False)
    _, restored = made(log, settings, tmp_path)
    latest = restored.latest()
    assert sorted(latest["key"]) == sorted({k for k in log.keys if k is not None})
    late: dict[str, Any] = {"keys": [*log.keys, "k3"], "when": np.append(log.when, 1e9)}
    row = restored.features(pl.Series(late["keys"]), late["when"])[-1]
    np.testing.assert_allclose(row, latest.filter(key="k3").select("0", "1", "count").row(0))


@pytest.mark.parametrize("timed", [False, True])
def test_no_row_has_a_key(tmp_path: Path, timed: bool) -> None:
    log = Log.draw(4, timed)
    log.keys = [None] * ROWS
    features, restored = made(log, Settings(2, timed, 5.0, False), tmp_path)
    assert not features.any()
    log.keys = ["new"] * ROWS
    np.testing.assert_allclose(new_rows(restored, log), 0, atol=1e-6)


def test_the_rate_over_all_keys_takes_no_more_room_with_every_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old edges are thinned out; the latest rows still see all rows before them."""
    monkeypatch.setattr(rates, "_BINS", 8)
    settings = Settings(2, True, 5.0, False)
    tables = [RateTable(settings, tmp_path / f"scratch{day}") for day in range(12)]
    for day, table in enumerate(tables):
        log = Log.draw(day, True)
        log.when += 40.0 * day
        if day:
            table.restore(tables[day - 1].kept(), [tmp_path / f"{n}.parquet" for n in range(day)])
        add(table, log, np.arange(ROWS))
        before = day and int(table.overall[-1, 0])
        table.finish(ROWS, tmp_path / f"{day}.parquet")
        assert len(table.edges) <= 2 * 8 + 10
        first = int(np.argmin(log.when))
        assert table._overall_before(log.when[[first]])[0, 0] == before
        assert (np.diff(table.overall[:, 0]) >= 0).all()


@pytest.mark.parametrize("late", [0.0, 0.1])
def test_rows_added_later_see_what_they_would_have_seen_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: float
) -> None:
    """Rows of three days, each added to the history of those before. Rows that come a day late are seen from then."""
    monkeypatch.setattr(partitions, "PENDING", 40)
    log, settings = Log.draw(3, True), Settings(2, True, 5.0, False)
    log.training = log.when < 15
    expected, at_once = made(log, settings, tmp_path / "at_once")
    day = np.digitize(log.when, [15, 25]) + (np.random.default_rng(0).random(ROWS) < late)
    kept: dict[str, Any] = {}
    histories: list[Path] = []
    for number in range(day.max() + 1):
        rows, table = np.flatnonzero(day == number), RateTable(settings, tmp_path / f"scratch{number}")
        if histories:
            table.restore(kept, histories)
        add(table, log, rows)
        histories.append(tmp_path / f"{number}.parquet")
        features = np.array(table.finish(len(rows), histories[-1]))
        kept = table.kept()
        if not late:
            np.testing.assert_array_equal(features, expected[rows])
        known = [j for j in range(ROWS) if day[j] <= number]
        counts = [sum(log.keys[j] == log.keys[i] and log.when[j] < log.when[i] for j in known) for i in rows]
        counts = [count * (log.keys[i] is not None) for i, count in zip(rows, counts, strict=True)]
        np.testing.assert_array_equal(features[:, -1], np.log1p(counts).astype(np.float32))
    restored = RateTable(settings)
    restored.restore(kept, histories)
    assert restored.history.equals(at_once.history.sort("key", "when"))
    np.testing.assert_array_equal(restored.overall[-1], at_once.overall[-1])
