"""Hidden state metrics against numpy, scikit-learn and direct loops, and the warnings they trigger."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from dlen.batch import Batch
from dlen.models.dlen import LatentHead
from dlen.models.features import FeatureSpec
from dlen.models.predictions import Latent, Views
from dlen.schema import Schema, Task
from dlen.training.latent import LatentMeasures, Pair, view_warnings, warnings
from tests.helpers import make_batch, make_schema
from tests.nn.test_logspace import joint_by_bisection

ROWS = 400
TASKS = (Task("click", 0.3), Task("like", 0.1), Task("hate", 0.05, dislike=True))
Floats = NDArray[np.float64]


def world(truth: tuple[str, ...] = ("prefers", "up"), seed: int = 0) -> tuple[Schema, Batch, Latent]:
    """Rows whose labels follow a hidden state, and a latent head's predictions for them."""
    schema = make_schema(TASKS, truth=truth)
    batch, rng = make_batch(schema, ROWS), np.random.default_rng(seed)
    head = LatentHead(schema, 3, FeatureSpec((), (), ("x",), dim=1), alpha=0.3)
    c, n = (torch.tensor(rng.normal(size=(ROWS, 3)), dtype=torch.float32) for _ in range(2))
    latent = head.mixture(c, n, torch.tensor(2 * rng.normal(size=(ROWS, 1)), dtype=torch.float32)).latent
    assert latent is not None
    prefers = rng.random(ROWS) < latent.log_up.exp().numpy()
    chance = np.where(prefers[:, None], latent.log_given_up.exp(), latent.log_given_not_up.exp())
    batch.labels = torch.tensor(rng.random((ROWS, 3)) < chance, dtype=torch.float32)
    if truth:
        batch.truth[:, 0] = torch.tensor(prefers, dtype=torch.float32)
    return schema, batch, latent


def rows_of(latent: Latent, row: int) -> dict[str, Floats]:
    return {k: getattr(latent, k)[row].exp().double().numpy() for k in ("log_up", "log_given_up", "log_given_not_up")}


def posterior(latent: Latent, labels: Floats, row: int) -> float:
    """Bayes' rule as a product of probabilities."""
    parts: dict[str, Any] = rows_of(latent, row)
    states = []
    for prior, given in ((parts["log_up"], "log_given_up"), (1 - parts["log_up"], "log_given_not_up")):
        likelihood = 1.0
        for task in range(3):
            likelihood *= parts[given][task] if labels[row, task] else 1 - parts[given][task]
        states.append(prior * likelihood)
    return float(states[0] / sum(states))


def measured(schema: Schema, batch: Batch, latent: Latent) -> dict[str, float]:
    measures = LatentMeasures(schema, exact=True)
    measures.update(latent, batch)
    return measures.compute()[0]


def test_posterior_is_bayes_rule() -> None:
    _, batch, latent = world()
    found = latent.posterior_log_odds(batch.labels, torch.ones_like(batch.labels)).sigmoid()
    wanted = [posterior(latent, batch.labels.numpy(), row) for row in range(ROWS)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-4)


def test_three_kinds_of_negatives_by_a_loop_over_rows() -> None:
    schema, batch, latent = world()
    values, labels = measured(schema, batch, latent), batch.labels.numpy()
    prefers = batch.truth[:, 0].numpy()
    for task, name in enumerate(("click", "like")):
        for key, up in (
            ("negatives", [posterior(latent, labels, row) for row in range(ROWS)]),
            ("negatives_true", prefers.tolist()),
        ):
            kinds = np.zeros(3)
            for row in range(ROWS):
                if labels[row, task] == 0:
                    other = labels[row, 1 - task] == 1  # hate is not an interaction
                    kinds += [1, 0, 0] if other else [0, up[row], 1 - up[row]]
            kinds /= kinds.sum()
            found = [values[f"{key}/{kind}/{name}"] for kind in ("other", "silent", "detest")]
            assert found == pytest.approx(list(kinds), rel=1e-4)
    assert not any(key.endswith("/hate") for key in values if key.startswith("negatives"))


def test_aucs_of_the_hidden_state() -> None:
    schema, batch, latent = world()
    values, up, labels = measured(schema, batch, latent), latent.log_up.exp().numpy(), batch.labels.numpy()
    assert values["auc/up_any"] == pytest.approx(roc_auc_score(labels[:, :2].max(1), up), abs=1e-6)
    for task, name in enumerate(("click", "like")):
        assert values[f"hidden/auc/{name}"] == pytest.approx(roc_auc_score(labels[:, task], up), abs=1e-6)
    assert values["auc/up_hate"] == pytest.approx(roc_auc_score(labels[:, 2], -up), abs=1e-6)
    assert values["auc/up_truth"] == pytest.approx(roc_auc_score(batch.truth[:, 0], up), abs=1e-6)
    assert values["calibration/up_truth"] == pytest.approx(up.sum() / float(batch.truth[:, 0].sum()), rel=1e-5)


def test_distribution_and_leak() -> None:
    schema, batch, latent = world()
    values, up = measured(schema, batch, latent), latent.log_up.exp().double().numpy()
    assert values["hidden/mean"] == pytest.approx(up.mean(), rel=1e-5)
    assert values["hidden/std"] == pytest.approx(up.std(), rel=1e-4)
    assert values["hidden/saturated"] == pytest.approx(((up < 0.01) | (up > 0.99)).mean(), abs=1e-6)
    for q in (10, 50, 90):
        assert values[f"hidden/p{q}"] == pytest.approx(np.quantile(up, q / 100), abs=0.03)
    ratio = latent.log_given_not_up.exp().double().mean(0) / latent.log_given_up.exp().double().mean(0)
    assert values["leak/click"] == pytest.approx(float(ratio[0]), rel=1e-5)
    assert values["leak/hate"] == pytest.approx(1 / float(ratio[2]), rel=1e-5)


def test_a_real_log_has_no_figures_of_the_truth() -> None:
    values = measured(*world(truth=()))
    assert not [key for key in values if "truth" in key or "true" in key]


def test_a_funnels_parent_is_no_other_interaction() -> None:
    """On clicked rows every negative of conversion comes with a click, which carries no new information."""
    tasks = (Task("ctr", 0.3), Task("cvr", 0.1, observed_where="ctr", joint="ctcvr"), Task("like", 0.1))
    measures = LatentMeasures(make_schema(tasks), exact=True)
    assert measures.state.relations.tolist() == [[0, 1, 1], [0, 0, 1], [1, 1, 0]]


def test_two_batches_are_as_one_and_reset_forgets() -> None:
    schema, batch, latent = world()
    whole = measured(schema, batch, latent)
    measures = LatentMeasures(schema, exact=True)
    for _ in range(2):
        measures.update(latent, batch)
    twice, picture = measures.compute()
    assert twice == pytest.approx(whole, rel=1e-6)
    assert picture.counts.sum() == 2 * ROWS
    assert picture.counts[2].sum() == 2 * batch.labels[:, 2].sum()


def test_lifts_are_observed_over_expected_rows() -> None:
    schema, batch, latent = world()
    measures = LatentMeasures(schema, exact=True)
    measures.update(latent, batch)
    values, figures = measures.compute()
    parts = [rows_of(latent, row) for row in range(ROWS)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        observed = int((batch.labels[:, a] * batch.labels[:, b]).sum())
        chances = np.array(
            [
                p["log_up"] * p["log_given_up"][a] * p["log_given_up"][b]
                + (1 - p["log_up"]) * p["log_given_not_up"][a] * p["log_given_not_up"][b]
                for p in parts
            ]
        )
        names = (TASKS[a].name, TASKS[b].name)
        assert values["lift/" + "/".join(names)] == pytest.approx(observed / chances.sum(), rel=1e-5)
        (pair,) = [p for p in figures.pairs if p.tasks == names]
        spread = 3 * np.sqrt((chances * (1 - chances)).sum()) / chances.sum()
        assert pair.high == pytest.approx(pair.lift + spread, rel=1e-4)
        assert pair.low == pytest.approx(max(pair.lift - spread, 0), rel=1e-4, abs=1e-6)
        assert pair.low < 1 < pair.high  # the labels are drawn from the model


def test_linked_tasks_are_expected_together() -> None:
    """By the joint probability of their labels, summed over the states."""
    _, _, latent = world()
    first, second = torch.tensor([0, 0, 2]), torch.tensor([1, 2, 1])
    plain = latent.log_both(first, second)
    latent.views = Views(torch.tensor([1]), torch.tensor([0]), torch.tensor([[2.0], [3.0]]))
    linked = latent.log_both(first, second)
    torch.testing.assert_close(linked[:, 1:], plain[:, 1:])
    for row in range(20):
        wanted = 0.0
        for share, given, ratio in (
            (latent.log_up, latent.log_given_up, 2.0),
            (latent.log_not_up, latent.log_given_not_up, 3.0),
        ):
            a, b = given[row].double().exp()[:2].tolist()
            wanted += float(share[row].exp()) * joint_by_bisection(a, b, np.exp(ratio))
        assert float(linked[row, 0].exp()) == pytest.approx(wanted, rel=1e-4)


def test_what_happens_together_too_often_is_told_with_its_remedy() -> None:
    pairs = [Pair(("click", "like"), 1.4, 1.3, 1.5), Pair(("like", "follow"), 4.0, 3.0, 5.0)]
    pairs += [Pair(("click", "long_view"), 9.0, 8.0, 10.0)]
    views = [["click", "long_view"], ["like"], ["follow"], ["share"]]
    (line,) = view_warnings(pairs, views)
    assert "like and follow are positive together in 4.0 (3.0 to 5.0) times as many rows" in line
    assert "'model.head.views={click_long_view:[click,long_view],like_follow:[like,follow]}'" in line
    assert view_warnings(pairs[:1], views) == []


def test_too_few_views_are_told() -> None:
    (line,) = view_warnings([], [["click", "long_view"], ["like"]])
    assert "the labels are 2 views of P(UP) (click+long_view; like)" in line
    assert view_warnings([], [["click"], ["like"], ["share"]]) == []


HEALTHY = {"hidden/mean": 0.4, "hidden/std": 0.3, "hidden/saturated": 0.2, "leak/click": 0.1, "leak/like": 0.3}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"hidden/std": 0.01}, ["nearly constant", "lower model.head.alpha"]),
        ({"hidden/saturated": 0.97}, ["saturated", "optimizer.lr"]),
        ({"leak/like": 0.9}, ["for like: their towers ignore", "lower model.head.alpha"]),
    ],
)
def test_warnings_name_the_remedy(change: dict[str, float], said: list[str]) -> None:
    lines = warnings(HEALTHY | change, ["click", "like"])
    assert len(lines) == (1 if said else 0)
    for part in said:
        assert part in lines[0]
