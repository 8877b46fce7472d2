"""Gate: softmax weights over experts."""

from __future__ import annotations

from torch import Tensor, nn


class Gate(nn.Linear):
    """Computes the weights of E experts for each of G mixtures.

    Args:
        in_dim: input size D.
        mixtures: number of mixtures G.
        experts: number of experts E.
    """

    def __init__(self, in_dim: int, mixtures: int, experts: int) -> None:
        super().__init__(in_dim, mixtures * experts, bias=False)
        self.shape = (mixtures, experts)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, G, E) weights that sum to 1 over the experts."""
        return super().forward(x).unflatten(1, self.shape).softmax(2)
