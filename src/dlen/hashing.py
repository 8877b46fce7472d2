"""Hashes that are stable across machines and sessions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]


def mix(value: U64, key: np.uint64) -> U64:
    """The finaliser of SplitMix64: every output bit depends on every input bit."""
    value = value + key
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def seed_of(*parts: int) -> np.uint64:
    """One seed from several numbers, each at least 0."""
    seed: np.uint64 = np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]
    return seed


def fraction(values: NDArray[Any], seed: int) -> NDArray[np.float64]:
    """Hash each integer to a number in 0..1, for splits by user or by row."""
    return mix(values.astype(np.int64).view(np.uint64), seed_of(seed)) / 2.0**64
