"""Conversion of entries to columns, against slow loops over every entry."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dlen.data.columns import Columns
from dlen.data.ragged import Entries, field_of_values, heaviest, rows_of_values, select_rows, to_columns

Value = tuple[int, int, float]  # field, id, weight
values = st.tuples(st.integers(0, 4), st.integers(0, 9), st.sampled_from([0.0, 0.5, 1.0, 1.5, -1.0]))
logs = st.lists(st.lists(values, max_size=12), max_size=8)
caps = st.lists(st.integers(1, 5), min_size=2, max_size=2)
SINGLE, BAGS = [3, 0], [1, 4]  # field 2 is unused


def entries(log: list[list[Value]]) -> Entries:
    flat = [(row, *value) for row, listed in enumerate(log) for value in listed]
    row, field, ids, weights = zip(*flat, strict=True) if flat else ((), (), (), ())
    return Entries(
        len(log), np.array(row, np.int32), np.array(field, np.uint8), np.array(ids, np.int32), np.array(weights)
    )


def slow_bag(listed: list[Value], field: int, cap: int) -> list[tuple[int, float]]:
    kept = [(i, w) for f, i, w in listed if f == field]
    return kept if len(kept) <= cap else sorted(kept, key=lambda v: -v[1])[:cap]


def rows_of(columns: Columns) -> list[list[list[tuple[int, float]]]]:
    flat = list(zip(columns.bag_ids.tolist(), columns.bag_weights.tolist(), strict=True))
    result, start = [], 0
    for lengths in columns.bag_lengths.tolist():
        bags = []
        for length in lengths:
            bags.append(flat[start : start + length])
            start += length
        result.append(bags)
    assert start == len(flat)
    return result


@given(logs, caps)
def test_columns_equal_a_slow_loop(log: list[list[Value]], caps: list[int]) -> None:
    columns = to_columns(entries(log), SINGLE, BAGS, caps)
    firsts = [[next((i for f, i, _ in listed if f == field), -1) for field in SINGLE] for listed in log]
    assert columns.ids.tolist() == firsts
    expected = [[slow_bag(listed, f, cap) for f, cap in zip(BAGS, caps, strict=True)] for listed in log]
    assert rows_of(columns) == expected
    assert columns.numeric.shape == (len(log), 0)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0, -3.0]), max_size=8), max_size=8), st.integers(1, 5))
def test_heaviest_equals_sorting(weights: list[list[float]], cap: int) -> None:
    row = np.array([r for r, w in enumerate(weights) for _ in w], np.int64)
    flat = np.array([v for w in weights for v in w])
    lengths = np.array([len(w) for w in weights], np.int64)
    expected, start = [], 0
    for listed in weights:
        places = list(range(start, start + len(listed)))
        expected += places if len(places) <= cap else sorted(places, key=lambda p: -flat[p])[:cap]
        start += len(listed)
    assert heaviest(row, flat, lengths, cap).tolist() == expected


@given(logs, caps, st.randoms())
def test_selecting_rows_equals_a_list(log: list[list[Value]], caps: list[int], rng: random.Random) -> None:
    columns = to_columns(entries(log), SINGLE, BAGS, caps)
    mask = np.array([rng.random() < 0.5 for _ in log], np.bool_)
    part = select_rows(columns, mask)
    chosen = np.flatnonzero(mask)
    assert part.ids.tolist() == [columns.ids[r].tolist() for r in chosen]
    assert rows_of(part) == [rows_of(columns)[r] for r in chosen]


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), max_size=6))
def test_fields_and_rows_of_values(lengths: list[list[int]]) -> None:
    array = np.array(lengths, np.int16).reshape(-1, 3)
    fields = [m for row in lengths for m, n in enumerate(row) for _ in range(n)]
    rows = [r for r, row in enumerate(lengths) for _ in range(sum(row))]
    assert field_of_values(array).tolist() == fields
    assert rows_of_values(array).tolist() == rows
