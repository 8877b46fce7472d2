"""Counting and encoding ids, against collections.Counter and a dictionary."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlen.data import vocabulary
from dlen.data.vocabulary import IdCounter, IdVocabulary

Chunk = list[tuple[int, int]]  # (id, weight); a negative id is absent
chunks = st.lists(st.lists(st.tuples(st.integers(-2, 12), st.integers(0, 5)), max_size=30), max_size=6)


def counted(content: list[Chunk], weighted: bool) -> dict[int, int]:
    counter = IdCounter()
    for chunk in content:
        ids = np.array([i for i, _ in chunk], np.int32)
        counter.add(ids, np.array([w for _, w in chunk], np.int64) if weighted else None)
    ids, counts = counter.result()
    assert ids.tolist() == sorted(set(ids.tolist()))
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


@given(chunks)
def test_counts_equal_a_counter(content: list[Chunk]) -> None:
    expected = Counter(i for chunk in content for i, _ in chunk if i >= 0)
    assert counted(content, weighted=False) == expected


@given(chunks)
def test_weighted_counts_equal_a_counter(content: list[Chunk]) -> None:
    expected: Counter[int] = Counter()
    for chunk in content:
        for i, weight in chunk:
            if i >= 0:
                expected[i] += weight
    counts = counted(content, weighted=True)
    assert {i: n for i, n in counts.items() if n} == {i: n for i, n in expected.items() if n}


@pytest.mark.parametrize("pending", [0, 1, 10])
def test_merging_early_changes_nothing(monkeypatch: pytest.MonkeyPatch, pending: int) -> None:
    rng = np.random.default_rng(0)
    content = [[(int(i), int(w)) for i, w in rng.integers(0, 40, size=(50, 2))] for _ in range(20)]
    expected: Counter[int] = Counter()
    for chunk in content:
        for i, weight in chunk:
            expected[i] += weight
    monkeypatch.setattr(vocabulary, "_PENDING", pending)
    assert counted(content, weighted=True) == expected


def test_result_may_be_read_and_counting_go_on() -> None:
    counter = IdCounter()
    assert [len(part) for part in counter.result()] == [0, 0]
    counter.add(np.array([5, 1, 5]))
    counter.result()
    counter.add(np.array([1, 9]))
    ids, counts = counter.result()
    assert (ids.tolist(), counts.tolist()) == ([1, 5, 9], [2, 2, 1])


def test_large_counts_are_exact() -> None:
    counter = IdCounter()
    counter.add(np.array([3, 3]), np.array([2**40, 1]))
    assert counter.result()[1].tolist() == [2**40 + 1]


@given(st.dictionaries(st.integers(0, 50), st.integers(1, 6)), st.integers(1, 7), st.lists(st.integers(-1, 60)))
def test_encoding_equals_a_dictionary(counts: dict[int, int], min_count: int, raw: list[int]) -> None:
    ids = sorted(counts)
    made = IdVocabulary(np.array(ids, np.int64), np.array([counts[i] for i in ids], np.int64), min_count)
    codes = {i: n for n, i in enumerate((i for i in ids if counts[i] >= min_count), 1)}
    assert len(made) == len(codes) + 1
    assert made.encode(np.array(raw, np.int64)).tolist() == [codes.get(i, 0) for i in raw]


def test_encoding_keeps_the_shape() -> None:
    made = IdVocabulary(np.array([4, 7]), np.array([9, 9]), 1)
    assert made.encode(np.array([[4, 7, 0], [8, -1, 4]])).tolist() == [[1, 2, 0], [0, 0, 1]]
