"""Feed sessions on a world whose truth is known: what a ranking does to interactions, page views and stay time.

At each step a ranker orders candidates and its first one is shown. The user interacts by the truth, tires, and leaves
sooner after an item that they do not like. Counted is what came of it, for each user.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlen.data.truth import Truth

Floats = NDArray[np.float32]
_TABLE = 1 << 16  # places of the table from which candidates are drawn
_CHUNK = 8192  # sessions at a time


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a session goes on and ends.

    Args:
        candidates: that the retrieval offers at each step, by popularity; what was shown is not shown again.
        steps: most impressions of a session.
        leave: probability of leaving after an impression.
        tire: what is added to it with each further impression.
        detest: what is added to it after an impression that the user does not like.
        seconds_liked: of an impression that the user likes.
        seconds_other: of any other.

    Raises:
        ValueError: a probability or a number is out of range.
    """

    candidates: int = 50
    steps: int = 40
    leave: float = 0.02
    tire: float = 0.002
    detest: float = 0.08
    seconds_liked: float = 25.0
    seconds_other: float = 5.0

    def __post_init__(self) -> None:
        for name in ("candidates", "steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: {value!r} is not a positive whole number")
        for name in ("leave", "tire", "detest"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not between 0 and 1")
        for name in ("seconds_liked", "seconds_other"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is below 0")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Sums over the sessions of each user.

    Attributes:
        sessions: (U,).
        views: (U,) impressions.
        detested: (U,) impressions of items that the user did not like.
        seconds: (U,) of stay.
        happened: (U, T) interactions.
    """

    sessions: NDArray[np.float64]
    views: NDArray[np.float64]
    detested: NDArray[np.float64]
    seconds: NDArray[np.float64]
    happened: NDArray[np.float64]


def session_users(users: int, number: int, seed: int, searching: bool = False) -> NDArray[np.int64]:
    """Numbers of the users who have sessions: a search of settings begins at the other end of their order.

    Args:
        users: of the world.
        number: how many are asked for; at most all of them come, to a search half.
        seed: of their order.
        searching: whether settings are chosen by what these users do.
    """
    order = np.random.default_rng(seed).permutation(users)
    return order[::-1][: min(number, max(users // 2, 1))] if searching else order[:number]


def simulate(scores: Floats | None, truth: Truth, sessions: int, behaviour: Behaviour, seed: int) -> Outcome:
    """Let every user have the same number of sessions.

    The random numbers of a session and step are the same for every ranking, so that rankings are compared on the same
    candidates, moods and patience.

    Args:
        scores: (U, I) by which the ranker orders; None shows any of the candidates.
        truth: of the same users and items.
        sessions: of each user.
        behaviour: how they go on and end.
        seed: of candidates and users.

    Returns:
        What came of it. Time: a gather of ``candidates`` scores for each impression.
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
        here = np.arange(len(user))  # sessions that go on
        for step in range(behaviour.steps):
            # For all sessions of the chunk, whoever has left: the numbers must not depend on the ranking.
            offered = table[rng.integers(0, _TABLE, (len(user), behaviour.candidates), dtype=np.uint16)]
            draws = rng.random((len(user), 2 + tasks), dtype=np.float32)
            who, what, luck = user[here], offered[here], draws[here]
            ranked = -np.arange(behaviour.candidates) if scores is None else scores[who[:, None], what]
            ranked = np.where(shown[here[:, None], what], -np.inf, ranked)  # where all were shown, one is again
            item = what[np.arange(len(here)), ranked.argmax(1)]
            shown[here, item] = True
            liked = luck[:, 0] < truth.up[who, item]
            prefers = np.where(truth.dislikes, ~liked[:, None], liked[:, None])
            chance = truth.given_up[who, item] * np.where(prefers, 1, truth.leak[who])
            happened = luck[:, 2:] < chance
            seconds = np.where(liked, behaviour.seconds_liked, behaviour.seconds_other)
            np.add.at(sums, who, np.column_stack([np.ones(len(who)), ~liked, seconds, happened]))
            leaves = behaviour.leave + behaviour.tire * step + behaviour.detest * ~liked
            here = here[luck[:, 1] >= leaves]
            if not len(here):
                break
    counted = np.full(users, float(sessions))
    return Outcome(counted, sums[:, 0], sums[:, 1], sums[:, 2], sums[:, 3:])
