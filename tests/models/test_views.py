"""Views and privileged views of DLEN's head against sums over every combination of state and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from dlen.models.dlen import LatentHead, joint_loss
from dlen.models.features import Features, FeatureSpec
from dlen.models.predictions import Evidence, Latent, Predictions
from dlen.schema import Schema, Task, View
from tests.models.test_label_classes import draw, schema_of, with_follower
from tests.nn.test_logspace import joint_by_bisection

SPEC = FeatureSpec((), (), ("a", "b"), dim=1)
ROWS = 12


def head_of(schema: Schema, **settings: object) -> LatentHead:
    torch.manual_seed(0)
    return LatentHead(schema, 3, SPEC, tower=(4,), hidden=(5,), **{"states": 1, **settings}).double()  # type: ignore[arg-type]


def predict(head: LatentHead, first_order: int = 0) -> tuple[Predictions, Latent]:
    """Predictions for random inputs, with a number of random first-order terms."""
    draw = torch.Generator().manual_seed(1)
    values = torch.randn(ROWS, 2, dtype=torch.float64, generator=draw)
    given = torch.randn(len(head.towers.towers), ROWS, 3, dtype=torch.float64, generator=draw)
    terms = 0.1 * torch.randn(ROWS, first_order, dtype=torch.float64, generator=draw)
    predictions = head(given, Features(torch.cat([values, terms], 1), replace(SPEC, first_order=first_order)))
    assert predictions.latent is not None
    return predictions, predictions.latent


@pytest.fixture(scope="module")
def schema() -> Schema:
    """Five tasks, of which t4 follows t0."""
    rng = np.random.default_rng(0)
    return schema_of(with_follower(rng, draw(rng, 50_000)[1]))


def states(latent: Latent, row: int) -> Sequence[tuple[float, list[float]]]:
    """P(state) and P(t | state) of each task, in both states."""
    up = float(latent.log_up[row].exp())
    return [(up, latent.log_given_up[row].exp().tolist()), (1 - up, latent.log_given_not_up[row].exp().tolist())]


def likelihood(latent: Latent, row: int, labels: Sequence[int], known: Sequence[int]) -> float:
    """P(labels) of one row, with t4 linked to t0, by the joint probability of both in each state."""
    assert latent.views is not None
    total = 0.0
    for state, (share, given) in enumerate(states(latent, row)):
        value = share
        for task in range(4):
            if known[task]:
                value *= given[task] if labels[task] else 1 - given[task]
        if known[4]:
            both = joint_by_bisection(given[0], given[4], math.exp(latent.views.log_ratios[state, 0].item()))
            cells = {
                (1, 1): both,
                (1, 0): given[0] - both,
                (0, 1): given[4] - both,
                (0, 0): 1 - given[0] - given[4] + both,
            }
            alone = given[4] if labels[4] else 1 - given[4]
            parent = given[0] if labels[0] else 1 - given[0]
            value *= cells[labels[0], labels[4]] / parent if known[0] else alone
        total += value
    return total


def test_the_loss_is_the_likelihood_of_all_labels(schema: Schema) -> None:
    predictions, latent = predict(head_of(schema))
    rng = np.random.default_rng(3)
    labels, known = rng.integers(0, 2, (ROWS, 5)), rng.integers(0, 2, (ROWS, 5))
    wanted = -np.mean([math.log(likelihood(latent, row, labels[row], known[row])) for row in range(ROWS)])
    got = joint_loss(latent, torch.tensor(labels).double(), torch.tensor(known).double())
    assert got.item() == pytest.approx(wanted, rel=1e-6)
    assert predictions.log_p.isfinite().all()


def test_probabilities_of_all_labels_sum_to_one(schema: Schema) -> None:
    _, latent = predict(head_of(schema))
    everything, total = torch.ones(ROWS, 5, dtype=torch.float64), torch.zeros(ROWS, dtype=torch.float64)
    for labels in product((0.0, 1.0), repeat=5):
        rows = torch.tensor(labels, dtype=torch.float64).expand(ROWS, 5)
        total = total + torch.logaddexp(*latent.log_with_labels(rows, everything)).exp()
    torch.testing.assert_close(total, torch.ones(ROWS, dtype=torch.float64), rtol=1e-9, atol=0)


def test_each_task_keeps_its_own_probability(schema: Schema) -> None:
    """The sum over the labels of all other tasks is equation (1)."""
    predictions, latent = predict(head_of(schema))
    everything = torch.ones(ROWS, 5, dtype=torch.float64)
    of_task = torch.zeros(ROWS, 5, dtype=torch.float64)
    for labels in product((0.0, 1.0), repeat=5):
        rows = torch.tensor(labels, dtype=torch.float64).expand(ROWS, 5)
        of_task += rows * torch.logaddexp(*latent.log_with_labels(rows, everything)).exp()[:, None]
    torch.testing.assert_close(of_task, predictions.log_p.exp(), rtol=1e-8, atol=0)


def test_views_none_takes_labels_as_independent(schema: Schema) -> None:
    head = head_of(schema, views="none")
    assert head.views is None
    assert head.view_names == [[f"t{n}"] for n in range(5)]
    _, latent = predict(head)
    labels = torch.ones(ROWS, 5, dtype=torch.float64)
    direct = torch.logaddexp(
        latent.log_up + latent.log_given_up.sum(1), latent.log_not_up + latent.log_given_not_up.sum(1)
    )
    assert joint_loss(latent, labels, labels).item() == pytest.approx(-direct.mean().item(), rel=1e-12)


def test_without_label_patterns_the_head_is_as_before(schema: Schema) -> None:
    plain, explicit = (
        head_of(replace(schema, patterns=()), **settings) for settings in ({}, {"initial_up": 0.5, "views": "none"})
    )
    assert plain.views is None
    for first, second in zip(plain.state_dict().values(), explicit.state_dict().values(), strict=True):
        assert torch.equal(first, second)


def test_the_head_starts_at_the_classes_of_the_labels(schema: Schema) -> None:
    """With inputs that say nothing, the first prediction is the latent class model's."""
    head = head_of(schema)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name.endswith("weight"):
                parameter.zero_()
    predictions, latent = predict(head)
    assert latent.log_up.exp().tolist() == pytest.approx([0.3] * ROWS, abs=0.03)
    torch.testing.assert_close(
        predictions.log_p[0].exp(), torch.tensor([t.rate for t in schema.tasks]).double(), rtol=1e-3, atol=0
    )
    leaks = (latent.log_given_not_up - latent.log_given_up)[0].exp().tolist()
    assert leaks == pytest.approx([0.15] * 5, abs=0.05)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ("some", "views must be auto, none or a mapping"),
        (None, "views must be auto, none or a mapping"),
        (["t0"], "views must be auto, none or a mapping"),
        ({"a": "t0"}, "must list the tasks"),
        ({"a": ["t0", "t1"], "b": ["t1", "t2"]}, "t1 occurs twice"),
        ({"a": ["t0", "t9"]}, "unknown task"),
    ],
)
def test_wrong_views_are_refused(schema: Schema, views: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head_of(schema, views=views)


def test_the_paper_s_likelihood_has_no_views(schema: Schema) -> None:
    head = head_of(schema, likelihood="marginal")
    assert head.views is None
    assert head.privileged is None


def test_binary_tasks_keep_their_links_when_regressions_are_left_out(schema: Schema) -> None:
    predictions, _ = predict(head_of(schema))
    chosen = predictions.only(torch.tensor([4, 2, 0])).latent
    assert chosen is not None
    assert chosen.views is not None
    assert (chosen.views.parent_tasks.tolist(), chosen.views.child_tasks.tolist()) == ([2], [0])
    privileged, _ = predict(head_of(replace(schema, views=(View("time", 4, of=("t2",)), View("more", 3)))))
    chosen = privileged.only(torch.tensor([4, 2, 0])).latent
    assert chosen is not None
    assert [evidence.tasks for evidence in chosen.evidence] == [(1,), ()]


# Columns known only afterwards


def density(evidence: Evidence, row: int, bin_: int, state: int, labels: Sequence[int] = ()) -> float:
    """``labels`` are those that the column depends on."""
    combination = sum(label << digit for digit, label in enumerate(labels))
    logits = (evidence.logits[state, combination] + evidence.shift[row]).exp()
    return float(logits[bin_] / logits.sum())


def test_evidence_is_a_density_in_each_state(schema: Schema) -> None:
    views = (View("time", 4), View("long_time", 3, of=("t1", "t3")))
    head = head_of(replace(schema, views=views))
    assert head.privileged is not None
    with torch.no_grad():
        for parameter in head.privileged.logits:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    _, latent = predict(head, first_order=5 + 2)
    rng = np.random.default_rng(4)
    labels, known = (
        torch.tensor(rng.integers(0, 2, (ROWS, 5))).double(),
        torch.tensor(rng.integers(0, 2, (ROWS, 5))).double(),
    )
    bins = torch.tensor(np.column_stack([rng.integers(0, 4, ROWS), rng.integers(0, 3, ROWS)])).byte()
    bins[::3, 0] = bins[1::3, 1] = 255
    without = latent.log_with_labels(labels, known)
    within = latent.log_with_labels(labels, known, bins)
    for row in range(ROWS):
        for state in (0, 1):
            wanted = 0.0
            if bins[row, 0] < 255:
                wanted += math.log(density(latent.evidence[0], row, int(bins[row, 0]), state))
            if bins[row, 1] < 255 and known[row, [1, 3]].all():
                of = [int(labels[row, task]) for task in (1, 3)]
                wanted += math.log(density(latent.evidence[1], row, int(bins[row, 1]), state, of))
            assert (within[state] - without[state])[row].item() == pytest.approx(wanted, abs=1e-6)


def test_evidence_starts_without_saying_anything(schema: Schema) -> None:
    _, latent = predict(head_of(replace(schema, views=(View("time", 4),))))
    labels = torch.ones(ROWS, 5, dtype=torch.float64)
    bins = torch.arange(ROWS).remainder(4)[:, None].byte()
    with_bins, without = (latent.posterior_log_odds(labels, labels, b) for b in (bins, None))
    torch.testing.assert_close(with_bins, without, rtol=0, atol=1e-9)


def test_evidence_is_no_input(schema: Schema) -> None:
    """Predictions are those of a head without it: its parameters come after all others."""
    plain, privileged = head_of(schema), head_of(replace(schema, views=(View("time", 4, of=("t2",)),)))
    assert torch.equal(predict(plain)[0].log_p, predict(privileged)[0].log_p)


@pytest.mark.parametrize("task", ["nothing", "t0"])
def test_a_view_of_no_binary_task_is_refused(task: str) -> None:
    if task == "t0":
        Schema((), (Task("t0", 0.1),), views=(View("time", 4, of=(task,)),))
    else:
        with pytest.raises(ValueError, match="of must name binary tasks"):
            Schema((), (Task("t0", 0.1),), views=(View("time", 4, of=(task,)),))


def test_densities_are_fitted_by_what_the_labels_say_alone(schema: Schema) -> None:
    """The loss adds the likelihood of the bins given a state that labels and the start tell, by a loop over rows."""
    head = head_of(replace(schema, views=(View("time", 4), View("long_time", 3, of=("t1", "t3")))))
    assert head.privileged is not None
    with torch.no_grad():
        for parameter in head.privileged.logits:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6)))
    predictions, latent = predict(head, first_order=5 + 2)
    rng = np.random.default_rng(7)
    labels, everything = torch.tensor(rng.integers(0, 2, (ROWS, 5))).double(), torch.ones(ROWS, 5).double()
    bins = torch.tensor(np.column_stack([rng.integers(0, 4, ROWS), rng.integers(0, 3, ROWS)])).byte()
    c, n = head.start_pairs.T[:, None]
    start = head.mixture(c, n, head.start_states[None]).latent
    assert start is not None
    wanted = 0.0
    for row in range(ROWS):
        row_labels = labels[row][None]
        up_odds = float(start.posterior_log_odds(row_labels, torch.ones(1, 5).double()))
        likelihood = 0.0
        for state, share in enumerate((1 / (1 + math.exp(-up_odds)), 1 / (1 + math.exp(up_odds)))):
            first = density(latent.evidence[0], row, int(bins[row, 0]), state)
            of = [int(labels[row, task]) for task in (1, 3)]
            likelihood += share * first * density(latent.evidence[1], row, int(bins[row, 1]), state, of)
        wanted -= math.log(likelihood) / ROWS
    loss = head.loss(predictions, labels, everything, torch.ones(5).double(), bins=bins)
    assert loss.item() - joint_loss(latent, labels, everything, bins=bins).item() == pytest.approx(wanted, rel=1e-9)


def test_evidence_teaches_the_state_and_not_the_other_way_round(schema: Schema) -> None:
    head = head_of(replace(schema, views=(View("time", 4),)))
    assert head.privileged is not None
    with torch.no_grad():
        head.privileged.logits[0][0, 0] = torch.tensor([-0.2, -0.1, 0.1, 0.2])
    labels, long = torch.ones(ROWS, 5, dtype=torch.float64), torch.full((ROWS, 1), 3).byte()

    def gradients(first: Tensor, bins: Tensor | None) -> tuple[Tensor, Tensor | None]:
        head.zero_grad()
        head.loss(predict(head)[0], labels * first, labels, torch.ones(5).double(), bins=bins).backward()
        assert head.hidden_output.weight.grad is not None
        assert head.privileged is not None
        return head.hidden_output.weight.grad.clone(), head.privileged.logits[0].grad

    plain, taught = gradients(torch.ones(5), None)[0], gradients(torch.ones(5), long)
    assert not torch.equal(plain, taught[0])
    with torch.no_grad():
        head.hidden_output.bias.add_(3.0)  # another P(UP) from the inputs
    assert torch.equal(taught[1], gradients(torch.ones(5), long)[1])  # type: ignore[arg-type]
