"""Pooling of sequences against slow loops and the published formulas; ragged and padded places are the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dlen.nn.sequences import (
    LastPool,
    MeanPool,
    MultiHeadTargetAttention,
    Padded,
    Ragged,
    SequencePool,
    TargetAttention,
)
from tests.helpers import wave

DIM, LISTS, SHARED = 4, 3, [0, 2]
LENGTHS = torch.tensor([0, 2, 5, 0, 1])
KINDS = [MeanPool, LastPool, TargetAttention, MultiHeadTargetAttention]


def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
    """(P, N, E) values and (B, M, E) candidates."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(int(LENGTHS.sum()), LISTS, DIM, generator=generator)
    return values, torch.randn(len(LENGTHS), len(SHARED), DIM, generator=generator)


def slow(pool: SequencePool, values: Tensor, target: Tensor) -> Tensor:
    """The definition of a pool for one row with at least one place."""
    if isinstance(pool, MeanPool):
        return values.mean(0)
    if isinstance(pool, LastPool):
        return values[-1]
    if isinstance(pool, TargetAttention):
        total = torch.zeros_like(values[0])
        for value in values:
            x = torch.cat([value.flatten(), target.flatten(), (value[SHARED] * target).flatten()])
            total = total + pool.output(pool.layers(x)) * value
        return total
    assert isinstance(pool, MultiHeadTargetAttention)
    heads = []
    query = pool.query(target.flatten()).view(pool.heads, -1)
    for head in range(pool.heads):
        keys = [pool.key(value.flatten()).view(pool.heads, -1)[head] for value in values]
        logits = [float(query[head] @ key) / math.sqrt(pool.head_dim) for key in keys]
        weights = [math.exp(logit) / sum(map(math.exp, logits)) for logit in logits]
        heads.append(sum(w * value.flatten() for w, value in zip(weights, values, strict=True)))
    return pool.output(torch.cat(heads)).view(LISTS, DIM)


@pytest.mark.parametrize("kind", KINDS)
def test_pools_against_a_slow_loop(kind: type[SequencePool]) -> None:
    torch.manual_seed(1)
    pool = kind(DIM, LISTS, SHARED)
    values, target = drawn()
    pooled = pool(values, target, Ragged(LENGTHS, len(values)))
    for row, own in enumerate(values.split(LENGTHS.tolist())):
        wanted = slow(pool, own, target[row]) if len(own) else torch.zeros(LISTS, DIM)
        torch.testing.assert_close(pooled[row], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: type[SequencePool]) -> None:
    torch.manual_seed(1)
    pool = kind(DIM, LISTS, SHARED)
    values, target = drawn()
    padded = torch.full((len(LENGTHS), 7, LISTS, DIM), 1e3)
    padded[torch.arange(7) < LENGTHS[:, None]] = values
    expected = pool(values, target, Ragged(LENGTHS, len(values)))
    torch.testing.assert_close(pool(padded.flatten(0, 1), target, Padded(LENGTHS, 7)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_any_value_has_gradients_for_every_parameter(kind: type[SequencePool]) -> None:
    """Of zero: distributed training waits for all of them in every process."""
    pool = kind(DIM, LISTS, SHARED)
    values = torch.zeros(0, LISTS, DIM, requires_grad=True)
    pooled = pool(values, torch.ones(2, len(SHARED), DIM), Ragged(torch.zeros(2, dtype=torch.int64), 0))
    assert torch.equal(pooled, torch.zeros(2, LISTS, DIM))
    pooled.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in pool.parameters())


def test_attention_has_the_numbers_of_deepctr_torch() -> None:
    """Numbers of AttentionSequencePoolingLayer(att_hidden_units=(5, 3), att_activation="relu", embedding_dim=2).

    From shenweichen/DeepCTR-Torch, deepctr_torch/layers/sequence.py at f6854257, with the weights and inputs below.
    Its network sees candidate, value, their difference (candidate - value) and product, and ours no difference: the
    first layer is linear, so the difference's weights join those of candidate and value. Its biases and all other
    layers are ours. It pads with zeros; here places beyond a row's length are cut.
    """
    first, second, last = (wave(k, *shape) for k, shape in enumerate(((5, 8), (3, 5), (1, 3))))
    candidate, value, difference, product = first.split(2, 1)
    pool = TargetAttention(2, 1, [0], hidden=[5, 3]).double()
    pool.load_state_dict(
        {
            "layers.layers.0.weight": torch.cat([value - difference, candidate + difference, product], 1),
            "layers.layers.0.bias": wave(10, 5),
            "layers.layers.2.weight": second,
            "layers.layers.2.bias": wave(11, 3),
            "output.weight": last,
            "output.bias": wave(12, 1),
        }
    )
    target, keys, lengths = wave(20, 3, 1, 2), wave(21, 3, 4, 2), torch.tensor([4, 1, 0])
    places = torch.cat([row[:length] for row, length in zip(keys, lengths.tolist(), strict=True)])
    found = pool(places[:, None], target, Ragged(lengths, 5))[:, 0]
    wanted = [[2.8086870402153967, -6.332930904833741], [0.021613600839429245, 0.5014558860096741], [0.0, 0.0]]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_attention_needs_a_layer() -> None:
    with pytest.raises(ValueError, match="hidden must name at least one layer size"):
        TargetAttention(DIM, LISTS, SHARED, hidden=[])
