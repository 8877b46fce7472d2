"""Feed sessions: against a slow loop and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dlen.data.truth import Truth
from dlen.ranking.sessions import Behaviour, Outcome, session_users, simulate


def world(users: int = 6, items: int = 30, seed: int = 0, **changes: Any) -> Truth:
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "up": rng.random((users, items), dtype=np.float32),
        "given_up": rng.random((users, items, 2), dtype=np.float32),
        "leak": np.full((users, 2), 0.1, np.float32),
        "dislikes": np.array([False, True]),
        "popularity": rng.gamma(1.0, size=items),
    }
    return Truth(**(values | changes))


def slow(scores: np.ndarray, truth: Truth, sessions: int, behaviour: Behaviour, seed: int) -> np.ndarray:
    """Simulate one session after the other, one impression after the other.

    Returns:
        (U, 3 + T) views, detested, seconds, interactions.
    """
    users = len(truth.up)
    sums = np.zeros((users, 3 + truth.given_up.shape[2]))
    cumulative = np.cumsum(truth.popularity)
    rng = np.random.default_rng([seed, 0])
    shown = [set() for _ in range(users * sessions)]  # type: list[set[int]]
    gone = np.zeros(users * sessions, bool)
    for step in range(behaviour.steps):
        places = rng.integers(0, 1 << 16, (users * sessions, behaviour.candidates), dtype=np.uint16)
        luck = rng.random((users * sessions, 2 + truth.given_up.shape[2]), dtype=np.float32)
        for session in np.flatnonzero(~gone):
            user = session // sessions
            offered = [
                int(np.searchsorted(cumulative, (p + 0.5) / (1 << 16) * cumulative[-1])) for p in places[session]
            ]
            left = [item for item in offered if item not in shown[session]] or offered
            item = max(left, key=lambda i: scores[user, i])
            shown[session].add(item)
            liked = luck[session, 0] < truth.up[user, item]
            sums[user, 0] += 1
            sums[user, 1] += not liked
            sums[user, 2] += behaviour.seconds_liked if liked else behaviour.seconds_other
            for task, dislike in enumerate(truth.dislikes):
                chance = truth.given_up[user, item, task] * (1.0 if liked != dislike else truth.leak[user, task])
                sums[user, 3 + task] += luck[session, 2 + task] < chance
            leaves = behaviour.leave + behaviour.tire * step + behaviour.detest * (not liked)
            gone[session] = luck[session, 1] < leaves
    return sums


def sums(outcome: Outcome) -> np.ndarray:
    return np.column_stack([outcome.views, outcome.detested, outcome.seconds, outcome.happened])


def test_it_equals_a_slow_loop() -> None:
    truth, behaviour = world(), Behaviour(candidates=7, steps=12, leave=0.05, tire=0.01, detest=0.1)
    scores = np.random.default_rng(3).random(truth.up.shape, dtype=np.float32)
    found = simulate(scores, truth, 4, behaviour, seed=5)
    assert sums(found) == pytest.approx(slow(scores, truth, 4, behaviour, seed=5))
    assert found.sessions.tolist() == [4.0] * 6


def test_sessions_are_as_long_as_a_geometric_law_says() -> None:
    truth = world(users=4, up=np.ones((4, 30), np.float32))
    behaviour = Behaviour(candidates=5, steps=10, leave=0.2, tire=0.0, detest=0.9)
    found = simulate(None, truth, 5000, behaviour, seed=0)
    assert found.views.sum() / 20_000 == pytest.approx((1 - 0.8**10) / 0.2, rel=0.02)
    assert found.detested.sum() == 0
    assert found.seconds == pytest.approx(found.views * behaviour.seconds_liked)
    rates = found.happened.sum(0) / found.views.sum()
    popular = truth.popularity / truth.popularity.sum()
    assert rates[0] == pytest.approx((truth.given_up[..., 0] @ popular).mean(), abs=0.05)
    assert rates[1] == pytest.approx(
        0.1 * (truth.given_up[..., 1] @ popular).mean(), abs=0.02
    )  # a dislike, with its leak


def test_a_better_ranking_keeps_people_longer_on_the_same_random_numbers() -> None:
    truth = world(users=50, items=200)
    random, known = (simulate(s, truth, 40, Behaviour(), seed=1) for s in (None, truth.up))
    again = simulate(truth.up * 2 - 1, truth, 40, Behaviour(), seed=1)
    assert sums(known).tolist() == sums(again).tolist()  # only the order matters
    assert known.seconds.sum() > 1.5 * random.seconds.sum()
    assert known.detested.sum() / known.views.sum() < 0.2 < random.detested.sum() / random.views.sum()


def test_true_probabilities() -> None:
    truth = world(up=np.full((6, 30), 0.25, np.float32))
    found = truth.probabilities()
    assert found[..., 0] == pytest.approx(truth.given_up[..., 0] * (0.25 + 0.1 * 0.75))
    assert found[..., 1] == pytest.approx(truth.given_up[..., 1] * (0.75 + 0.1 * 0.25))


@pytest.mark.parametrize(
    "wrong", [{"candidates": 0}, {"steps": 1.5}, {"leave": 1.1}, {"detest": -0.1}, {"seconds_other": -1}]
)
def test_wrong_behaviour(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Behaviour(**wrong)


def test_a_search_has_other_users_than_its_test() -> None:
    tested, searched = session_users(40, 15, seed=3), session_users(40, 30, seed=3, searching=True)
    assert len(tested) == 15
    assert len(searched) == 20  # at most half
    assert not set(tested) & set(searched)
    assert sorted(session_users(40, 99, seed=3)) == list(range(40))
