"""Feed sessions with known ground truth: the effect of a ranking on interactions, page views and stay time.

At each step a ranker orders the candidates and its first one is shown. The user interacts according to the truth,
tires, and leaves sooner after an item they do not like. The outcomes are summed by user.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlen.checks import from_zero, is_number, whole
from dlen.data.truth import Truth

Floats = NDArray[np.float32]
_TABLE = 1 << 16  # entries of the table from which candidates are drawn
_CHUNK = 8192  # sessions per chunk


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a session continues and ends.

    Args:
        candidates: items that retrieval offers at each step, by popularity. Items already shown are not shown again.
        steps: maximum impressions of a session.
        leave: probability of leaving after an impression.
        tire: increase of this probability with each further impression.
        detest: increase of this probability after an impression that the user does not like.
        seconds_liked: stay time of an impression that the user likes.
        seconds_other: stay time of any other impression.

    Raises:
        ValueError: a probability or number is out of range.
    """

    candidates: int = 50
    steps: int = 40
    leave: float = 0.02
    tire: float = 0.002
    detest: float = 0.08
    seconds_liked: float = 25.0
    seconds_other: float = 5.0

    def __post_init__(self) -> None:
        whole("candidates", self.candidates, 1)
        whole("steps", self.steps, 1)
        for name in ("leave", "tire", "detest"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"{name}: {value!r} is not between 0 and 1")
        from_zero(seconds_liked=self.seconds_liked, seconds_other=self.seconds_other)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Sums over the sessions of each user.

    Attributes:
        sessions: (U,) sessions.
        views: (U,) impressions.
        detested: (U,) impressions of items that the user did not like.
        seconds: (U,) stay time.
        happened: (U, T) interactions.
    """

    sessions: NDArray[np.float64]
    views: NDArray[np.float64]
    detested: NDArray[np.float64]
    seconds: NDArray[np.float64]
    happened: NDArray[np.float64]


def session_users(users: int, number: int, seed: int, searching: bool = False) -> NDArray[np.int64]:
    """Choose the users who have sessions. A search of settings takes users from the other end of their order.

    Args:
        users: number of users in the simulated world.
        number: number of users to choose. At most all users are returned, and at most half for a search.
        searching: whether the sessions are used to choose settings.
    """
    order = np.random.default_rng(seed).permutation(users)
    return order[::-1][: min(number, max(users // 2, 1))] if searching else order[:number]


def simulate(scores: Floats | None, truth: Truth, sessions: int, behaviour: Behaviour, seed: int) -> Outcome:
    """Simulate the same number of sessions for every user.

    The random numbers of a session and step are the same for every ranking, so rankings are compared on the same
    candidates, moods and patience.

    Args:
        scores: (U, I) scores by which the ranker orders; None shows a random candidate.
        truth: truth of the same users and items.
        seed: seed of candidates and users.

    Returns:
        The outcome. An impression costs a gather of ``candidates`` scores.
    """
    users, items = truth.up.shape
    tasks = truth.given_up.shape[2]
    cumulative = np.cumsum(truth.popularity)
    table = np.searchsorted(cumulative, (np.arange(_TABLE) + 0.5) / _TABLE * cumulative[-1]).astype(np.int32)
    sums = np.zeros((users, 3 + tasks))
    of_session = np.repeat(np.arange(users, dtype=np.int32), sessions)
    for number, first in enumerate(range(0, len(of_session), _CHUNK)):
        user = of_session[first : first + _CHUNK]
        rng = np.random.default_rng([seed, number])
        shown = np.zeros((len(user), items), bool)
        alive = np.arange(len(user))  # sessions that continue
        for step in range(behaviour.steps):
            # Drawn for all sessions of the chunk, even ended ones: the numbers must not depend on the ranking.
            offered = table[rng.integers(0, _TABLE, (len(user), behaviour.candidates), dtype=np.uint16)]
            draws = rng.random((len(user), 2 + tasks), dtype=np.float32)
            viewer, choices, luck = user[alive], offered[alive], draws[alive]
            ranked = -np.arange(behaviour.candidates) if scores is None else scores[viewer[:, None], choices]
            ranked = np.where(shown[alive[:, None], choices], -np.inf, ranked)  # if all were shown, one is shown again
            item = choices[np.arange(len(alive)), ranked.argmax(1)]
            shown[alive, item] = True
            liked = luck[:, 0] < truth.up[viewer, item]
            prefers = np.where(truth.dislikes, ~liked[:, None], liked[:, None])
            chance = truth.given_up[viewer, item] * np.where(prefers, 1, truth.leak[viewer])
            happened = luck[:, 2:] < chance
            seconds = np.where(liked, behaviour.seconds_liked, behaviour.seconds_other)
            np.add.at(sums, viewer, np.column_stack([np.ones(len(viewer)), ~liked, seconds, happened]))
            leaves = behaviour.leave + behaviour.tire * step + behaviour.detest * ~liked
            alive = alive[luck[:, 1] >= leaves]
            if not len(alive):
                break
    counted = np.full(users, float(sessions))
    return Outcome(counted, sums[:, 0], sums[:, 1], sums[:, 2], sums[:, 3:])
