"""Heads against direct computation of the paper's equations, and their behaviour at extreme logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch import Tensor, nn

from dlen.models.dlen import LatentHead, joint_loss
from dlen.models.features import Features, FeatureSpec
from dlen.models.heads import IndependentHead, Ranking
from dlen.models.latent_start import Bound
from dlen.models.predictions import Latent, Predictions, task_losses
from dlen.nn.embedding import EmbeddingTable
from dlen.schema import Task
from tests.helpers import FIELDS, make_schema, tasks_with_rates

RATES = (0.3, 0.1, 0.02)
TASKS = ("t0", "t1", "t2")
ALPHAS: list[float | dict[str, float]] = [0.3, {"t0": 0.05, "t1": 0.5, "t2": 1.0}]
BOUNDS = list(Bound)
SPEC = FeatureSpec((), (), ("a", "b", "c", "d"), dim=1)


def latent_head(
    bound: Bound,
    alpha: float | Mapping[str, float] = 0.3,
    prediction: Ranking = Ranking.JOINT,
    rates: tuple[float, ...] = RATES,
    initial_leak: float = 0.05,
) -> LatentHead:
    schema = make_schema(tasks_with_rates(*rates))
    return LatentHead(
        schema,
        3,
        SPEC,
        alpha=alpha,
        bound=bound,
        prediction=prediction,
        tower=(5,),
        hidden=(6,),
        initial_leak=initial_leak,
    )


def latent_of(predictions: Predictions) -> Latent:
    assert predictions.latent is not None
    return predictions.latent


def logits(rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    c, n, up = (4 * torch.randn(shape, generator=generator) for shape in ((rows, 3), (rows, 3), (rows, 1)))
    return c.to(dtype), n.to(dtype), up.to(dtype)


def extreme_logits(size: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Every sign of the three logits, and 0, as rows; leaf tensors."""
    values = (-size, 0.0, size)
    rows = torch.tensor([(c, n, up) for c in values for n in values for up in values], dtype=dtype)
    c, n, up = rows[:, :1].repeat(1, 3), rows[:, 1:2].repeat(1, 3), rows[:, 2:].clone()
    return c.requires_grad_(), n.requires_grad_(), up.requires_grad_()


def alpha_of(alpha: float | Mapping[str, float], task: int) -> float:
    return alpha[TASKS[task]] if isinstance(alpha, Mapping) else alpha


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(c: float, n: float, up: float, alpha: float, bound: Bound, rate: float) -> dict[str, float]:
    """Equations (1) to (10) as printed, for one row and task."""
    p_up = sigmoid(up)
    given_up = sigmoid(c)
    base = {"conditional": given_up, "prior": rate, "absolute": 1.0}[bound.value]
    given_not_up = alpha * base * sigmoid(n)
    total = given_up * p_up + given_not_up * (1 - p_up)
    return {"up": p_up, "given_up": given_up, "given_not_up": given_not_up, "total": total, "joint": given_up * p_up}


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("prediction", list(Ranking))
def test_mixture_equals_the_equations(bound: Bound, alpha: float | dict[str, float], prediction: Ranking) -> None:
    c, n, up = logits(25)
    predictions = latent_head(bound, alpha, prediction).mixture(c, n, up)
    latent = latent_of(predictions)
    for row in range(25):
        for task in range(3):
            parts = (c[row, task].item(), n[row, task].item(), up[row].item())
            wanted = by_hand(*parts, alpha_of(alpha, task), bound, RATES[task])
            near = {key: pytest.approx(value, rel=1e-6) for key, value in wanted.items()}
            assert math.exp(latent.log_up[row]) == near["up"]
            assert math.exp(latent.log_given_up[row, task]) == near["given_up"]
            assert math.exp(latent.log_given_not_up[row, task]) == near["given_not_up"]
            assert math.exp(predictions.log_p[row, task]) == near["total"]
            assert 1 - math.exp(predictions.log_q[row, task]) == near["total"]
            assert math.exp(predictions.log_score[row, task]) == near[prediction.value]
            assert math.exp(latent.log_joint[row, task]) == near["joint"]


@pytest.mark.parametrize("bound", BOUNDS)
def test_probabilities_are_complementary(bound: Bound) -> None:
    predictions = latent_head(bound).mixture(*logits(200))
    latent = latent_of(predictions)
    ones = torch.ones(200, 3, dtype=torch.float64)
    torch.testing.assert_close(predictions.log_p.exp() + predictions.log_q.exp(), ones, rtol=0, atol=1e-12)
    torch.testing.assert_close(latent.log_up.exp() + latent.log_not_up.exp(), ones[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradients_equal_finite_differences(bound: Bound, alpha: float | dict[str, float]) -> None:
    head = latent_head(bound, alpha)

    def outputs(c: Tensor, n: Tensor, up: Tensor) -> tuple[Tensor, ...]:
        predictions = head.mixture(c, n, up)
        return predictions.log_p, predictions.log_q, predictions.log_score

    inputs = [x.requires_grad_() for x in logits(6)]
    assert torch.autograd.gradcheck(outputs, inputs)


def exact_logs(c: float, n: float, up: float, alpha: float, base: Decimal | None) -> tuple[float, float]:
    """log P(t) and log P(not t) with hundreds of digits; with ``base`` None, P(t | UP)."""
    with localcontext() as context:
        context.prec = 400
        s_c, s_n, s_up = (1 / (1 + Decimal(-x).exp()) for x in (c, n, up))
        total = s_c * s_up + Decimal(alpha) * (s_c if base is None else base) * s_n * (1 - s_up)
        return float(total.ln()), float((1 - total).ln())


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("alpha", [0.25, 1.0])
@pytest.mark.parametrize("size", [8.0, 80.0, 200.0])
def test_mixture_is_exact_at_extreme_logits_in_float32(bound: Bound, alpha: float, size: float) -> None:
    c, n, up = extreme_logits(size, torch.float32)
    predictions = latent_head(bound, alpha, rates=(0.25,) * 3).mixture(c, n, up)
    base = {"conditional": None, "prior": Decimal("0.25"), "absolute": Decimal(1)}[bound.value]
    rounding = 2e-7  # of a sum of two float32 shares of 1
    smallest = 87.0  # the lowest float32 log(1 - p) where p rounds to 1
    for row in range(len(c)):
        log_p, log_q = exact_logs(c[row, 0].item(), n[row, 0].item(), up[row].item(), alpha, base)
        assert predictions.log_p[row, 0].item() == pytest.approx(log_p, rel=1e-5, abs=rounding)
        if log_q > -smallest:
            assert predictions.log_q[row, 0].item() == pytest.approx(log_q, rel=1e-5, abs=rounding)
        else:
            assert predictions.log_q[row, 0].item() <= -smallest


def assert_finite(predictions: Predictions) -> None:
    for field in fields(predictions):
        if field.name not in ("latent", "log_joint", "values", "imputed"):
            assert getattr(predictions, field.name).isfinite().all(), field.name
    if predictions.latent is not None:
        for field in fields(predictions.latent)[:7]:  # without regressions, views and a second state
            assert getattr(predictions.latent, field.name).isfinite().all(), field.name


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("alpha", [0.1, 1.0])
@pytest.mark.parametrize("size", [80.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_extreme_logits_stay_finite(bound: Bound, alpha: float, size: float, dtype: torch.dtype, label: float) -> None:
    inputs = extreme_logits(size, dtype)
    predictions = latent_head(bound, alpha).mixture(*inputs)
    losses = task_losses(predictions, torch.full((27, 3), label), torch.ones(27, 3))
    losses.sum().backward()
    assert_finite(predictions)
    assert losses.isfinite().all()
    for x in inputs:
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [80.0, -200.0])
def test_half_precision_heads_predict_in_float32(dtype: torch.dtype, size: float) -> None:
    for head in (latent_head(Bound.CONDITIONAL), IndependentHead(make_schema(), 3, SPEC, tower=(5,))):
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.constant_(layer.bias, size)
        head.to(dtype)
        predictions = head(torch.ones(3, 2, 3, dtype=dtype), Features(torch.ones(2, 4, dtype=dtype), SPEC))
        task_losses(predictions, torch.ones(2, 3), torch.ones(2, 3)).sum().backward()
        assert predictions.log_p.dtype == torch.float32
        assert_finite(predictions)
        assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


ANY_LOGIT = st.floats(-200, 200, width=32)


@settings(max_examples=150)
@given(
    logits=st.tuples(ANY_LOGIT, ANY_LOGIT, ANY_LOGIT),
    alpha=st.floats(0.01, 1),
    rate=st.floats(1e-4, 0.9),
    bound=st.sampled_from(BOUNDS),
)
def test_given_not_up_never_exceeds_its_bound(
    logits: tuple[float, float, float], alpha: float, rate: float, bound: Bound
) -> None:
    c, n, up = (torch.tensor([x]) for x in logits)
    latent = latent_of(latent_head(bound, alpha, rates=(rate,)).mixture(c[:, None], n[:, None], up[:, None]))
    log_given_up = latent.log_given_up.item()
    base = {"conditional": log_given_up, "prior": math.log(rate), "absolute": 0.0}[bound.value]
    limit = math.log(alpha) + base
    assert latent.log_given_not_up.item() <= limit + 1e-6 * max(1.0, abs(limit))
    assert log_given_up <= 0


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_bound_is_reached_and_no_more(bound: Bound) -> None:
    c = torch.zeros(1, 3, dtype=torch.float64)
    latent = latent_of(latent_head(bound, 0.4).mixture(c, c + 60, c[:, :1]))
    wanted = {"conditional": [0.2] * 3, "prior": [0.4 * r for r in RATES], "absolute": [0.4] * 3}[bound.value]
    assert latent.log_given_not_up.exp()[0].tolist() == pytest.approx(wanted, rel=1e-6)


def test_task_losses_equal_sklearn_on_masked_rows() -> None:
    rng = np.random.default_rng(1)
    p, labels, mask = rng.uniform(0.01, 0.99, (50, 3)), rng.integers(0, 2, (50, 3)), rng.integers(0, 2, (50, 3))
    log_p, log_q = torch.tensor(np.log(p)), torch.tensor(np.log1p(-p))
    losses = task_losses(Predictions(log_p, log_q, log_p), torch.tensor(labels), torch.tensor(mask))
    for task in range(3):
        rows = mask[:, task] == 1
        wanted = log_loss(labels[rows, task], p[rows, task], labels=[0, 1])
        assert losses[task].item() == pytest.approx(wanted, rel=1e-10)


def test_a_task_without_rows_has_no_loss() -> None:
    log_p = torch.full((4, 2), -1.0)
    mask = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    losses = task_losses(Predictions(log_p, log_p, log_p), torch.ones(4, 2), mask)
    assert losses.tolist() == [1.0, 0.0]


def full_likelihood_by_hand(latent: Latent, labels: Tensor, row: int) -> float:
    """log of the sum over both states of the product over tasks, expanded."""
    total = 0.0
    for state, log_given in ((latent.log_up, latent.log_given_up), (latent.log_not_up, latent.log_given_not_up)):
        product = math.exp(state[row])
        for task in range(3):
            p = math.exp(log_given[row, task])
            product *= p if labels[row, task] else 1 - p
        total += product
    return math.log(total)


@pytest.mark.parametrize("bound", BOUNDS)
def test_full_likelihood_sums_the_hidden_state_out(bound: Bound) -> None:
    latent = latent_of(latent_head(bound).mixture(*logits(40)))
    labels = torch.tensor(np.random.default_rng(0).integers(0, 2, (40, 3)))
    wanted = np.mean([-full_likelihood_by_hand(latent, labels, row) for row in range(40)])
    assert joint_loss(latent, labels, torch.ones(40, 3)).item() == pytest.approx(wanted, rel=1e-6)


def test_full_likelihood_of_one_task_is_its_cross_entropy() -> None:
    head = LatentHead(make_schema(tasks_with_rates(0.2)), 3, SPEC, tower=(5,), hidden=(6,), likelihood="full")
    c, n, up = logits(30)
    predictions = head.mixture(c[:, :1], n[:, :1], up)
    labels, ones = (c[:, 1:2] > 0).double(), torch.ones(30, 1)
    marginal = task_losses(predictions, labels, ones).sum()
    assert head.loss(predictions, labels, ones, torch.ones(1)).item() == pytest.approx(marginal.item(), rel=1e-9)


def test_unobserved_labels_leave_the_full_likelihood_alone() -> None:
    latent = latent_of(latent_head(Bound.CONDITIONAL).mixture(*logits(20)))
    mask = torch.tensor([[1.0, 1.0, 0.0]]).expand(20, 3)
    ones, zeros = torch.ones(20, 3), torch.tensor([[1.0, 1.0, 0.0]]).expand(20, 3)
    assert joint_loss(latent, ones, mask).item() == joint_loss(latent, zeros, mask).item()


def test_a_dislike_turns_the_two_states_round() -> None:
    tasks = (Task("like", 0.1), Task("hate", 0.02, dislike=True))
    head = LatentHead(make_schema(tasks), 3, SPEC, alpha=0.2, prediction="joint", tower=(5,), hidden=(6,))
    c, n, up = logits(25)
    predictions = head.mixture(c[:, :2], n[:, :2], up)
    latent = latent_of(predictions)
    for row in range(25):
        p_up, hate = sigmoid(up[row].item()), sigmoid(c[row, 1].item())
        leaked = 0.2 * sigmoid(n[row, 1].item()) * hate
        assert latent.log_given_not_up[row, 1].exp().item() == pytest.approx(hate, rel=1e-6)
        assert latent.log_given_up[row, 1].exp().item() == pytest.approx(leaked, rel=1e-6)
        assert predictions.log_score[row, 1].exp().item() == pytest.approx(hate * (1 - p_up), rel=1e-6)
        total = hate * (1 - p_up) + leaked * p_up
        assert predictions.log_p[row, 1].exp().item() == pytest.approx(total, rel=1e-6)
        assert predictions.log_q[row, 1].exp().item() == pytest.approx(1 - total, rel=1e-6)
    rates = biases_only(head).log_p.exp()[0].tolist()
    assert rates == pytest.approx([0.1, 0.02], rel=1e-4)


def test_match_joins_the_logit_of_the_hidden_state() -> None:
    schema = make_schema()
    spec = FeatureSpec.of(schema, EmbeddingTable(schema, 4))
    head = LatentHead(schema, 3, spec, tower=(5,), hidden=(6,), match=2)
    plain = LatentHead(schema, 3, spec, tower=(5,), hidden=(6,))
    plain.load_state_dict({k: v for k, v in head.state_dict().items() if not k.startswith("match.")})
    x = Features(torch.randn(7, spec.width), spec)
    assert head.match is not None
    assert head.match.users == [0]  # among user, item, tags, matches
    both = [latent_of(h(torch.ones(3, 7, 3), x)) for h in (head, plain)]
    odds = [latent.log_up - latent.log_not_up for latent in both]
    torch.testing.assert_close(odds[0] - odds[1], head.match(x.fields)[:, 0], rtol=1e-4, atol=1e-5)


def test_a_log_without_users_has_no_match() -> None:
    fields = tuple(f for f in FIELDS if f.side != "user")
    schema = make_schema(fields=fields)
    assert LatentHead(schema, 3, FeatureSpec.of(schema, EmbeddingTable(schema, 4)), match=8).match is None


def biases_only(head: IndependentHead | LatentHead) -> Predictions:
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)
    predictions: Predictions = head(torch.ones(len(head.towers.outputs), 1, 3), Features(torch.ones(1, 4), SPEC))
    return predictions


INITIAL_RATES = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 0.7, 0.9)
RATE_SETS = [*((rate,) for rate in INITIAL_RATES), INITIAL_RATES, INITIAL_RATES[:5]]


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("rates", RATE_SETS)
def test_latent_head_starts_at_the_training_rates(bound: Bound, alpha: float, rates: tuple[float, ...]) -> None:
    predictions = biases_only(latent_head(bound, alpha, rates=rates))
    assert predictions.log_p.exp()[0].tolist() == pytest.approx(rates, rel=1e-4)
    assert 0.02 <= latent_of(predictions).log_up.exp().item() <= 0.98 + 1e-6


@pytest.mark.parametrize("bound", list(Bound))
@pytest.mark.parametrize("leak", [0.02, 0.05, 0.2])
def test_latent_head_starts_at_the_leak_that_was_asked_for(bound: Bound, leak: float) -> None:
    latent = biases_only(latent_head(bound, 1.0, rates=(0.1, 0.02), initial_leak=leak)).latent
    assert latent is not None
    ratio = (latent.log_given_not_up - latent.log_given_up).exp()[0].tolist()
    assert ratio == pytest.approx([leak, leak], rel=1e-3)


def test_a_tight_bound_lowers_the_first_leak_below_it() -> None:
    latent = biases_only(latent_head(Bound.CONDITIONAL, 0.04, rates=(0.1,), initial_leak=0.05)).latent
    assert latent is not None
    assert (latent.log_given_not_up - latent.log_given_up).exp()[0].tolist() == pytest.approx([0.036], rel=1e-3)


@pytest.mark.parametrize("leak", [0.0, 1.0, -0.1])
def test_an_impossible_first_leak_is_refused(leak: float) -> None:
    with pytest.raises(ValueError, match="initial_leak must be above 0 and below 1"):
        latent_head(Bound.CONDITIONAL, 0.1, initial_leak=leak)


@pytest.mark.parametrize("rates", RATE_SETS)
def test_independent_head_starts_at_the_training_rates(rates: tuple[float, ...]) -> None:
    predictions = biases_only(IndependentHead(make_schema(tasks_with_rates(*rates)), 3, SPEC, tower=(5,)))
    assert predictions.log_p.exp()[0].tolist() == pytest.approx(rates, rel=1e-4)
    assert predictions.log_q.exp()[0].tolist() == pytest.approx([1 - r for r in rates], rel=1e-4)
    assert predictions.latent is None


def test_each_tower_reads_its_own_representation() -> None:
    head = latent_head(Bound.CONDITIONAL)
    generator = torch.Generator().manual_seed(0)
    representations = torch.randn(3, 4, 3, generator=generator)
    x = Features(torch.randn(4, 4, generator=generator), SPEC)
    before = latent_of(head(representations, x))
    changed = representations.clone()
    changed[1] += 1.0
    after = latent_of(head(changed, x))
    moved = (after.log_given_up != before.log_given_up).any(0)
    assert moved.tolist() == [False, True, False]
    assert torch.equal(after.log_up, before.log_up)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.5, math.nan])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be above 0"):
        latent_head(Bound.CONDITIONAL, alpha)


def test_alpha_by_task_must_name_every_task() -> None:
    with pytest.raises(ValueError, match="alpha must name every task"):
        latent_head(Bound.CONDITIONAL, {"t0": 0.1, "t1": 0.1})


def test_unknown_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="bound must be one of conditional, prior, absolute"):
        LatentHead(make_schema(), 3, SPEC, bound="tight")
