"""A random order of n rows that is never written down.

A Feistel network is a bijection of 2^(2h) numbers made from any mixing function; numbers that fall outside 0..n-1
are sent through again until they fall inside ("cycle walking"), which leaves a bijection of n numbers. So the row
at any place of any epoch is computed from seed and epoch alone: constant memory at a billion rows, exact resume
in the middle of an epoch, and any rank can compute its own share.

Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlen.hashing import mix

_ROUNDS = 6


def permute(positions: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Rows at the given places of the shuffled order.

    Args:
        positions: (B,) places, each in 0..size-1.
        size: number of rows.
        seed: chooses the family of orders.
        epoch: chooses the order.

    Returns:
        (B,) row numbers; over all places 0..size-1 every row occurs exactly once.
    """
    half = np.uint64(max((max(size - 1, 1).bit_length() + 1) // 2, 1))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)
    result = positions.astype(np.uint64)
    walking = np.arange(len(result))
    while len(walking):
        left, right = result[walking] >> half, result[walking] & mask
        for key in keys:
            left, right = right, left ^ (mix(right, key) & mask)
        result[walking] = (left << half) | right
        walking = walking[result[walking] >= size]
    return result.astype(np.int64)
