"""Counting and encoding ids, against collections.Counter and a dictionary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlen.data import vocabulary
from dlen.data.sources import table_columns
from dlen.data.sources.table_columns import TextVocabulary
from dlen.data.sources.table_encoding import UserNumbers
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
    monkeypatch.setattr(vocabulary, "PENDING", pending)
    assert counted(content, weighted=True) == expected


texts = st.lists(st.lists(st.lists(st.sampled_from([None, *"abcdefgh", "äö", ""]), max_size=9), max_size=3), max_size=4)


@given(texts, st.integers(1, 3), st.integers(1, 6), st.sampled_from([0, 3, 100]))
def test_texts_of_pieces_are_coded_by_their_counts(
    pieces: list[list[list[str | None]]], min_count: int, portion: int, pending: int
) -> None:
    counts = Counter(text for piece in pieces for chunk in piece for text in chunk if text is not None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "PENDING", pending)
        patch.setattr(table_columns, "_PORTION", portion)
        whole = TextVocabulary(min_count)
        for piece in pieces:
            own = TextVocabulary(min_count)
            for chunk in piece:
                own.add(pl.Series("x", chunk, pl.String))
            own.pack()
            whole.merge(own)
        new = whole.freeze()
    known = sorted((-n, text.encode()) for text, n in counts.items() if n >= min_count)
    assert list(zip(new["value"], new["count"], strict=True)) == [(text.decode(), -n) for n, text in known]
    codes: dict[str | None, int] = {text.decode(): code for code, (_, text) in enumerate(known, 1)}
    assert whole.encode(pl.Series("x", [*counts, None], pl.String)).tolist() == [
        codes.get(t, 0) for t in [*counts, None]
    ]


def texts_from(first: int) -> pl.Series:
    return pl.Series("x", np.arange(first, first + 10)).cast(pl.String)


@pytest.mark.parametrize(
    ("made", "merge", "add"),
    [
        (IdCounter(), "result", lambda made, first: made.add(np.arange(first, first + 10))),
        (TextVocabulary(1), "_merge", lambda made, first: made.add(texts_from(first))),
        (UserNumbers([], None), "pack", lambda made, first: made._add([texts_from(first)])),
    ],
)
def test_merges_stay_few_when_chunks_become_many(
    made: Any, merge: str, add: Callable[[Any, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At fixed intervals they would be as many as the chunks, each of all ids so far."""
    merges, plain = [0], getattr(type(made), merge)

    def count(self: Any) -> Any:
        merges[0] += 1
        return plain(self)

    monkeypatch.setattr(vocabulary, "PENDING", 8)
    monkeypatch.setattr(type(made), merge, count)
    for first in range(0, 4000, 10):
        add(made, first)
    assert 0 < merges[0] <= math.log2(400) + 1


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
    made = IdVocabulary(np.array([i for i in ids if counts[i] >= min_count], np.int64))
    codes = {i: n for n, i in enumerate((i for i in ids if counts[i] >= min_count), 1)}
    assert len(made) == len(codes) + 1
    assert made.encode(np.array(raw, np.int64)).tolist() == [codes.get(i, 0) for i in raw]


def test_encoding_keeps_the_shape() -> None:
    made = IdVocabulary(np.array([4, 7]))
    assert made.encode(np.array([[4, 7, 0], [8, -1, 4]])).tolist() == [[1, 2, 0], [0, 0, 1]]
