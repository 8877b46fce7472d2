"""PAL: the position is a factor in training and ignored in evaluation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dlen.models import PAL
from dlen.schema import Task
from tests.helpers import make_batch, make_schema

SCHEMA = replace(make_schema((Task("ctr", 0.3), Task("cvr", 0.1, observed_where="ctr"))), position="item")


def model() -> PAL:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embedding_dim": 3, "num_experts": 2, "expert": (8, 6), "tower": (4,)}
    return PAL(SCHEMA, interaction=None, position_network=(5,), **sizes)


def test_evaluation_does_not_see_the_position() -> None:
    net, batch = model().eval(), make_batch(SCHEMA, 16)
    moved = make_batch(SCHEMA, 16)
    moved.ids[:, 1] = batch.ids[:, 1].flip(0)
    assert not torch.equal(moved.ids, batch.ids)
    assert torch.equal(net(moved).log_p, net(batch).log_p)
    assert not torch.equal(net.train()(moved).log_p[:, 0], net(batch).log_p[:, 0])


def test_training_fits_the_product_with_the_probability_of_being_seen() -> None:
    net, batch = model(), make_batch(SCHEMA, 16)
    trained, ranked = net.train()(batch), net.eval()(batch)
    position = net.embedding.weight[batch.ids[:, 1].long()]  # only its vector
    layer, output = net.position_network.layers[0], net.seen.outputs[0]
    assert isinstance(layer, nn.Linear)
    assert isinstance(output, nn.Linear)
    hidden = torch.relu(position @ layer.weight.T + layer.bias)
    seen = torch.sigmoid(hidden @ output.weight[0] + output.bias[0])
    torch.testing.assert_close(trained.log_p[:, 0].exp(), ranked.log_p[:, 0].exp() * seen)
    torch.testing.assert_close(trained.log_p.exp() + trained.log_q.exp(), torch.ones(16, 2))
    torch.testing.assert_close(trained.log_p[:, 1], ranked.log_p[:, 1])  # a click implies an examined item


def test_a_schema_without_position_is_refused() -> None:
    for position in (None, "age", "tags"):
        with pytest.raises(ValueError, match="pal needs a position"):
            PAL(replace(SCHEMA, position=position))


@pytest.mark.slow
def test_a_planted_position_bias_goes_into_its_factor() -> None:
    """Clicks are relevance times P(seen | position): the ratio of factors must be the planted one."""
    generator = torch.Generator().manual_seed(0)
    net, batch = model(), make_batch(SCHEMA, 8192)
    planted = torch.linspace(1.0, 0.1, 11)
    start = SCHEMA.offsets["item"]
    relevance = torch.where(batch.ids[:, 0] % 2 == 0, 0.8, 0.3)
    p = relevance * planted[(batch.ids[:, 1] - start).long()]
    batch.labels[:, 0] = (torch.rand(8192, generator=generator) < p).float()
    optimizer = torch.optim.Adam([q for q in net.parameters() if q is not net.embedding.weight], lr=0.01)
    table = torch.optim.SparseAdam([net.embedding.weight], lr=0.01)
    mask = torch.tensor([1.0, 0.0]).expand(8192, 2)
    for _ in range(200):
        optimizer.zero_grad(), table.zero_grad()
        net.head.loss(net(batch), batch.labels, mask, torch.ones(2)).backward()
        optimizer.step(), table.step()
    one_of_each = make_batch(SCHEMA, 11)
    one_of_each.ids[:, 1] = torch.arange(11) + start
    found = net.log_seen(net.features(one_of_each))[:, 0].exp()
    torch.testing.assert_close(found / found[0], planted, rtol=0.25, atol=0.05)
    biased, unbiased = net.train()(batch).log_p[:, 0].exp(), net.eval()(batch).log_p[:, 0].exp()
    with_bias, without = (torch.corrcoef(torch.stack([s, relevance]))[0, 1] for s in (biased, unbiased))
    assert without > 0.8
    assert without > with_bias + 0.2


def test_first_order_terms_would_let_the_position_rank() -> None:
    with pytest.raises(ValueError, match="first_order"):
        PAL(SCHEMA, first_order=True)
