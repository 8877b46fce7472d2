"""A random order of n rows that is never materialised.

A Feistel network turns any mixing function into a bijection on 2^(2h) numbers. Numbers outside 0..n-1 are fed back
until they fall inside ("cycle walking"), which gives a bijection on n numbers. The row at any position of any epoch
therefore depends only on seed and epoch: memory is constant even for a billion rows, training resumes exactly in the
middle of an epoch, and any rank can compute its own share.

Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlen.hashing import mix

_ROUNDS = 6


def permute(positions: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Rows at the given positions of the shuffled order.

    Args:
        positions: (B,) positions, each in 0..size-1.
        size: number of rows.
        seed: selects the family of orders.
        epoch: selects the order within the family.

    Returns:
        (B,) row numbers. Over all positions 0..size-1, every row occurs exactly once.
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
