"""Projects pretrained vectors, which are inputs and are not trained, to vectors of the embedding's length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_STD = 0.05  # of a projected vector at the start, as of the vectors of ids


class VectorProjections(nn.Module):
    """One linear map for each vector field, and for each task if tasks have private vectors.

    Without a bias, a missing vector, which is 0, stays 0, like an empty list.

    Args:
        sizes: length d of each field's vectors.
        dim: length E of a projected vector.
        parts: number P of equal parts of a projected vector, one per task; each has its own map.
    """

    def __init__(self, sizes: Sequence[int], dim: int, parts: int) -> None:
        super().__init__()
        fields = [[nn.Linear(size, dim // parts, bias=False) for _ in range(parts)] for size in sizes]
        for layer in (layer for of_field in fields for layer in of_field):
            nn.init.normal_(layer.weight, std=_STD / layer.in_features**0.5)
        self.fields = nn.ModuleList(nn.ModuleList(of_field) for of_field in fields)

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """(B, d) vectors of each of the X fields -> (B, X E)."""
        parts = []
        for field, values in zip(self.fields, vectors, strict=True):
            assert isinstance(field, nn.ModuleList)
            parts += [layer(values) for layer in field]
        return torch.cat(parts, 1)
