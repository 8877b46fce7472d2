"""MRAN against a slow loop over rows, heads and fields, and its attention maps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dlen.models import MRAN
from dlen.models.backbones import MRANBackbone
from tests.helpers import make_batch, make_schema

HEADS, WIDTH, DIM = 2, 4, 3


def model() -> MRAN:
    torch.manual_seed(0)
    return MRAN(make_schema(), embedding_dim=DIM, heads=HEADS, head_dim=WIDTH, expert=(8, 6), tower=(4,))


def attend(queries: list[Tensor], keys: list[Tensor], values: list[Tensor]) -> list[Tensor]:
    out = []
    for q in queries:
        weights = torch.stack([q @ k / math.sqrt(len(k)) for k in keys]).softmax(0)
        out.append(sum((w * v for w, v in zip(weights, values, strict=True)), torch.zeros_like(values[0])))
    return out


def slow(net: MRANBackbone, x: Tensor) -> Tensor:
    """Map (D,) to (T, H)."""
    fields = list(x[: 4 * DIM].split(DIM))
    fields += [number * vector for number, vector in zip(x[4 * DIM :], net.number_vectors, strict=True)]
    query, key, value = net.between_fields.weight.chunk(3)
    heads = [slice(a * WIDTH, (a + 1) * WIDTH) for a in range(HEADS)]

    def projected(matrix: Tensor, vectors: list[Tensor], head: slice) -> list[Tensor]:
        return [matrix[head] @ v for v in vectors]

    by_head = [attend(*(projected(m, fields, head) for m in (query, key, value))) for head in heads]
    mixed = [
        torch.relu(torch.cat([by_head[a][f] for a in range(HEADS)]) + net.residual.weight @ fields[f])
        for f in range(len(fields))
    ]
    key, value = net.to_fields.weight.chunk(2)
    pooled = []
    for task in range(3):
        parts = [
            attend([net.queries[task, a]], projected(key, mixed, head), projected(value, mixed, head))[0]
            for a, head in enumerate(heads)
        ]
        pooled.append(net.networks[task](torch.cat(parts)[None])[0])
    query, key, value = net.between_tasks.weight.chunk(3)
    moved = attend([query @ t for t in pooled], [key @ t for t in pooled], [value @ t for t in pooled])
    return torch.stack([own + other for own, other in zip(pooled, moved, strict=True)])


def test_representations_equal_a_slow_loop() -> None:
    net, batch = model(), make_batch(make_schema(), 6)
    features = net.features(batch)
    assert isinstance(net.backbone, MRANBackbone)
    wanted = torch.stack([slow(net.backbone, row) for row in features.flat], 1)
    torch.testing.assert_close(net.backbone(features), wanted, rtol=1e-4, atol=1e-6)


def test_attention_maps_are_distributions() -> None:
    net = model()
    assert isinstance(net.backbone, MRANBackbone)
    maps = net.backbone.attention(net.features(make_batch(make_schema(), 6)))
    shapes = {"fields": (6, HEADS, 6, 6), "tasks": (6, HEADS, 3, 6), "transfer": (6, 3, 3)}
    for name, shape in shapes.items():
        weights = getattr(maps, name)
        assert weights.shape == shape
        torch.testing.assert_close(weights.sum(-1), torch.ones(shape[:-1]))


def test_sizes_that_make_no_network_are_refused() -> None:
    for wrong in ({"heads": 0}, {"head_dim": 0}, {"expert": ()}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must"):
            MRAN(make_schema(), **wrong)
