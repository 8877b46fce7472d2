"""The match of user and item: a dot product of two projections, as in two-tower retrieval."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Match(nn.Module):
    """Dot products of what is known of the user with what is known of the item, as logits.

    Each field's vector is projected by a matrix of its own; the projections of a side's fields add up, and the two
    sides are multiplied factor by factor (a factorisation machine, Rendle 2010, without the pairs inside a side).

    Args:
        users: positions of the user's fields among the F fields.
        items: positions of all other fields.
        dim: E, length of each vector.
        factors: K, length of a projection.
        outputs: O, number of logits.
        std: standard deviation of the initial projections.

    Raises:
        ValueError: a side has no field, or there is no factor.
    """

    def __init__(
        self, users: Sequence[int], items: Sequence[int], dim: int, factors: int, outputs: int, std: float = 0.25
    ) -> None:
        super().__init__()
        if factors < 1 or not users or not items:
            raise ValueError(f"match needs a factor and fields on both sides, got {factors}, {users} and {items}")
        self.users, self.items = list(users), list(items)
        self.projection = nn.Parameter(torch.empty(len(users) + len(items), dim, factors).normal_(std=std))
        self.weight = nn.Parameter(torch.ones(factors, outputs))

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, F, E) -> (B, O)."""
        user = torch.einsum("bfe,fek->bk", vectors[:, self.users], self.projection[self.users])
        item = torch.einsum("bfe,fek->bk", vectors[:, self.items], self.projection[self.items])
        return (user * item) @ self.weight
