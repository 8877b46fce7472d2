"""Scale: gates from 0 to 2 that start at 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlen.nn.mlp import MLP


class Scale(nn.Module):
    """Gates from 0 to 2, 2 sigmoid(W MLP(x) + b): with W = 0 and b = 0, all of them are 1 before the first step.

    Args:
        in_dim: input size.
        hidden: hidden layer sizes.
        out_dim: number of gates G.
    """

    def __init__(self, in_dim: int, hidden: Sequence[int], out_dim: int) -> None:
        super().__init__()
        self.hidden = MLP(in_dim, hidden)
        self.output = nn.Linear(self.hidden.out_dim, out_dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim) -> (B, G)."""
        return 2 * torch.sigmoid(self.output(self.hidden(x)))
