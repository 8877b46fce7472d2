"""MLP with a ReLU after every layer, as in the paper's experts and hidden state network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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


def each_mlp(mlps: Sequence[MLP], x: Tensor) -> Tensor:
    """(N, B, in_dim) -> (N, B, out_dim): each of N MLPs of one shape on its own input, with one product per layer.

    For MLPs as small as towers, N products one after the other cost more in calls than in arithmetic. The products of
    experts do not: one after the other they are faster (docs/log.md).
    """
    for layers in zip(*(mlp.layers for mlp in mlps), strict=True):
        x = each_linear(layers, x) if isinstance(layers[0], nn.Linear) else layers[0](x)
    return x


def each_linear(layers: Sequence[nn.Linear], x: Tensor) -> Tensor:
    """(N, B, in_features) -> (N, B, out_features): each of N linear layers of one shape on its own input."""
    weights, biases = (torch.stack(parts) for parts in zip(*((m.weight, m.bias) for m in layers), strict=True))
    return torch.baddbmm(biases[:, None], x, weights.mT)


def check_layers(sizes: Sequence[int]) -> None:
    """Raise ValueError for layer sizes that are not a list of positive whole numbers."""
    if not isinstance(sizes, Sequence) or any(not is_whole(size) or size < 1 for size in sizes):
        raise ValueError(f"layer sizes must be a list of whole numbers of at least 1, got {sizes!r}")
