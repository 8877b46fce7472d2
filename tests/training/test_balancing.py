"""Balancing: closed-form weights, gradient surgery against plain gradients, and what cannot be balanced."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from dlen.errors import UserError
from dlen.models import AITM, DBMTL, DLEN, PLE, STEM, MMoE, Ranker, SingleTask
from dlen.models.interactions import CrossInteraction
from dlen.schema import Field, Kind, Task
from dlen.training.balancing import (
    FAMO,
    Balancer,
    DynamicWeightAverage,
    Fixed,
    GeometricMean,
    GradNorm,
    LossWeighting,
    SmoothTchebycheff,
    Surgery,
    Uncertainty,
)
from dlen.training.building import build_balancer
from dlen.training.module import RankingModule
from tests.helpers import WITH_DIMS, WITH_SEQUENCES, WITH_VECTORS, make_batch, make_schema

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
    "mmoe": lambda: MMoE(make_schema(), num_experts=2, expert=EXPERT, interaction=None, **SIZES),
    "cross": crossed,
    "sequences": lambda: MMoE(make_schema(fields=WITH_SEQUENCES), num_experts=2, expert=EXPERT, **SIZES),
    "vectors": lambda: MMoE(make_schema(fields=WITH_VECTORS), num_experts=2, expert=EXPERT, **SIZES),
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


def slopes(balancer: LossWeighting, losses: Tensor) -> Tensor:
    """Gradient of the combined loss by the losses of one step."""
    leaf = losses.clone().requires_grad_()
    balancer(leaf, torch.ones_like(leaf)).backward()
    assert leaf.grad is not None
    return leaf.grad


def ready(balancer: LossWeighting, tasks: int = 3) -> LossWeighting:
    balancer.setup(tasks)
    return balancer.train()


def test_famo_takes_the_steps_of_torchjd() -> None:
    """The next batch's losses stand for those after the step; weights and gradients are those of another library."""
    scalarization = pytest.importorskip("torchjd.scalarization")
    ours, theirs = ready(FAMO(lr=0.1, weight_decay=0.01)), scalarization.FAMO(3, lr=0.1, weight_decay=0.01)
    draw = torch.Generator().manual_seed(0)
    for step in range(20):
        losses = torch.rand(3, generator=draw) * torch.tensor([1.0, 0.1, 3.0]) + 0.01
        if step:
            theirs.update(losses)
        leaf = losses.clone().requires_grad_()
        theirs(leaf).backward()
        torch.testing.assert_close(slopes(ours, losses), leaf.grad, rtol=1e-4, atol=1e-6)
    assert float(ours.task_weights().max()) > 0.4  # type: ignore[union-attr]  # they have moved


def test_geometric_mean_and_tchebycheff_have_the_gradients_of_torchjd() -> None:
    scalarization = pytest.importorskip("torchjd.scalarization")
    losses, first = torch.tensor([0.7, 0.05, 0.2]), torch.tensor([0.8, 0.04, 0.5])
    leaf = losses.clone().requires_grad_()
    scalarization.GeometricMean()(leaf).backward()
    torch.testing.assert_close(slopes(ready(GeometricMean()), losses), leaf.grad)
    ours = ready(SmoothTchebycheff(mu=0.3))
    slopes(ours, first)
    ours.end_epoch()
    leaf = losses.clone().requires_grad_()
    scalarization.STCH(0.3, weights=1 / first)(leaf).backward()
    torch.testing.assert_close(slopes(ours, losses), leaf.grad)


@pytest.mark.parametrize("make", [FAMO, SmoothTchebycheff, GeometricMean])
def test_a_task_without_rows_in_a_batch_changes_nothing(make: Callable[[], LossWeighting]) -> None:
    with_gap, without = ready(make()), ready(make())
    for balancer in (with_gap, without):
        slopes(balancer, torch.tensor([0.5, 0.3, 0.2]))
    found = slopes(with_gap, torch.tensor([0.4, 0.0, 0.2]))
    assert found[1] == 0
    assert (found[[0, 2]] > 0).all()
    assert found.isfinite().all()
    for balancer in (with_gap, without):
        assert slopes(balancer, torch.tensor([0.4, 0.2, 0.2])).isfinite().all()


def test_a_scale_of_one_task_changes_no_direction() -> None:
    """FAMO and the geometric mean see relative progress: a loss in other units gets a factor in other units."""
    scale = torch.tensor([1.0, 100.0, 1.0])
    for make in (FAMO, GeometricMean):
        one, other = ready(make()), ready(make())
        for losses in (torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.29, 0.1])):
            a, b = slopes(one, losses), slopes(other, losses * scale)
        ratio = a / (b * scale)
        torch.testing.assert_close(ratio, ratio[:1].expand(3), rtol=1e-4, atol=0)


def test_gradnorm_by_its_equations() -> None:
    balancer = GradNorm(alpha=1.5, warmup=2)
    balancer.setup(3)
    matrix, first = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 0.2, 0.1])
    for losses in (first * 0.9, first * 1.1):
        combined, factors = balancer.combine(matrix, losses)
        assert factors.tolist() == [1.0, 1.0, 1.0]
        torch.testing.assert_close(combined, matrix.sum(0))
    balancer.raw.data.copy_(torch.tensor([0.5, 1.0, 1.5]))
    now = torch.tensor([0.1, 0.2, 0.09])
    combined, factors = balancer.combine(matrix, now)
    assert factors.tolist() == pytest.approx([0.5, 1.0, 1.5])
    running = first + (now - first) / 2
    norms = [float(row.square().sum().sqrt()) for row in matrix]
    pace = [float(a / b) for a, b in zip(running, first, strict=True)]
    pace = [p / (sum(pace) / 3) for p in pace]
    mean = sum(w * g for w, g in zip((0.5, 1.0, 1.5), norms, strict=True)) / 3
    wanted = [g if w * g > mean * r**1.5 else -g for w, g, r in zip((0.5, 1.0, 1.5), norms, pace, strict=True)]
    assert balancer.raw.grad is not None
    assert balancer.raw.grad.tolist() == pytest.approx(wanted, rel=1e-5)


def test_gradnorm_weighs_towers_as_it_weighs_what_is_shared() -> None:
    made = module("mmoe", GradNorm(warmup=1))
    assert isinstance(made.balancer, GradNorm)
    wanted = gradients(module("mmoe"))
    found = gradients(made)
    for key, gradient in wanted.items():  # the first step has weights of 1
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6, msg=key)
    made.balancer.raw.data.copy_(torch.tensor([1.0] + [0.01] * (len(made.task_weights) - 1)))
    made.zero_grad()
    weights = made.balancer.task_weights()
    found = gradients(made)
    for task in range(len(weights)):
        key = f"head.towers.outputs.{task}.weight"
        torch.testing.assert_close(found[key], wanted[key] * weights[task], rtol=1e-4, atol=1e-6)


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
    for balancer in (Uncertainty(), DynamicWeightAverage(), FAMO(), GradNorm(), Surgery()):
        with pytest.raises(ValueError, match=r"set model\.head\.likelihood=marginal"):
            RankingModule(model, balancer=balancer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(Surgery, "PCGard"), "aggregator must be one of torchjd's .*PCGrad.*got 'PCGard'"),
        (partial(Surgery, "MGDA", steps=3), "aggregator MGDA: .*steps"),
        (partial(DynamicWeightAverage, 0.0), "temperature must be above 0"),
        (partial(FAMO, lr=-1), "balancing.lr"),
        (partial(SmoothTchebycheff, mu=0), "mu must be above 0"),
        (partial(GradNorm, warmup=0), "balancing.warmup"),
        (lambda: Surgery("TrimmedMean", trim_number=3).setup(5), "aggregator TrimmedMean: "),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], Balancer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_group_without_a_class_is_one_line() -> None:
    with pytest.raises(UserError, match="config balancing: names no class"):
        build_balancer(OmegaConf.create({"balancing": {"weights": {}}}))
