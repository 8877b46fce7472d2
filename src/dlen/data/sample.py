"""Sample: an evenly spaced sample of a stream of any length."""

from __future__ import annotations

import numpy as np

from dlen.data.columns import Array

_SAMPLE = 1 << 20


class Sample:
    """Keeps every 2^k-th value of a stream, with k large enough to keep at most a million values. k is 0 below that."""

    def __init__(self) -> None:
        self._parts: list[Array] = []
        self._size = 0
        self._step = 1
        self._seen = 0

    def add(self, values: Array) -> None:
        """Add the next values of the stream."""
        kept = values[(-self._seen) % self._step :: self._step]
        self._seen += len(values)
        self._parts.append(kept)
        self._size += len(kept)
        while self._size > _SAMPLE:
            self._halve()

    def merge(self, other: Sample) -> None:
        """Add what another sample kept of the values that follow."""
        step = max(self._step, other._step)
        for sample in (self, other):
            kept = np.concatenate([np.zeros(0), *sample._parts])[:: step // sample._step]
            sample._parts, sample._size, sample._step = [kept], len(kept), step
        self._parts += other._parts
        self._size, self._seen = self._size + other._size, self._seen + other._seen
        while self._size > _SAMPLE:
            self._halve()

    def _halve(self) -> None:
        self._parts = [np.concatenate(self._parts)[::2]]
        self._size, self._step = len(self._parts[0]), 2 * self._step

    def sorted(self) -> Array:
        """The kept values in ascending order."""
        return np.sort(np.concatenate(self._parts)) if self._parts else np.zeros(0)
