"""Label patterns against a counter of rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dlen.data.prepare import prepare
from dlen.data.sources.feed import Feed
from dlen.label_patterns import PatternCounter
from dlen.models.label_classes import training_patterns
from dlen.schema import Schema
from tests.data.helpers import whole


@pytest.mark.parametrize("weighted", [False, True])
def test_patterns_are_those_of_the_rows(weighted: bool) -> None:
    rng = np.random.default_rng(3)
    labels = rng.choice(np.array([0, 1, 255], np.uint8), size=(900, 4))
    weights = rng.integers(0, 4, 900).astype(np.float32) if weighted else None
    counter, wanted = PatternCounter(4), Counter[str]()
    for chunk in np.array_split(np.arange(900), 7):
        counter.add(labels[chunk], None if weights is None else weights[chunk])
    for row, label in enumerate(labels):
        pattern = "".join({0: "0", 1: "1", 255: "-"}[int(mark)] for mark in label)
        wanted[pattern[:2] + "-" + pattern[3:]] += 1 if weights is None else int(weights[row])
    assert dict(counter.patterns(regressions=[2])) == {p: float(n) for p, n in wanted.items() if n}


def test_of_very_many_patterns_the_most_frequent_stay() -> None:
    bits = (np.arange(2**12)[:, None] >> np.arange(12) & 1).astype(np.uint8)
    counter = PatternCounter(12)
    counter.add(np.repeat(bits, 1 + (bits.sum(1) == 1), 0), None)
    kept = dict(counter.patterns())
    assert len(kept) == 1024
    assert sum(weight == 2 for weight in kept.values()) == 12


def test_more_tasks_than_a_code_holds_are_not_counted() -> None:
    counter = PatternCounter(41)
    counter.add(np.ones((5, 41), np.uint8), None)
    assert counter.patterns() == ()


def test_a_store_has_the_patterns_of_its_training_rows(tmp_path: Path) -> None:
    store = prepare(Feed(rows=3000, users=50, items=40), tmp_path)
    labels = whole(store.split("train")).labels.int().tolist()
    wanted = Counter("".join(map(str, row)) for row in labels)
    assert dict(store.schema.patterns) == dict(wanted)
    assert Schema.from_dict(store.schema.to_dict()) == store.schema
    patterns, _, weights = training_patterns(store.schema)
    assert patterns.shape == (len(wanted), 5)
    assert weights.sum() == len(labels)
