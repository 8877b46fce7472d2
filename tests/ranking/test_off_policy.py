"""Off-policy estimates against the policy's true value, against obp, and against a slow count."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from obp.ope import InverseProbabilityWeighting, SelfNormalizedInverseProbabilityWeighting

from dlen.batch import Batch
from dlen.ranking.estimators import Estimator, best_of, swap_items
from dlen.schema import Field, Kind, Schema, Task

RNG = np.random.default_rng(0)


def test_weights_are_the_share_of_choices_that_the_item_beats() -> None:
    torch.manual_seed(0)
    score, others = torch.rand(40), torch.rand(40, 7)
    found = best_of(score, others, 4, torch.Generator())
    for row in range(40):
        beats = [all(score[row] > others[row, list(c)]) for c in combinations(range(7), 3)]
        assert found[row].item() == pytest.approx(4 * np.mean(beats))


def test_ties_are_broken_evenly() -> None:
    found = best_of(torch.zeros(20_000), torch.zeros(20_000, 3), 2, torch.Generator().manual_seed(0))
    assert found.mean().item() == pytest.approx(1.0, abs=0.02)
    with pytest.raises(ValueError, match="candidates must be from 1 to 4"):
        best_of(torch.zeros(2), torch.zeros(2, 3), 5, torch.Generator())


def test_the_estimate_is_the_value_of_the_policy() -> None:
    """For users and items with known rates, the rate of the best of M by a score is a sum."""
    users, items, candidates, rows, draws = 30, 25, 5, 200_000, 12
    rates, scores = RNG.random((users, items)) * 0.6, RNG.random((users, items))
    place = scores.argsort(1).argsort(1) + 1
    shown = (place / items) ** candidates - ((place - 1) / items) ** candidates
    value = (rates * shown).sum(1).mean()
    user, item = RNG.integers(users, size=rows), RNG.integers(items, size=rows)
    labels = (RNG.random(rows) < rates[user, item]).astype(float)
    further = RNG.integers(items, size=(rows, draws))
    of_own, of_drawn = torch.from_numpy(scores[user, item]), torch.from_numpy(scores[user[:, None], further])
    estimator = Estimator(best_of(of_own, of_drawn, candidates, torch.Generator()).numpy(), user)
    assert estimator.weights.mean() == pytest.approx(1.0, abs=0.01)
    for found in (estimator.ips(labels), estimator.snips(labels)):
        assert found.low < value < found.high
        assert found.high - found.low < 0.08
    # The effective rows are fewer than were logged and, by Rao-Blackwell, more than the M-th part that would be shown.
    assert rows / candidates < estimator.effective_rows < rows * 2 / candidates


def test_estimators_against_obp() -> None:
    rows, actions = 500, 6
    policy = RNG.dirichlet(np.ones(actions), rows)
    action, labels = RNG.integers(actions, size=rows), (RNG.random(rows) < 0.3).astype(float)
    told = {"reward": labels, "action": action, "pscore": np.full(rows, 1 / actions), "action_dist": policy[:, :, None]}
    estimator = Estimator(policy[np.arange(rows), action] * actions, np.arange(rows))
    ips, snips = InverseProbabilityWeighting(), SelfNormalizedInverseProbabilityWeighting()
    assert estimator.ips(labels).value == pytest.approx(ips.estimate_policy_value(**told))
    assert estimator.snips(labels).value == pytest.approx(snips.estimate_policy_value(**told))


def test_intervals_hold_what_they_promise_where_users_differ() -> None:
    """Rows of a user are dependent: intervals that assume independence would have far lower coverage."""
    inside = {"ips": 0, "snips": 0, "gain": 0, "alone": 0}
    rounds = 300
    for _ in range(rounds):
        user = np.repeat(np.arange(80), 25)
        of_user = RNG.normal(size=80)[user]
        labels = (RNG.random(2000) < 1 / (1 + np.exp(-of_user))).astype(float)
        weights, others = RNG.gamma(1.0, size=2000), RNG.gamma(1.0, size=2000)
        estimator, other = Estimator(weights, user), Estimator(others, user)
        estimates = {"ips": estimator.ips(labels), "snips": estimator.snips(labels)}
        for name, found in estimates.items():
            inside[name] += found.low < 0.5 < found.high
        gain = estimator.snips_gain(other, labels)
        inside["gain"] += gain.low < 0 < gain.high
        alone = Estimator(weights, np.arange(2000)).snips(labels)
        inside["alone"] += alone.low < 0.5 < alone.high
    for name in ("ips", "snips", "gain"):
        assert 0.9 < inside[name] / rounds < 0.99
    assert inside["alone"] / rounds < 0.85


def test_one_user_has_no_interval_and_no_weight_no_estimate() -> None:
    alone = Estimator(np.ones(4), np.zeros(4, np.int64)).snips(np.array([0.0, 1, 1, 0]))
    assert alone.value == 0.5
    assert np.isnan(alone.low)
    nothing = Estimator(np.zeros(4), np.arange(4))
    assert np.isnan(nothing.snips(np.ones(4)).value)
    assert nothing.effective_rows == 0


FIELDS = (
    Field("user", Kind.ID, "user", 9),
    Field("item", Kind.ID, "item", 9),
    Field("liked", Kind.IDS, "user", 9),
    Field("tags", Kind.IDS, "item", 9),
    Field("hour", Kind.NUMERIC),
    Field("length", Kind.NUMERIC, "item"),
    Field("profile", Kind.VECTOR, "user", size=1),
    Field("caption", Kind.VECTOR, "item", size=1),
)


def _batch(first: int) -> Batch:
    """Two rows in which every value identifies the batch."""
    ids = torch.tensor([[first, first + 1], [first + 2, first + 3]])
    lengths = torch.tensor([[1, 2], [2, 0]]) if first < 100 else torch.tensor([[0, 1], [1, 3]])
    values = first + torch.arange(int(lengths.sum()))
    labels, truth, vectors = torch.zeros(2, 1), torch.zeros(2, 0), ids.float().split(1, 1)
    return Batch(ids, ids.float(), lengths, values, values.float(), labels, truth, vectors=vectors)


def test_items_are_swapped_and_nothing_else() -> None:
    schema = Schema(FIELDS, (Task("click", 0.1),), user="user")
    context, item = _batch(0), _batch(100)
    found = swap_items(context, item, schema)
    assert found.ids.tolist() == [[0, 101], [2, 103]]
    assert found.numeric.tolist() == [[0, 101], [2, 103]]
    assert [v.tolist() for v in found.vectors] == [[[0], [2]], [[101], [103]]]
    assert found.bag_lengths.tolist() == [[1, 2], [1, 3]]  # lists of the user, tags of the other item
    assert found.bag_ids.tolist() == [0, 1, 2, 101, 102, 103, 104]
    assert found.bag_weights.tolist() == found.bag_ids.tolist()
    assert swap_items(context, context, schema).bag_ids.tolist() == context.bag_ids.tolist()
    plain = replace(schema, fields=tuple(f for f in FIELDS if f.kind is not Kind.IDS))
    assert swap_items(context, item, plain).ids.tolist() == [[0, 101], [2, 103]]
    together = replace(schema, fields=(*FIELDS, Field("both", Kind.ID, "cross", 3)))
    with pytest.raises(ValueError, match="both describes user and item together"):
        swap_items(context, item, together)
