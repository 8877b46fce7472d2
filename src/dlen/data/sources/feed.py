"""Feed: a simulated content feed whose hidden preference is known, told after DLEN's own story.

For every impression the user either prefers the item (UP) or not. P(UP) comes from the match of user and item.
How a user shows it is a habit of that user: P(t | UP) differs by user, task and category and has nothing to do
with the preference. Without preference each interaction still happens, ``leak`` times as often. So a row that is
negative for one task says little about the others, which is the paper's case against ordinary multi-task models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlen.data.store import Columns, SplitWriter, StoreWriter
from dlen.errors import UserError
from dlen.progress import Stage
from dlen.schema import Field, Kind, Schema, Task

_CHUNK = 1 << 17
_WORLD = 1  # counts up when the same settings would draw another world
_LATENT = 4  # dimensions of taste
_CATEGORIES, _AUTHORS, _AGES, _GENDERS, _CITIES, _HOURS = 40, 300, 7, 2, 60, 24
_USER_FIELDS = {"user": "user", "age": "user", "gender": "user", "city": "user"}
_ITEM_FIELDS = {"item": "item", "category": "item", "author": "item", "hour": "context"}
_RATES = {"click": 0.21, "like": 0.12, "share": 0.06, "follow": 0.05, "comment": 0.08}

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def _intercept(rate: float, mean_at: Callable[[float], float]) -> float:
    """The intercept at which ``mean_at(intercept)`` is ``rate``, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_at(middle) < rate else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True, slots=True)
class _Rows:
    """Simulated impressions: what happened, and the probabilities it was drawn from."""

    user: Ints  # (n,)
    item: Ints  # (n,)
    hour: Ints  # (n,)
    prefers: NDArray[np.bool_]  # (n,) the hidden state itself
    up: Floats  # (n,) true P(UP)
    probability: Floats  # (n, T) true P(t) = P(t | UP) P(UP) + P(t | not UP) P(not UP)
    labels: NDArray[np.uint8]  # (n, T)


class _World:
    """The fixed part: who the users are, what the items are, and each user's habits."""

    def __init__(self, feed: Feed) -> None:
        rng = np.random.default_rng([feed.seed, 0])
        self.feed = feed
        self.age = rng.integers(_AGES, size=feed.users)
        self.gender = rng.integers(_GENDERS, size=feed.users)
        self.city = rng.integers(_CITIES, size=feed.users)
        profile = rng.normal(size=(_AGES, _GENDERS, _LATENT))[self.age, self.gender]
        self.taste = 0.8 * profile + 0.6 * rng.normal(size=(feed.users, _LATENT))
        self.category = rng.integers(_CATEGORIES, size=feed.items)
        self.author = rng.integers(_AUTHORS, size=feed.items)
        topic = rng.normal(size=(_CATEGORIES, _LATENT))[self.category]
        self.topic = 0.9 * topic + 0.44 * rng.normal(size=(feed.items, _LATENT))
        self.quality = 0.5 * rng.normal(size=feed.items)
        self.hour_effect = 0.3 * np.sin(2 * np.pi * (np.arange(_HOURS) - 14) / _HOURS)
        self.activity = np.cumsum(rng.gamma(1.5, size=feed.users))
        self.popularity = np.cumsum(rng.gamma(0.8, size=feed.items))
        tasks = len(feed.rates)
        self.habit = feed.habit * rng.normal(size=(feed.users, tasks))
        self.fit = 0.5 * rng.normal(size=(_CATEGORIES, tasks))
        self._set_intercepts()

    def _set_intercepts(self) -> None:
        user, item, hour = self._expose(np.random.default_rng([self.feed.seed, 1]), 20_000)
        match = self._match(user, item, hour)
        self.preference = _intercept(self.feed.preference, lambda b: float(_sigmoid(match + b).mean()))
        up = _sigmoid(match + self.preference)
        happens = up + self.feed.leak * (1 - up)
        shows = self.habit[user] + self.fit[self.category[item]]
        self.base = np.array(
            [
                _intercept(rate, lambda b, t=t: float((_sigmoid(shows[:, t] + b) * happens).mean()))  # type: ignore[misc]
                for t, rate in enumerate(self.feed.rates.values())
            ]
        )

    def _expose(self, rng: np.random.Generator, rows: int) -> tuple[Ints, Ints, Ints]:
        def draw(cumulative: Floats) -> Ints:
            return np.searchsorted(cumulative, rng.random(rows) * cumulative[-1])

        return draw(self.activity), draw(self.popularity), rng.integers(_HOURS, size=rows)

    def _match(self, user: Ints, item: Ints, hour: Ints) -> Floats:
        dot = np.einsum("nk,nk->n", self.taste[user], self.topic[item]) / np.sqrt(_LATENT)
        return self.feed.strength * dot + self.quality[item] + self.hour_effect[hour]

    def draw(self, rng: np.random.Generator, rows: int) -> _Rows:
        """Simulate impressions."""
        user, item, hour = self._expose(rng, rows)
        up = _sigmoid(self._match(user, item, hour) + self.preference)
        given_up = _sigmoid(self.habit[user] + self.fit[self.category[item]] + self.base)
        prefers = rng.random(rows) < up
        chance = given_up * np.where(prefers, 1.0, self.feed.leak)[:, None]
        labels = (rng.random(chance.shape) < chance).astype(np.uint8)
        probability = given_up * (up + self.feed.leak * (1 - up))[:, None]
        return _Rows(user, item, hour, prefers, up, probability, labels)


@dataclass
class Feed:
    """The feed simulator as a data source.

    Args:
        name: of the data set.
        rows: impressions in all splits.
        users: number of users.
        items: number of items.
        rates: marginal rate of each task; its keys are the tasks.
        preference: marginal P(UP).
        leak: P(t | not UP) / P(t | UP).
        strength: how much the match of user and item matters to P(UP), on the logit scale.
        habit: standard deviation over users of each task's logit given UP.
        validation: share of the rows.
        test: share of the rows.
        seed: of the world and of the draws.
    """

    name: str = "feed"
    rows: int = 300_000
    users: int = 4_000
    items: int = 2_000
    rates: dict[str, float] = field(default_factory=lambda: dict(_RATES))
    preference: float = 0.35
    leak: float = 0.1
    strength: float = 2.0
    habit: float = 1.5
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for key, low, high in (
            ("preference", 0, 1),
            ("leak", 0, 1),
            ("validation", 0, 1),
            ("test", 0, 1),
        ):
            if not low < getattr(self, key) < high:
                raise UserError(f"data.{key}: {getattr(self, key)} is not between {low} and {high}")
        if self.validation + self.test >= 1:
            raise UserError("data.validation and data.test leave no rows to train on")
        if not self.rates:
            raise UserError("data.rates: names no task")
        for key in ("rows", "users", "items"):
            if getattr(self, key) < 1:
                raise UserError(f"data.{key}: {getattr(self, key)} is not a positive number")
        for task, rate in self.rates.items():
            if not 0 < rate < self.preference + self.leak * (1 - self.preference):
                raise UserError(f"data.rates.{task}: {rate} cannot be reached with preference {self.preference}")

    def settings(self) -> dict[str, Any]:
        """Every argument but the name, and the version of the simulator."""
        return {**{k: v for k, v in asdict(self).items() if k != "name"}, "world": _WORLD}

    def files(self) -> list[Path]:
        """None: everything is drawn."""
        return []

    def write(self, writer: StoreWriter) -> Schema:
        """Draw the world and its impressions, in chunks."""
        world = _World(self)
        sizes = self._vocabularies()
        offsets = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
        users = writer.table("users", _counts(len(_USER_FIELDS)))
        rows = (np.arange(self.users), world.age, world.gender, world.city)
        users.append(_columns(dict(zip(_USER_FIELDS, rows, strict=True)), offsets))
        splits = {
            name: writer.split(
                name,
                _counts(len(_ITEM_FIELDS)),
                len(self.rates),
                group="users",
                num_truth=2 + len(self.rates),
            )
            for name in ("train", "validation", "test")
        }
        positives = np.zeros(len(self.rates))
        with Stage("simulating the feed", self.rows, "rows") as stage:
            for chunk, start in enumerate(range(0, self.rows, _CHUNK)):
                rng = np.random.default_rng([self.seed, 2, chunk])
                drawn = world.draw(rng, min(_CHUNK, self.rows - start))
                where = rng.random(len(drawn.user))
                positives += self._append(splits, drawn, where, world, offsets)
                stage.advance(len(drawn.user))
        for name, size in sizes.items():
            writer.vocabulary(name, pl.int_range(size - 1, eager=True))
        return self._schema(sizes, positives / max(splits["train"].rows, 1))

    def _vocabularies(self) -> dict[str, int]:
        """Ids of each field with the unknown one, rows' fields first."""
        sizes = {"item": self.items, "category": _CATEGORIES, "author": _AUTHORS, "hour": _HOURS}
        sizes |= {"user": self.users, "age": _AGES, "gender": _GENDERS, "city": _CITIES}
        return {name: size + 1 for name, size in sizes.items()}

    def _append(
        self,
        splits: Mapping[str, SplitWriter],
        rows: _Rows,
        where: Floats,
        world: _World,
        offsets: Mapping[str, int],
    ) -> Floats:
        """Write one chunk to its splits and return the positives of the training rows."""
        item = {"category": world.category[rows.item], "author": world.author[rows.item]}
        columns = _columns({"item": rows.item, **item, "hour": rows.hour}, offsets)
        truth = np.column_stack([rows.prefers, rows.up, rows.probability])
        is_test = where < self.test
        is_validation = ~is_test & (where < self.test + self.validation)
        chosen = {"train": ~(is_test | is_validation), "validation": is_validation, "test": is_test}
        for name, mask in chosen.items():
            part = _columns_at(columns, mask)
            splits[name].append(part, rows.labels[mask], rows.user[mask], truth[mask])
        positives: Floats = rows.labels[chosen["train"]].sum(axis=0, dtype=np.float64)
        return positives

    def _schema(self, sizes: Mapping[str, int], rates: Floats) -> Schema:
        sides = _ITEM_FIELDS | _USER_FIELDS
        fields = tuple(Field(n, Kind.ID, sides[n], size) for n, size in sizes.items())
        tasks = tuple(Task(n, float(r)) for n, r in zip(self.rates, rates, strict=True))
        return Schema(fields, tasks, truth=("prefers", "up", *self.rates), user="user")


def _counts(single: int) -> dict[Kind, int]:
    return {Kind.ID: single, Kind.IDS: 0, Kind.NUMERIC: 0}


def _columns(values: Mapping[str, Ints], offsets: Mapping[str, int]) -> Columns:
    """Zero-based values as rows of the embedding table."""
    ids = np.column_stack([v + 1 + offsets[name] for name, v in values.items()])
    n, none = len(ids), np.zeros(0)
    return Columns(ids, np.zeros((n, 0)), np.zeros((n, 0), np.int16), none, none)


def _columns_at(columns: Columns, mask: NDArray[np.bool_]) -> Columns:
    n, none = int(mask.sum()), np.zeros(0)
    return Columns(columns.ids[mask], np.zeros((n, 0)), np.zeros((n, 0), np.int16), none, none)
