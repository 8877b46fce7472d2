"""MLP with a ReLU after every layer, as in the paper's experts and hidden state network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dlen.checks import is_number, is_whole


class MLP(nn.Module):
    """Linear layers, each followed by ReLU and dropout.

    Args:
        in_dim: number of input features.
        sizes: output features of each layer; empty for the identity.
        dropout: dropout probability after each layer.
    """

    def __init__(self, in_dim: int, sizes: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        check_layers(sizes)
        if not is_number(dropout) or not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a number from 0 to below 1, got {dropout!r}")
        layers: list[nn.Module] = []
        for size in sizes:
            layers += [nn.Linear(in_dim, size), nn.ReLU(inplace=True)]
            if dropout:
                layers.append(nn.Dropout(dropout))
            in_dim = size
        self.layers = nn.Sequential(*layers)
        self.out_dim = in_dim
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) -> (..., out_dim)."""
        out: Tensor = self.layers(x)
        return out


def check_layers(sizes: Sequence[int]) -> None:
    """Raise ValueError for layer sizes that are not a list of positive whole numbers."""
    if not isinstance(sizes, Sequence) or any(not is_whole(size) or size < 1 for size in sizes):
        raise ValueError(f"layer sizes must be a list of whole numbers of at least 1, got {sizes!r}")
