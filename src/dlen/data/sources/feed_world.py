"""The world of the feed simulator: its users and items, and the impressions drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dlen.data.sources.feed_settings import FeedSettings

CATEGORIES, AUTHORS, AGES, GENDERS, CITIES, HOURS = 40, 300, 7, 2, 60, 24
PLAY_TIME_EDGES = np.linspace(-2, 3, 19)  # of the logarithm
_LATENT = 4  # dimensions of taste
_CANDIDATES = 5  # items from which matched exposure picks one
_SAMPLE = 20_000  # impressions from which intercepts are estimated

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def sigmoid(x: Floats) -> Floats:
    """Logit to probability."""
    return 1 / (1 + np.exp(-x))


def logit(p: Floats) -> Floats:
    """Probability to logit."""
    return np.log(p) - np.log1p(-p)


def _match(taste: Floats, topic: Floats) -> Floats:
    """(..., d) and (..., d) -> (...) match with a standard deviation of about one."""
    return (taste * topic).sum(-1) / np.sqrt(_LATENT)


def _intercept(rate: float, mean_at: Callable[[float], float]) -> float:
    """Find the intercept at which ``mean_at(intercept)`` is ``rate``, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_at(middle) < rate else (low, middle)
    return (low + high) / 2


def _mean_rate(logits: Floats, factors: Floats, intercept: float) -> float:
    return float((sigmoid(logits + intercept) * factors).mean())


@dataclass(frozen=True, slots=True)
class Impressions:
    """Simulated impressions: outcomes, and the probabilities from which they were drawn."""

    user: Ints  # (n,)
    item: Ints  # (n,)
    hour: Ints  # (n,)
    prefers: NDArray[np.bool_]  # (n,) the hidden state itself
    up: Floats  # (n,) true P(UP); 1 without hidden state
    watching: Floats  # (n,) true P(watching); 1 without a second hidden state
    relevance: Floats  # (n, T) true P(t) = P(t | UP) P(UP) + P(t | not UP) P(not UP), given that it is seen
    seen: Floats  # (n,) probability of being seen at its position
    position: Ints  # (n,) starting at 0
    labels: NDArray[np.uint8]  # (n, T)
    views: NDArray[np.uint8]  # (n, V) bin of the play time; V = 0 without it

    @property
    def probability(self) -> Floats:
        """(n, T) true P(t) at the displayed position."""
        return self.relevance * self.seen[:, None]


class World:
    """Users, items, and each user's habits and leak. They are the same for all impressions."""

    def __init__(self, settings: FeedSettings) -> None:
        rng = np.random.default_rng([settings.seed, 0])
        self.settings = settings
        self.age = rng.integers(AGES, size=settings.users)
        self.gender = rng.integers(GENDERS, size=settings.users)
        self.city = rng.integers(CITIES, size=settings.users)
        self.category = rng.integers(CATEGORIES, size=settings.items)
        self.author = rng.integers(AUTHORS, size=settings.items)
        self.taste, self.topic = self._draw_tastes(rng)
        self.quality = 0.5 * rng.normal(size=settings.items)
        self.hour_effect = 0.3 * np.sin(2 * np.pi * (np.arange(HOURS) - 14) / HOURS)
        self.activity = np.cumsum(rng.gamma(1.5, size=settings.users))
        popularity = rng.gamma(0.8, size=settings.items)
        appeal = np.log(popularity)
        self.appeal = (appeal - appeal.mean()) / (appeal.std() or 1.0)
        self.popularity = np.cumsum(popularity if settings.exposure != "uniform" else np.ones(settings.items))
        tasks = len(settings.tasks)
        self.habit = settings.habit * rng.normal(size=(settings.users, tasks))
        self.category_effect = 0.5 * rng.normal(size=(CATEGORIES, tasks))
        self.leak = sigmoid(logit(settings.leaks()) + settings.leak_spread * rng.normal(size=(settings.users, 1)))
        self.task_tastes = [self._draw_tastes(rng) for _ in range(tasks)] if settings.own_match else []
        self.patience, self.length = (0.5 * rng.normal(size=n) for n in (settings.users, settings.items))
        self.watch_tastes = self._draw_tastes(rng) if settings.watching else None
        self._set_intercepts()

    def _draw_tastes(self, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """(users, d), mostly determined by age and gender, and (items, d), mostly by category: both can be learned."""
        profile = rng.normal(size=(AGES, GENDERS, _LATENT))[self.age, self.gender]
        taste = 0.8 * profile + 0.6 * rng.normal(size=(self.settings.users, _LATENT))
        theme = rng.normal(size=(CATEGORIES, _LATENT))[self.category]
        return taste, 0.9 * theme + 0.44 * rng.normal(size=(self.settings.items, _LATENT))

    def _set_intercepts(self) -> None:
        """Set the intercepts that give the requested share of preferred impressions and rate of each task."""
        self.threshold, self.base, self.watch_threshold = np.inf, np.zeros(len(self.settings.tasks)), 0.0
        user, item, hour = self._expose(np.random.default_rng([self.settings.seed, 1]), _SAMPLE)
        if self.watch_tastes is not None:
            watch_logits = self._watch_logits(user, item)
            self.watch_threshold = _intercept(self.settings.watched, lambda b: float(sigmoid(watch_logits + b).mean()))
        watching = self.watching(user, item)
        if self.settings.preference < 1:
            logits = self._preference_logits(user, item, hour)
            self.threshold = _intercept(
                self.settings.preference, lambda b: float(self._up_of(logits + b, watching).mean())
            )
        factors = self._state_factors(self.up(user, item, hour), watching, user)
        logits, parents = self._logits(user, item), self.settings.parents()
        rates = list(self.settings.tasks.values())
        for t in sorted(range(len(rates)), key=lambda t: t in parents):
            if t in parents:
                factors[:, t] *= sigmoid(logits[:, parents[t]] + self.base[parents[t]])
            self.base[t] = _intercept(rates[t], partial(_mean_rate, logits[:, t], factors[:, t]))

    def _expose(self, rng: np.random.Generator, rows: int) -> tuple[Ints, Ints, Ints]:
        """Draw users, items and hours: active users more often, and items that are popular, uniform or matched."""

        def draw(cumulative: Floats, size: int | tuple[int, int]) -> Ints:
            return np.searchsorted(cumulative, rng.random(size) * cumulative[-1])

        user, hour = draw(self.activity, rows), rng.integers(HOURS, size=rows)
        if self.settings.exposure != "matched":
            return user, draw(self.popularity, rows), hour
        candidates = draw(self.popularity, (rows, _CANDIDATES))
        logits = self._preference_logits(user[:, None], candidates, hour[:, None])
        best = (logits + rng.gumbel(size=candidates.shape)).argmax(1)
        return user, np.take_along_axis(candidates, best[:, None], 1)[:, 0], hour

    def _preference_logits(self, user: Ints, item: Ints, hour: Ints) -> Floats:
        """Logits of P(UP), up to the threshold."""
        match = self.settings.strength * _match(self.taste[user], self.topic[item])
        return match + self.quality[item] + self.hour_effect[hour]

    def up(self, user: Ints, item: Ints, hour: Ints, watches: Floats | None = None) -> Floats:
        """(n,) true P(UP), or P(UP | watching or not) given which it is."""
        if np.isinf(self.threshold):
            return np.ones(len(user))
        watches = self.watching(user, item) if watches is None else watches
        return self._up_of(self._preference_logits(user, item, hour) + self.threshold, watches)

    def _up_of(self, logits: Floats, watching: Floats) -> Floats:
        """(n,) P(UP) from its logits without watching, and P(watching) or whether it is the case."""
        if self.watch_tastes is None:
            return sigmoid(logits)
        return watching * sigmoid(logits + self.settings.tie) + (1 - watching) * sigmoid(logits)

    def watching(self, user: Ints, item: Ints) -> Floats:
        """(n,) true P(watching); 1 without a second hidden state."""
        if self.watch_tastes is None:
            return np.ones(len(user))
        return sigmoid(self._watch_logits(user, item) + self.watch_threshold)

    def _watch_logits(self, user: Ints, item: Ints) -> Floats:
        assert self.watch_tastes is not None
        taste, topic = self.watch_tastes
        return self.settings.strength * _match(taste[user], topic[item])

    def given_up(self, user: Ints, item: Ints) -> Floats:
        """(n, T) P(t | UP); P(hate | not UP) for hate."""
        return self._with_parents(self._chances(user, item))

    def _with_parents(self, chances: Floats) -> Floats:
        """(n, T) :meth:`_chances` -> (n, T) P(t | UP)."""
        given_up = chances.copy()
        for task, parent in self.settings.parents().items():
            given_up[:, task] *= chances[:, parent]
        return given_up

    def _chances(self, user: Ints, item: Ints) -> Floats:
        """(n, T) P(t | UP), and P(t | parent) for a task that follows another one."""
        return sigmoid(self._logits(user, item))

    def _logits(self, user: Ints, item: Ints) -> Floats:
        logits: Floats = self.habit[user] + self.category_effect[self.category[item]] + self.base
        for task, (taste, topic) in enumerate(self.task_tastes):
            logits[:, task] += self.settings.own_match * _match(taste[user], topic[item])
        return logits

    def _state_factors(self, prefers: Floats, watches: Floats, user: Ints) -> Floats:
        """(n, T) factor on each task given (n,) preference and watching: 1 in its state, else the leak; reversed for
        hate."""
        states = np.where(self.settings.watches(), watches[:, None], prefers[:, None])
        weight = np.where(self.settings.dislikes(), 1 - states, states)
        return weight + self.leak[user] * (1 - weight)

    def draw(self, rng: np.random.Generator, rows: int) -> Impressions:
        """Simulate impressions."""
        user, item, hour = self._expose(rng, rows)
        up, watching = self.up(user, item, hour), self.watching(user, item)
        chances, parents = self._chances(user, item), self.settings.parents()
        watches = watching if self.watch_tastes is None else (rng.random(rows) < watching).astype(np.float64)
        given_watching = up if self.watch_tastes is None else self.up(user, item, hour, watches)
        prefers = rng.random(rows) < given_watching
        chance = chances * self._state_factors(prefers.astype(np.float64), watches, user)
        chance[:, list(parents)] = chances[:, list(parents)]  # whatever the state, after the task it follows
        labels = (rng.random(chance.shape) < chance).astype(np.uint8)
        for task, parent in parents.items():
            labels[:, task] *= labels[:, parent]
        position = self._positions(rng, item) if self.settings.positions else np.zeros(rows, np.int64)
        seen = np.asarray((1.0 + position) ** -self.settings.position_bias, np.float64)
        if self.settings.positions:
            labels *= (rng.random(rows) < seen).astype(np.uint8)[:, None]
        relevance = self._with_parents(chances) * self._state_factors(up, watching, user)
        views = (
            self._play_times(rng.spawn(1)[0], user, item, prefers)[:, None]
            if self.settings.play_time
            else labels[:, :0]
        )
        return Impressions(user, item, hour, prefers, up, watching, relevance, seen, position, labels, views)

    def _play_times(
        self, rng: np.random.Generator, user: Ints, item: Ints, prefers: NDArray[np.bool_]
    ) -> NDArray[np.uint8]:
        """(n,) bin of each play time: its logarithm is normal around the user's patience and the item's length, and
        higher by ``play_time`` deviations if the item is preferred."""
        expected = self.patience[user] + self.length[item] + self.settings.play_time * prefers
        return np.digitize(expected + rng.normal(size=len(user)), PLAY_TIME_EDGES).astype(np.uint8)

    def _positions(self, rng: np.random.Generator, item: Ints) -> Ints:
        """Assign positions evenly, mostly from the top by popularity, as an existing ranker would."""
        order = np.argsort(-(self.appeal[item] + rng.normal(size=len(item))))
        position = np.empty(len(item), np.int64)
        position[order] = np.arange(len(item)) * self.settings.positions // len(item)
        return position
