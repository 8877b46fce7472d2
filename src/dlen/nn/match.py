"""Match: a dot product of user and item projections, as in two-tower retrieval."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Match(nn.Module):
    """Dot products of user fields and item fields, as logits.

    Each field has its own projection matrix. The projections are summed over the fields of each side, and the two sums
    are multiplied factor by factor (a factorisation machine, Rendle 2010, without pairs within a side).

    Args:
        users: indices of the user fields among the F fields.
        items: indices of all other fields.
        dim: length E of each vector.
        factors: length K of each projection.
        outputs: number of logits O.

    Raises:
        ValueError: a side has no field, or ``factors`` is below 1.
    """

    def __init__(self, users: Sequence[int], items: Sequence[int], dim: int, factors: int, outputs: int) -> None:
        super().__init__()
        if factors < 1 or not users or not items:
            raise ValueError(
                f"match needs a factor and fields on both sides, got factors={factors}, users={users} and items={items}"
            )
        self.users, self.items = list(users), list(items)
        self.projection = nn.Parameter(torch.empty(len(users) + len(items), dim, factors).normal_(std=0.25))
        self.weight = nn.Parameter(torch.ones(factors, outputs))

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, F, E) field vectors -> (B, O) logits."""
        user = torch.einsum("bfe,fek->bk", vectors[:, self.users], self.projection[self.users])
        item = torch.einsum("bfe,fek->bk", vectors[:, self.items], self.projection[self.items])
        return (user * item) @ self.weight
