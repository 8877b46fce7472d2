"""A gate: softmax weights that mix experts."""

from __future__ import annotations

from torch import Tensor, nn


class Gate(nn.Linear):
    """Weights of E experts for each of G mixtures, from one input.

    Args:
        in_dim: D.
        mixtures: G.
        experts: E.
    """

    def __init__(self, in_dim: int, mixtures: int, experts: int) -> None:
        super().__init__(in_dim, mixtures * experts, bias=False)
        self.shape = (mixtures, experts)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, G, E), sums of 1 over the experts."""
        return super().forward(x).unflatten(1, self.shape).softmax(2)
