"""How many ids a log has, against other libraries' distributions and against whole logs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import gamma
from scipy.stats import nbinom

from dlen.data.unseen import IdEstimate, _Fit

Ids = NDArray[np.int64]
ROWS, BLOCKS = 200_000, 32


@pytest.mark.parametrize(("shape", "scale"), [(0.5, 2.0), (3.0, 0.1), (20.0, 0.05)])
def test_a_positive_shape_is_a_negative_binomial(shape: float, scale: float) -> None:
    ids, factor = 1000.0, 7.0
    in_sample, in_log = (nbinom(shape, 1 / (1 + times * scale)) for times in (1, factor))
    fit = _Fit(shape, scale, ids * in_sample.pmf(1))
    assert fit.unseen(factor) == pytest.approx(ids * (in_sample.pmf(0) - in_log.pmf(0)))
    assert fit.in_blocks(5, factor) == pytest.approx(ids * in_log.pmf(np.arange(1, 6)))


@pytest.mark.parametrize(("shape", "scale"), [(-0.5, 2.0), (-0.9, 0.3), (0.0, 1.0), (0.5, 2.0)])
def test_any_shape_is_the_integral_over_the_means(shape: float, scale: float) -> None:
    factor = 7.0
    once = gamma(shape + 1) * (scale / (1 + scale)) ** (shape + 1)
    fit = _Fit(shape, scale, once)

    def integral(of: Callable[[float], float]) -> float:
        return float(quad(lambda mean: of(mean) * mean ** (shape - 1) * np.exp(-mean / scale), 0, np.inf)[0])

    assert fit.unseen(factor) == pytest.approx(integral(lambda m: np.exp(-m) - np.exp(-factor * m)), rel=1e-5)
    twice = integral(lambda m: np.exp(-factor * m) * (factor * m) ** 2 / 2)
    assert fit.in_blocks(2, factor)[1] == pytest.approx(twice, rel=1e-5)


def counts(ids: Ids, starts: Ids, size: int) -> pl.DataFrame:
    """(value, block, count) of blocks of a log."""
    block = np.repeat(np.arange(len(starts)), size)
    value = np.concatenate([ids[start : start + size] for start in starts])
    return pl.DataFrame({"value": value, "block": block}).group_by("value", "block").agg(pl.len().alias("count"))


def zipf(rng: np.random.Generator, ids: int) -> Ids:
    shares = 1 / np.arange(1, ids + 1)
    return np.searchsorted(np.cumsum(shares / shares.sum()), rng.random(ROWS) * (1 - 1e-9))


def logs() -> dict[str, Ids]:
    rng = np.random.default_rng(0)
    of_user = rng.geometric(1 / 8, ROWS)
    return {
        "few ids": rng.integers(0, 10, ROWS),
        "ids that are all seen": rng.integers(0, 2_000, ROWS),
        "ids that are not": rng.integers(0, 50_000, ROWS),
        "a power law": zipf(rng, 100_000),
        "sorted by user": np.repeat(np.arange(ROWS), of_user)[:ROWS],
        "days of a log by time": np.arange(ROWS) // (ROWS // 20),
        "sessions of returning users": np.repeat(rng.integers(0, 5_000, ROWS // 10), 10),
    }


@pytest.mark.parametrize("name", logs())
def test_estimates_are_near_the_whole_log(name: str) -> None:
    ids, size = logs()[name], ROWS // 10 // BLOCKS
    starts = np.linspace(0, ROWS - size, BLOCKS).astype(np.int64)
    estimate = IdEstimate(counts(ids, starts, size), ROWS / (size * BLOCKS))
    _, times = np.unique(ids, return_counts=True)
    assert estimate.total == pytest.approx(len(times), rel=0.3)
    for least in (2, 5, 10):
        assert estimate.left(least) == pytest.approx((times >= least).sum(), rel=0.35, abs=20), least
    assert estimate.total >= estimate.left(2) >= estimate.left(5) >= estimate.left(10) >= estimate.left(1000)
    assert estimate.left(1) == estimate.total


@pytest.mark.parametrize("name", logs())
def test_a_whole_log_is_counted(name: str) -> None:
    ids = logs()[name]
    _, times = np.unique(ids, return_counts=True)
    for starts, size in ((np.array([0]), ROWS), (np.arange(4) * (ROWS // 4), ROWS // 4)):
        estimate = IdEstimate(counts(ids, starts, size), 1.0)
        assert [estimate.total, *(estimate.left(n) for n in (2, 7, 500))] == [
            len(times),
            *((times >= n).sum() for n in (2, 7, 500)),
        ]


def test_a_field_without_ids_has_none() -> None:
    empty = pl.DataFrame(schema={"value": pl.String, "block": pl.Int64, "count": pl.Int64})
    estimate = IdEstimate(empty, 10.0)
    assert (estimate.seen, estimate.total, estimate.left(2)) == (0, 0, 0)
