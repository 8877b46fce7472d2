"""Balancing: closed-form weights, gradient surgery against plain gradients, and what cannot be balanced."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dlen.models import AITM, DBMTL, DLEN, PLE, STEM, MMoE, Ranker, SingleTask
from dlen.models.interactions import CrossInteraction
from dlen.schema import Field, Kind, Task
from dlen.training.balancing import Balancer, DynamicWeightAverage, Fixed, Surgery, Uncertainty
from dlen.training.module import RankingModule
from tests.helpers import WITH_DIMS, WITH_SEQUENCES, make_batch, make_schema

SIZES: dict[str, Any] = {"embedding_dim": 3, "tower": (4,)}
EXPERT = (8, 6)
FUNNEL = (Task("ctr", 0.3), Task("cvr", 0.2, observed_where="ctr"))


def crossed() -> Ranker:
    """MMoE after a cross network, as after some steps: before the first, only one of its matrices has a gradient."""
    model = MMoE(make_schema(), expert=EXPERT, interaction=partial(CrossInteraction, rank=2), **SIZES)
    assert model.interaction is not None
    for parameter in model.interaction.parameters():
        torch.nn.init.normal_(parameter)
    return model


MODELS: dict[str, Callable[[], Ranker]] = {
    "mmoe": lambda: MMoE(make_schema(), num_experts=2, expert=EXPERT, **SIZES),
    "cross": crossed,
    "sequences": lambda: MMoE(make_schema(fields=WITH_SEQUENCES), num_experts=2, expert=EXPERT, **SIZES),
    "dims": lambda: MMoE(make_schema(fields=WITH_DIMS), num_experts=2, expert=EXPERT, **SIZES),
    "ple": lambda: PLE(make_schema(), levels=2, shared_experts=1, task_experts=1, expert=EXPERT, **SIZES),
    "dlen": lambda: DLEN(make_schema(), hidden=(5,), likelihood="marginal", alpha=0.3, match=2, **SIZES),
    "stem": lambda: STEM(make_schema(), expert=EXPERT, **SIZES),
    "dbmtl": lambda: DBMTL(make_schema(), expert=EXPERT, **SIZES),
    "aitm": lambda: AITM(make_schema(FUNNEL), expert=EXPERT, **SIZES),
}


def module(name: str, balancer: Balancer | None = None) -> RankingModule:
    torch.manual_seed(0)
    made = RankingModule(MODELS[name](), balancer=balancer)
    made.task_weights.copy_(torch.arange(1, len(made.task_weights) + 1))
    if name == "aitm":  # a later step more likely than the previous one, so that the calibrator has a gradient
        head: Any = made.model.head
        head.towers.outputs[1].bias.data.fill_(2.0)
    return made.train()


def gradients(made: RankingModule) -> dict[str, Tensor]:
    """Gradients after one training step, as Lightning takes it."""
    made.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    loss = made.training_step(make_batch(made.model.schema, 32), 0)
    made.backward(loss)
    found = {n: p.grad for n, p in made.model.named_parameters() if p.grad is not None}
    return {n: g.to_dense() if g.is_sparse else g for n, g in found.items()}


@pytest.mark.parametrize("name", MODELS)
def test_surgery_that_adds_gives_the_gradients_of_the_weighted_sum(name: str) -> None:
    wanted, found = gradients(module(name)), gradients(module(name, Surgery("Sum")))
    assert found.keys() == wanted.keys()
    assert any((g != 0).any() for n, g in wanted.items() if n.startswith("embedding"))
    for key, gradient in wanted.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6, msg=key)


def test_surgery_without_an_embedding_or_anything_shared() -> None:
    numbers = make_schema(fields=(Field("age", Kind.NUMERIC, "user"), Field("price", Kind.NUMERIC, "item")))
    for kind in (MMoE, SingleTask):
        torch.manual_seed(0)
        model = kind(numbers, expert=EXPERT, **SIZES)
        plain, joined = RankingModule(model).train(), RankingModule(model, balancer=Surgery("Sum")).train()
        wanted = gradients(plain)
        model.zero_grad()
        for key, gradient in gradients(joined).items():
            torch.testing.assert_close(gradient, wanted[key], rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", ["mmoe", "cross"])
@pytest.mark.parametrize("aggregator", ["UPGrad", "MGDA", "PCGrad", "AlignedMTL"])
def test_surgery_changes_what_is_shared_and_nothing_else(aggregator: str, name: str) -> None:
    wanted, found = gradients(module(name)), gradients(module(name, Surgery(aggregator)))
    for key, gradient in wanted.items():
        own = key.startswith(("head", "backbone.gates"))
        assert torch.allclose(found[key], gradient, rtol=1e-4, atol=1e-7) == own, key


def test_upgrad_pulls_against_no_task() -> None:
    made = module("mmoe", Surgery("UPGrad"))
    model, batch = made.model, make_batch(make_schema(), 32)
    found = gradients(made)
    shared = {n: p for n, p in model.named_parameters() if n.startswith("backbone.experts")}
    predictions = model(batch)
    assert isinstance(model, Ranker)
    losses = model.head.task_losses(predictions, batch.labels, torch.ones_like(batch.labels))
    x_rows = [torch.autograd.grad(loss, list(shared.values()), retain_graph=True) for loss in losses]
    for row in x_rows:  # the part of the embeddings is not in this product
        product = sum(float((g * found[n]).sum()) for n, g in zip(shared, row, strict=True))
        assert product > -1e-3


def test_uncertainty_at_its_optimum() -> None:
    losses = torch.tensor([0.7, 0.05, 0.2])
    balancer = Uncertainty()
    balancer.setup(3)
    balancer.log_variance.data = (2 * losses).log()  # where the derivative is zero
    total = balancer(losses, torch.ones(3))
    total.backward()
    assert balancer.log_variance.grad is not None
    torch.testing.assert_close(balancer.log_variance.grad, torch.zeros(3), atol=1e-6, rtol=0)
    assert total.item() == pytest.approx(float((0.5 + (2 * losses).log() / 2).sum()), rel=1e-5)
    torch.testing.assert_close(balancer.task_weights(), 1 / (2 * losses))


def test_uncertainty_is_optimised_with_the_model() -> None:
    made = module("mmoe", Uncertainty())
    seen: list[torch.nn.Module] = []

    def remember(whole: torch.nn.Module) -> torch.optim.Optimizer:
        seen.append(whole)
        return torch.optim.SGD(whole.parameters(), lr=0.1)

    made.make_optimizer = remember
    made.configure_optimizers()
    assert isinstance(made.balancer, Uncertainty)
    assert any(p is made.balancer.log_variance for p in seen[0].parameters())
    gradients(made)
    assert made.balancer.log_variance.grad is not None
    assert (made.balancer.log_variance.grad != 0).all()


def test_dynamic_weight_average_by_its_formula() -> None:
    balancer = DynamicWeightAverage(temperature=2.0)
    balancer.setup(2)
    balancer.train()
    epochs = [[(1.0, 2.0), (3.0, 2.0)], [(1.0, 1.0), (1.0, 1.0)], [(0.5, 0.9)]]
    ones = torch.ones(2)
    for epoch in epochs[:2]:
        for losses in epoch:
            assert balancer(torch.tensor(losses), ones).item() == pytest.approx(sum(losses))  # weights of 1
        balancer.end_epoch()
    ratio = torch.tensor([1.0 / 2.0, 1.0 / 2.0]).double()  # means of the second epoch over the first: (1, 1) / (2, 2)
    torch.testing.assert_close(balancer.task_weights(), 2 * (ratio / 2).softmax(0))
    balancer(torch.tensor([0.5, 0.9]), ones)
    balancer.end_epoch()
    wanted = 2 * (torch.tensor([0.5, 0.9]).double() / 2).softmax(0)
    torch.testing.assert_close(balancer.task_weights(), wanted, rtol=1e-6, atol=1e-7)
    loss = balancer(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0]))
    assert loss.item() == pytest.approx(float((wanted * torch.tensor([1.0, 6.0])).sum()), rel=1e-6)


def test_its_state_is_kept_in_checkpoints() -> None:
    one, other = (module("mmoe", DynamicWeightAverage()) for _ in range(2))
    gradients(one)
    one.on_train_epoch_end()
    other.load_state_dict(one.state_dict())
    assert isinstance(one.balancer, DynamicWeightAverage)
    assert isinstance(other.balancer, DynamicWeightAverage)
    assert (one.balancer.last > 0).all()
    assert torch.equal(one.balancer.last, other.balancer.last)
    assert not any(key.startswith("balancer") for key in module("mmoe", Fixed()).state_dict())


def test_a_joint_likelihood_cannot_be_balanced() -> None:
    model = DLEN(make_schema(), hidden=(5,), **SIZES)
    RankingModule(model)
    for balancer in (Uncertainty(), DynamicWeightAverage(), Surgery()):
        with pytest.raises(ValueError, match=r"set model\.head\.likelihood=marginal"):
            RankingModule(model, balancer=balancer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(Surgery, "PCGard"), "aggregator must be one of torchjd's .*PCGrad.*got 'PCGard'"),
        (partial(Surgery, "MGDA", steps=3), "aggregator MGDA: .*steps"),
        (partial(DynamicWeightAverage, 0.0), "temperature must be above 0"),
        (lambda: Surgery("TrimmedMean", trim_number=3).setup(5), "aggregator TrimmedMean: "),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], Balancer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
