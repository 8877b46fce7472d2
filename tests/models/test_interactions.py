"""Interactions against slow loops from the papers' formulas, under every preset, and on private vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dlen.models import DLEN, MMoE, Ranker, SingleTask
from dlen.models.features import Features, FeatureSpec
from dlen.models.interactions import (
    CrossInteraction,
    EPNetInteraction,
    FMInteraction,
    Interaction,
    PerTask,
    SENetInteraction,
    make_interaction,
)
from dlen.schema import Field, Kind
from dlen.targets import Targets
from dlen.training.conflict import task_gradients
from tests.helpers import FIELDS, make_batch, make_schema, wave

B, E, TASKS = 5, 3, 3
SPEC = FeatureSpec(("user", "item", "tags"), ("user", "item", "item"), ("age", "price"), dim=E, first_order=TASKS)
KINDS: dict[str, Callable[[FeatureSpec], Interaction]] = {
    "senet": SENetInteraction,
    "epnet": partial(EPNetInteraction, hidden=(7,)),
    "cross": partial(CrossInteraction, layers=3, rank=2),
    "fm": FMInteraction,
}


def features(spec: FeatureSpec = SPEC) -> Features:
    generator = torch.Generator().manual_seed(0)
    return Features(torch.randn(B, spec.width + spec.first_order, generator=generator), spec)


def drawn(module: Interaction) -> Interaction:
    """The module with all weights drawn at random, as if it had been trained."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module


def arrays(module: nn.Module) -> list[np.ndarray]:
    """The module's parameters in double precision."""
    return [p.detach().double().numpy() for p in module.parameters()]


def gate(x: np.ndarray, w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, b2: np.ndarray) -> np.ndarray:
    """2 sigmoid(W2 relu(W1 x + b1) + b2), one unit after another."""
    hidden = [max(0.0, float(w @ x + b)) for w, b in zip(w1, b1, strict=True)]
    return np.array([2 / (1 + np.exp(-(w @ np.array(hidden) + b))) for w, b in zip(w2, b2, strict=True)])


def slow_senet(module: Interaction, vectors: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    gates = gate(np.array([*(v.sum() / E for v in vectors), *numbers]), *arrays(module))
    return np.concatenate([*(g * v for g, v in zip(gates, vectors, strict=False)), gates[3:] * numbers])


def slow_epnet(module: Interaction, vectors: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    x = np.concatenate([*vectors, numbers])
    return x * gate(np.concatenate([vectors[0], x]), *arrays(module))


def slow_cross(module: Interaction, vectors: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    v, u_and_b = arrays(module)[:3], arrays(module)[3:]
    first = x = np.concatenate([*vectors, numbers])
    for layer in range(3):
        u, b = u_and_b[2 * layer], u_and_b[2 * layer + 1]
        x = np.array([first[i] * (sum(u[i, k] * (v[layer][k] @ x) for k in range(2)) + b[i]) + x[i] for i in range(11)])
    return x


def slow_fm(module: Interaction, vectors: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    (own,) = arrays(module)
    terms = [*vectors, *(number * vector for number, vector in zip(numbers, own, strict=True))]
    pairs = np.sum([a * b for a, b in combinations(terms, 2)], 0) / 5
    return np.concatenate([*vectors, pairs, numbers])


@pytest.mark.parametrize(
    ("kind", "slow"), [("senet", slow_senet), ("epnet", slow_epnet), ("cross", slow_cross), ("fm", slow_fm)]
)
def test_an_interaction_equals_its_formula(kind: str, slow: Callable[..., np.ndarray]) -> None:
    module, x = drawn(KINDS[kind](SPEC)), features()
    out = module(x)
    assert out.spec == module.out_spec
    assert out.flat.shape == (B, module.out_spec.width)
    wanted = [slow(module, x.fields[row].double().numpy(), x.numbers[row].double().numpy()) for row in range(B)]
    np.testing.assert_allclose(out.flat.detach().numpy(), wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(out.flat[:, :11], x.flat) or kind == "fm"
    assert out.first_order is not None
    assert torch.equal(out.first_order, x.values[:, SPEC.width :])


@pytest.mark.parametrize("kind", ["senet", "epnet", "cross"])
def test_before_training_the_features_are_as_they_were(kind: str) -> None:
    torch.manual_seed(0)
    x = features()
    assert torch.equal(KINDS[kind](SPEC)(x).values, x.values)


def test_the_pairs_are_one_more_field() -> None:
    out = FMInteraction(SPEC)(features())
    assert (out.spec.fields, out.spec.sides) == ((*SPEC.fields, "fm"), (*SPEC.sides, "cross"))
    assert torch.equal(out.fields[:, :3], features().fields)
    assert torch.equal(out.numbers, features().numbers)


def test_epnets_prior_fields_are_the_users_or_the_contexts_or_those_named() -> None:
    def prior(sides: tuple[str, ...], **settings: Any) -> list[int]:
        return EPNetInteraction(replace(SPEC, sides=sides), **settings).prior

    assert prior(("item", "user", "user")) == [1, 2]
    assert prior(("item", "context", "user")) == [2]
    assert prior(("context", "item", "item")) == [0]
    assert prior(("user", "item", "item"), fields=["tags", "user"]) == [2, 0]
    with pytest.raises(ValueError, match=r"interaction\.fields must name the prior fields .* user, item, tags"):
        prior(("item", "item", "cross"))


def test_epnets_gates_train_the_prior_fields_alone() -> None:
    """The gradient stops at the general input (equation 3), so it reaches an item only through its own gated value."""
    module, x = drawn(KINDS["epnet"](SPEC)), features()
    values = x.values.clone().requires_grad_()
    module(Features(values, SPEC)).flat[:, 0].sum().backward()  # a gated input of the user
    assert values.grad is not None
    assert bool((values.grad[:, 1:E] != 0).all())
    assert not values.grad[:, E:].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(SENetInteraction, reduction=0), r"interaction\.reduction must be a whole number"),
        (partial(CrossInteraction, layers=0), r"interaction\.layers must be a whole number"),
        (partial(CrossInteraction, rank=0), r"interaction\.rank must be a whole number"),
        (partial(EPNetInteraction, fields="user"), r"interaction\.fields must be a list of field names or null"),
        (partial(EPNetInteraction, fields=[]), r"interaction\.fields must be a list of field names or null"),
        (partial(EPNetInteraction, fields=["usr"]), r"interaction\.fields: 'usr' is not .*; did you mean user\?"),
        (partial(EPNetInteraction, hidden=[0]), "layer sizes"),
    ],
)
def test_a_wrong_setting_is_named(make: Callable[[FeatureSpec], Interaction], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(SPEC)


def test_cross_layers_have_the_numbers_of_deepctr_torch() -> None:
    """Numbers of CrossNet(4, layer_num=2, parameterization="matrix"): one matrix W per layer where we have U V.

    From shenweichen/DeepCTR-Torch, deepctr_torch/layers/interaction.py at f6854257, with W = U V of rank 2 and the
    weights and inputs below. Its CrossNetMix, of low rank too, has two tanh and a gate that ours has not.
    """
    cross = CrossInteraction(spec := FeatureSpec(("a",), ("user",), ("b", "c"), dim=2), layers=2, rank=2).double()
    state = {f"up.{k}.weight": wave(30 + k, 4, 2) for k in range(2)}
    state |= {f"down.{k}.weight": wave(40 + k, 2, 4) for k in range(2)}
    cross.load_state_dict(state | {f"up.{k}.bias": wave(50 + k, 4) for k in range(2)})
    wanted = [
        [-0.5903853177812415, -1.1307516639510375, 1.253904919879566, -2.463296528243901],
        [-2.5223045885049067, -0.04660636041703081, 2.7391359022949313, -1.2318870021535475],
    ]
    found = cross(Features(wave(60, 2, 4), spec)).flat
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [FIELDS[:1], FIELDS[2:3], (FIELDS[1], FIELDS[5])], ids=["id", "number", "both"])
def test_few_fields_suffice(kind: str, fields: tuple[Field, ...]) -> None:
    schema = make_schema(fields=fields)
    if kind == "epnet" and "user" not in [f.side for f in fields if f.kind is not Kind.NUMERIC]:
        with pytest.raises(ValueError, match=r"interaction\.fields"):
            MMoE(schema, interaction=KINDS[kind])
        return
    assert MMoE(schema, interaction=KINDS[kind])(make_batch(schema, 4)).log_p.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_hidden_state_depends_on_it(kind: str) -> None:
    torch.manual_seed(0)
    schema, batch = make_schema(), make_batch(make_schema(), 8)
    model = DLEN(schema, embedding_dim=E, hidden=(5,), interaction=KINDS[kind])
    assert model.interaction is not None
    drawn(model.interaction)
    latent = model(batch).latent
    assert latent is not None
    latent.log_up.sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.interaction.parameters())


def test_without_an_interaction_nothing_is_added() -> None:
    model = MMoE(make_schema(), embedding_dim=E, interaction=None)
    assert model.interaction is None
    assert not [key for key in model.state_dict() if "interaction" in key]
    x = model.features(make_batch(make_schema(), 4))
    assert model.inputs(x) is x


def test_hidden_fields_stay_hidden() -> None:
    schema = make_schema()
    model = Ranker(schema, interaction=KINDS["senet"], without=["item"]).eval()
    assert model.interaction is not None
    drawn(model.interaction)
    batch, moved = make_batch(schema, 5), make_batch(schema, 5)
    moved.ids[:, 1] = moved.ids[:, 1].flip(0)
    assert torch.equal(model(batch).log_p, model(moved).log_p)
    with pytest.raises(ValueError, match=r"interaction\.fields: 'item' is not"):
        Ranker(schema, interaction=partial(EPNetInteraction, fields=["item"]), without=["item"])


@pytest.mark.parametrize("kind", KINDS)
def test_private_vectors_have_an_interaction_for_each_task(kind: str) -> None:
    spec = replace(SPEC, dim=E * TASKS, parts=TASKS)
    x, module = features(spec), make_interaction(KINDS[kind], spec)
    assert isinstance(module, PerTask)
    drawn(module)
    out = module(x)
    inputs, outputs = x.by_task(TASKS), out.by_task(TASKS)
    assert outputs.shape == (TASKS, B, module.out_spec.task_width)
    for task in range(TASKS):
        alone: Any = module.tasks[task]
        torch.testing.assert_close(outputs[task], alone(Features(inputs[task], module.own)).flat)
    assert out.first_order is not None
    assert torch.equal(out.first_order, x.values[:, spec.width :])
    assert len(module.out_spec.numbers) == out.numbers.shape[1] == 2 * TASKS


@pytest.mark.parametrize("kind", KINDS)
def test_separate_tasks_still_share_nothing(kind: str) -> None:
    torch.manual_seed(0)
    batch = make_batch(make_schema(), 32)
    net = SingleTask(make_schema(), embedding_dim=E, expert=(8, 6), tower=(4,), interaction=KINDS[kind])
    assert isinstance(net.interaction, PerTask)
    drawn(net.interaction)
    assert task_gradients(net, batch, Targets(net.schema))[0].shape == (TASKS, 0)
    touched: dict[str, list[int]] = {}
    for task in range(TASKS):
        net.zero_grad()
        net(batch).log_p[:, task].sum().backward()
        for name, parameter in net.named_parameters():
            if parameter.grad is None:
                continue
            parts = parameter.grad.to_dense().split(E, 1) if parameter.grad.is_sparse else [parameter.grad]
            for number, part in enumerate(parts):
                touched.setdefault(f"{name}/{number}", []).extend([task] * bool(part.any()))
    assert {f"interaction.tasks.{task}" in key for key in touched for task in range(TASKS)} == {True, False}
    assert all(len(tasks) <= 1 for tasks in touched.values()), touched
