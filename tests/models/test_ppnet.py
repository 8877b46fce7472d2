"""PPNet against a slow loop, and which fields and tasks train its gates."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from dlen.models import PEPNet
from dlen.models.backbones import PPNetBackbone, TaskNetworksBackbone
from dlen.models.features import Features
from dlen.models.interactions import EPNetInteraction, SENetInteraction
from tests.helpers import make_schema
from tests.models.test_backbones import total_gradient
from tests.models.test_interactions import SPEC, TASKS, B, E, features

EXPERT = (6, 4)


def drawn(**settings: Any) -> Any:
    """A module with all weights drawn at random, as if it had been trained."""
    generator = torch.Generator().manual_seed(1)
    module = PPNetBackbone(SPEC, TASKS, hidden=(5,), expert=EXPERT, **settings)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    return module


def applied(layer: Any, x: np.ndarray) -> np.ndarray:
    weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    return np.array([sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)])


def slow_ppnet(module: Any, prior: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    tasks = []
    for network in module.networks:
        hidden = x
        for layer, gates in zip(network.layers, network.gates, strict=True):
            hidden = np.maximum(applied(layer.layers[0], hidden), 0)
            units = np.maximum(applied(gates.hidden.layers[0], np.concatenate([prior, x])), 0)
            hidden = hidden * (2 / (1 + np.exp(-applied(gates.output, units))))
        tasks.append(hidden)
    return tasks


@pytest.mark.parametrize(("fields", "prior"), [(None, [0, 1, 2]), (["tags", "user"], [2, 0])])
def test_it_equals_the_formula(fields: list[str] | None, prior: list[int]) -> None:
    module, x = drawn(fields=fields), features()
    assert module.prior == prior
    out = module(x)
    assert out.shape == (TASKS, B, EXPERT[-1])
    assert module.out_dim == EXPERT[-1]
    rows = zip(x.fields.double().numpy(), x.flat.double().numpy(), strict=True)
    wanted = np.stack([slow_ppnet(module, np.concatenate(vectors[prior]), flat) for vectors, flat in rows], 1)
    np.testing.assert_allclose(out.detach().numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_before_training_it_is_a_network_per_task() -> None:
    torch.manual_seed(0)
    module: Any = PPNetBackbone(SPEC, TASKS, expert=EXPERT)
    plain = TaskNetworksBackbone(SPEC, TASKS, expert=EXPERT)
    weights = [p for network in module.networks for p in network.layers.parameters()]
    for own, copied in zip(plain.parameters(), weights, strict=True):
        own.data = copied.data
    assert torch.equal(module(features()), plain(features()))


@pytest.mark.parametrize("task", range(TASKS))
def test_networks_and_gates_learn_from_their_task_alone(task: int) -> None:
    module = drawn()
    module(features())[task].sum().backward()
    for owner, network in enumerate(module.networks):
        assert all((total_gradient(gates) > 0) is (owner == task) for gates in network.gates)
        assert all((total_gradient(layer) > 0) is (owner == task) for layer in network.layers)
    assert module.shared_parameters() == []


def test_the_gates_train_the_prior_fields_alone() -> None:
    """With networks that ignore their input, all gradients pass through the gates, and stop at the general input."""
    module = drawn(fields=["item"])
    for network in module.networks:
        network.layers[0].layers[0].weight.data.zero_()
        network.layers[0].layers[0].bias.data.fill_(1.0)
    values = features().values.clone().requires_grad_()
    module(Features(values, SPEC)).sum().backward()
    assert values.grad is not None
    assert bool((values.grad[:, E : 2 * E] != 0).any())
    assert not values.grad[:, :E].any()
    assert not values.grad[:, 2 * E :].any()


def test_prior_fields_are_the_users_and_items_or_the_contexts() -> None:
    def prior(*sides: str) -> list[int]:
        return PPNetBackbone(replace(SPEC, sides=sides), 2, expert=EXPERT).prior

    assert prior("item", "user", "context") == [0, 1]
    assert prior("context", "cross", "item") == [2]
    assert prior("context", "cross", "cross") == [0]
    with pytest.raises(ValueError, match=r"backbone\.fields must name the prior fields .* user, item, tags"):
        prior("cross", "cross", "cross")
    with pytest.raises(ValueError, match=r"backbone\.fields: 'usr' is not .*; did you mean user\?"):
        PPNetBackbone(SPEC, 2, fields=["usr"])
    with pytest.raises(ValueError, match=r"backbone\.fields must be a list of field names or null"):
        PPNetBackbone(SPEC, 2, fields="user")


def test_pepnet_has_gates_on_its_inputs_too_unless_another_interaction_is_named() -> None:
    assert isinstance(PEPNet(make_schema()).interaction, EPNetInteraction)
    other = PEPNet(make_schema(), interaction=partial(SENetInteraction, reduction=2)).interaction
    assert isinstance(other, SENetInteraction)
