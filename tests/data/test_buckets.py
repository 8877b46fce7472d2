"""Buckets: their number, separate buckets for heavy values, and about equal sizes of the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlen.data.buckets import bucket_edges


def sizes(values: list[float], buckets: int) -> tuple[list[int], list[set[float]]]:
    """Rows and distinct values of each bucket, counted one by one."""
    ordered = np.sort(np.asarray(values, float))
    edges = bucket_edges(ordered, buckets).tolist()
    assert edges == sorted(set(edges))
    held: list[list[float]] = [[] for _ in range(len(edges) + 1)]
    for value in values:
        held[sum(edge <= value for edge in edges)].append(value)
    return [len(part) for part in held], [set(part) for part in held]


repeated = st.lists(
    st.tuples(st.integers(-50, 50), st.integers(1, 60)), min_size=1, max_size=40, unique_by=lambda p: p[0]
)


@given(repeated, st.integers(2, 25))
def test_as_many_as_asked_and_none_is_empty(pairs: list[tuple[int, int]], buckets: int) -> None:
    values = [float(v) for v, n in pairs for _ in range(n)]
    rows, _ = sizes(values, buckets)
    assert len(rows) == min(buckets, len(pairs))
    assert min(rows) > 0


@given(repeated, st.integers(2, 25))
def test_the_order_of_the_rows_does_not_matter_and_repeating_all_rows_does_not(
    pairs: list[tuple[int, int]], buckets: int
) -> None:
    once = np.repeat(*np.array(sorted(pairs)).T).astype(float)
    assert bucket_edges(once, buckets).tolist() == bucket_edges(np.repeat(once, 3), buckets).tolist()


def test_a_value_of_more_than_its_share_has_a_bucket_of_its_own() -> None:
    """92 % zeros, as in a column of capital gains: plain quantiles would leave one or two buckets for the rest."""
    rng = np.random.default_rng(0)
    values = np.where(rng.random(20_000) < 0.92, 0.0, rng.lognormal(8, 1, 20_000)).tolist()
    rows, held = sizes(values, 50)
    assert held[0] == {0.0}
    others = rows[1:]
    assert len(others) == 49
    assert max(others) - min(others) <= 2


def test_several_heavy_values_between_others() -> None:
    rng = np.random.default_rng(1)
    values = [*([5.0] * 4000), *([9.0] * 2500), *rng.uniform(0, 14, 3500).tolist()]
    rows, held = sizes(values, 12)
    assert {5.0} in held
    assert {9.0} in held
    others = [n for n, part in zip(rows, held, strict=True) if len(part) > 1]
    assert len(others) == 10
    assert max(others) < 1.5 * 3500 / 10


def test_more_runs_than_buckets_are_joined() -> None:
    """Heavy values with light ones between all of them: the heaviest stay separate."""
    values = [float(v) for v in range(0, 20, 2) for _ in range(100)] + [float(v) for v in range(1, 20, 2)]
    rows, _ = sizes(values, 11)
    assert len(rows) == 11
    assert sorted(rows)[-9:] == [100] * 9 or min(rows) >= 1


@pytest.mark.parametrize("buckets", [2, 5, 20])
def test_without_repetition_they_are_the_quantiles(buckets: int) -> None:
    values = np.random.default_rng(2).permutation(1000).astype(float)
    rows, _ = sizes(values.tolist(), buckets)
    assert rows == [1000 // buckets] * buckets
