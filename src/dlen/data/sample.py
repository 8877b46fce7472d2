"""Sample: some values of a stream of any length, evenly taken."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_SAMPLE = 1 << 20


class Sample:
    """Every 2^k-th value of a stream, with k rising so that at most a million are kept: exact below that."""

    def __init__(self) -> None:
        self._parts: list[Array] = []
        self._size = 0
        self._step = 1
        self._seen = 0

    def add(self, values: Array) -> None:
        """Offer the next values."""
        kept = values[(-self._seen) % self._step :: self._step]
        self._seen += len(values)
        self._parts.append(kept)
        self._size += len(kept)
        while self._size > _SAMPLE:
            self._parts = [np.concatenate(self._parts)[::2]]
            self._size, self._step = len(self._parts[0]), 2 * self._step

    def sorted(self) -> Array:
        """The kept values in rising order."""
        return np.sort(np.concatenate(self._parts)) if self._parts else np.zeros(0)
