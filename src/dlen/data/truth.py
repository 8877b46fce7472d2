"""Ground truth of a simulator about users and items, as matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Truth:
    """Ground truth of a simulator for U users and I items.

    Attributes:
        up: (U, I) P(UP).
        given_up: (U, I, T) P(t | UP), or P(t | not UP) for a dislike.
        leak: (U, T) factor on this probability in the other state.
        dislikes: (T,) tasks that occur if the user does not like the item.
        popularity: (I,) sampling weights of retrieval, at any scale.
    """

    up: Floats
    given_up: Floats
    leak: Floats
    dislikes: NDArray[np.bool_]
    popularity: NDArray[np.float64]

    def probabilities(self) -> Floats:
        """(U, I, T) true P(t)."""
        likes = np.where(self.dislikes, 1 - self.up[..., None], self.up[..., None])
        probabilities: Floats = (self.given_up * (likes + self.leak[:, None] * (1 - likes))).astype(np.float32)
        return probabilities
