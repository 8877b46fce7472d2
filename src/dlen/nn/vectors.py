"""Projects pretrained vectors, which are inputs and are not trained, to vectors of the embedding's length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_STD = 0.05  # of a projected vector at the start, as of the vectors of ids


class VectorProjections(nn.Module):
    """One linear map for each vector field, and for each part if tasks have private vectors.

    Without a bias, a missing vector, which is 0, stays 0, like an empty list.

    Args:
        sizes: length d of each field's vectors.
        dim: length E of a projected vector.
        parts: number P of equal parts of a projected vector; each has its own map.
    """

    def __init__(self, sizes: Sequence[int], dim: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.layers = nn.ModuleList()  # those of the first field, one for each part, then those of the second
        for size in (size for size in sizes for _ in range(parts)):
            self.layers.append(layer := nn.Linear(size, dim // parts, bias=False))
            nn.init.normal_(layer.weight, std=_STD / size**0.5)

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """(B, d) vectors of each of the X fields -> (B, X E)."""
        inputs = [values for values in vectors for _ in range(self.parts)]
        return torch.cat([layer(values) for layer, values in zip(self.layers, inputs, strict=True)], 1)
