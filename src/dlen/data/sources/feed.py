"""Feed: a simulated content feed with known hidden preference that follows DLEN's assumptions.

For every impression, the user either prefers the item (UP) or not: the match of user and item plus logistic noise is
above a threshold, which makes P(UP) a sigmoid of the match. How users express preference is a habit: P(t | UP) differs
by user, task and category and is independent of the preference. Without preference, each interaction still happens,
``leak`` times as often. A negative for one task therefore says little about the others, which is the paper's argument
against ordinary multi-task models. With ``preference: 1`` there is no hidden state, and with ``own_match`` each task
has its own taste. These are worlds in which DLEN can lose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from dlen.checks import check_types
from dlen.data.columns import Columns
from dlen.data.sources.by_field import rows_by_field
from dlen.data.split import Split
from dlen.data.store import Store
from dlen.data.truth import Truth
from dlen.data.writer import SplitWriter, StoreWriter
from dlen.errors import UserError
from dlen.metrics import HistogramAUC
from dlen.progress import Stage
from dlen.schema import Field, Kind, Schema, Task

_CHUNK = 1 << 17
_WORLD = 2  # increase if the same settings would draw another world
_LATENT = 4  # dimensions of taste
_CATEGORIES, _AUTHORS, _AGES, _GENDERS, _CITIES, _HOURS = 40, 300, 7, 2, 60, 24
_USER_FIELDS = {"user": "user", "age": "user", "gender": "user", "city": "user"}
_ITEM_FIELDS = {"item": "item", "category": "item", "author": "item", "hour": "context"}
_RATES = {"click": 0.21, "like": 0.12, "share": 0.06, "follow": 0.05, "comment": 0.08}
HATE, POSITION = "hate", "position"
EXPOSURES = ("popular", "uniform", "matched")
_CANDIDATES = 5  # items from which matched exposure picks one

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def _logit(p: Floats) -> Floats:
    return np.log(p) - np.log1p(-p)


def _dot(taste: Floats, topic: Floats) -> Floats:
    """(..., d) and (..., d) -> (...) match with a standard deviation of about one."""
    return (taste * topic).sum(-1) / np.sqrt(_LATENT)


def _intercept(rate: float, mean_at: Callable[[float], float]) -> float:
    """Find the intercept at which ``mean_at(intercept)`` is ``rate``, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_at(middle) < rate else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True, slots=True)
class _Rows:
    """Simulated impressions: outcomes, and the probabilities from which they were drawn."""

    user: Ints  # (n,)
    item: Ints  # (n,)
    hour: Ints  # (n,)
    prefers: NDArray[np.bool_]  # (n,) the hidden state itself
    up: Floats  # (n,) true P(UP); 1 without hidden state
    relevance: Floats  # (n, T) true P(t) = P(t | UP) P(UP) + P(t | not UP) P(not UP), given that it is seen
    seen: Floats  # (n,) probability of being seen at its position
    place: Ints  # (n,) starting at 0
    labels: NDArray[np.uint8]  # (n, T)

    @property
    def probability(self) -> Floats:
        """(n, T) true P(t) at the displayed position."""
        return self.relevance * self.seen[:, None]


class _World:
    """The fixed part: users, items, and each user's habits and leak."""

    def __init__(self, feed: Feed) -> None:
        rng = np.random.default_rng([feed.seed, 0])
        self.feed = feed
        self.age = rng.integers(_AGES, size=feed.users)
        self.gender = rng.integers(_GENDERS, size=feed.users)
        self.city = rng.integers(_CITIES, size=feed.users)
        self.category = rng.integers(_CATEGORIES, size=feed.items)
        self.author = rng.integers(_AUTHORS, size=feed.items)
        self.taste, self.topic = self._tastes(rng)
        self.quality = 0.5 * rng.normal(size=feed.items)
        self.hour_effect = 0.3 * np.sin(2 * np.pi * (np.arange(_HOURS) - 14) / _HOURS)
        self.activity = np.cumsum(rng.gamma(1.5, size=feed.users))
        popularity = rng.gamma(0.8, size=feed.items)
        self.appeal = np.log(popularity)
        self.appeal = (self.appeal - self.appeal.mean()) / (self.appeal.std() or 1.0)
        self.popularity = np.cumsum(popularity if feed.exposure != "uniform" else np.ones(feed.items))
        tasks = len(feed.tasks)
        self.habit = feed.habit * rng.normal(size=(feed.users, tasks))
        self.fit = 0.5 * rng.normal(size=(_CATEGORIES, tasks))
        self.leak = _sigmoid(_logit(feed.leaks()) + feed.leak_spread * rng.normal(size=(feed.users, 1)))
        self.own = [self._tastes(rng) for _ in range(tasks)] if feed.own_match else []
        self._set_intercepts()

    def _tastes(self, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """(users, d), mostly determined by age and gender, and (items, d), mostly by category: both can be learned."""
        profile = rng.normal(size=(_AGES, _GENDERS, _LATENT))[self.age, self.gender]
        taste = 0.8 * profile + 0.6 * rng.normal(size=(self.feed.users, _LATENT))
        theme = rng.normal(size=(_CATEGORIES, _LATENT))[self.category]
        return taste, 0.9 * theme + 0.44 * rng.normal(size=(self.feed.items, _LATENT))

    def _set_intercepts(self) -> None:
        """Set the intercepts that give the requested share of preferred impressions and rate of each task."""
        self.threshold, self.base = np.inf, np.zeros(len(self.feed.tasks))
        user, item, hour = self._expose(np.random.default_rng([self.feed.seed, 1]), 20_000)
        if self.feed.preference < 1:
            match = self._match(user, item, hour)
            self.threshold = _intercept(self.feed.preference, lambda b: float(_sigmoid(match + b).mean()))
        happens = self._happens(self._up(user, item, hour)[:, None], user)
        shows = self._shows(user, item)
        self.base = np.array(
            [
                _intercept(rate, lambda b, t=t: float((_sigmoid(shows[:, t] + b) * happens[:, t]).mean()))  # type: ignore[misc]
                for t, rate in enumerate(self.feed.tasks.values())
            ]
        )

    def _expose(self, rng: np.random.Generator, rows: int) -> tuple[Ints, Ints, Ints]:
        """Draw users, items and hours: active users more often, and items that are popular, uniform or matched."""

        def draw(cumulative: Floats, size: int | tuple[int, int]) -> Ints:
            return np.searchsorted(cumulative, rng.random(size) * cumulative[-1])

        user, hour = draw(self.activity, rows), rng.integers(_HOURS, size=rows)
        if self.feed.exposure != "matched":
            return user, draw(self.popularity, rows), hour
        candidates = draw(self.popularity, (rows, _CANDIDATES))
        appeal = self._match(user[:, None], candidates, hour[:, None]) + rng.gumbel(size=candidates.shape)
        return user, np.take_along_axis(candidates, appeal.argmax(1)[:, None], 1)[:, 0], hour

    def _match(self, user: Ints, item: Ints, hour: Ints) -> Floats:
        return (
            self.feed.strength * _dot(self.taste[user], self.topic[item]) + self.quality[item] + self.hour_effect[hour]
        )

    def _up(self, user: Ints, item: Ints, hour: Ints) -> Floats:
        """True P(UP)."""
        return (
            np.ones(len(user)) if np.isinf(self.threshold) else _sigmoid(self._match(user, item, hour) + self.threshold)
        )

    def _shows(self, user: Ints, item: Ints) -> Floats:
        """(n, T) logits of P(t | UP); for hate, logits of P(hate | not UP)."""
        shows: Floats = self.habit[user] + self.fit[self.category[item]] + self.base
        for task, (taste, topic) in enumerate(self.own):
            shows[:, task] += self.feed.own_match * _dot(taste[user], topic[item])
        return shows

    def _happens(self, prefers: Floats, user: Ints) -> Floats:
        """(n, T) factor on each task given (n, 1) preference: 1 if preferred, else the leak; reversed for hate."""
        weight = np.where(self.feed.dislikes(), 1 - prefers, prefers)
        return weight + self.leak[user] * (1 - weight)

    def draw(self, rng: np.random.Generator, rows: int) -> _Rows:
        """Simulate impressions."""
        user, item, hour = self._expose(rng, rows)
        up = self._up(user, item, hour)
        given = _sigmoid(self._shows(user, item))
        prefers = rng.random(rows) < up
        chance = given * self._happens(prefers[:, None].astype(np.float64), user)
        labels = (rng.random(chance.shape) < chance).astype(np.uint8)
        place = self._place(rng, item) if self.feed.positions else np.zeros(rows, np.int64)
        seen = np.asarray((1.0 + place) ** -self.feed.position_bias, np.float64)
        if self.feed.positions:
            labels *= (rng.random(rows) < seen).astype(np.uint8)[:, None]
        return _Rows(user, item, hour, prefers, up, given * self._happens(up[:, None], user), seen, place, labels)

    def _place(self, rng: np.random.Generator, item: Ints) -> Ints:
        """Assign positions evenly, mostly from the top by popularity, as an existing ranker would."""
        order = np.argsort(-(self.appeal[item] + rng.normal(size=len(item))))
        place = np.empty(len(item), np.int64)
        place[order] = np.arange(len(item)) * self.feed.positions // len(item)
        return place


@dataclass
class Feed:
    """The feed simulator as a data source.

    Args:
        name: name of the data set.
        rows: number of impressions in all splits together.
        users: number of users.
        items: number of items.
        rates: marginal rate of each task, given that the impression is seen; the keys define the tasks.
        hate: marginal rate of an explicit dislike, which shows that the user does not prefer the item; 0 to disable.
        preference: marginal P(UP); 1 for a world without hidden state.
        leak: P(t | not UP) / P(t | UP), or its inverse for hate; one number, or one per task.
        leak_spread: standard deviation over users of the leak's logit; 0 gives every user the same leak.
        strength: weight of the match of user and item in the logit of P(UP).
        habit: standard deviation over users of each task's logit given UP.
        own_match: weight of a separate match of user and item in each task's logit.
        exposure: ``popular`` shows popular items more often, ``uniform`` shows all items equally often, and ``matched``
            mostly picks the one of five popular candidates that suits the user, as a recommender would.
        positions: number of positions on the page, added as a field; popular items are mostly at the top. 0 to disable.
        position_bias: an impression at position k is seen with probability k to the power of minus this value; an
            unseen impression has no interaction.
        validation: fraction of rows in the validation split.
        test: fraction of rows in the test split.
        seed: random seed of the world and of the impressions.
    """

    name: str = "feed"
    rows: int = 300_000
    users: int = 4_000
    items: int = 2_000
    rates: dict[str, float] = field(default_factory=lambda: dict(_RATES))
    hate: float = 0.0
    preference: float = 0.35
    leak: float | dict[str, float] = 0.1
    leak_spread: float = 0.0
    strength: float = 2.0
    habit: float = 1.5
    own_match: float = 0.0
    exposure: str = "popular"
    positions: int = 0
    position_bias: float = 1.0
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        for key, low, high in (("validation", 0, 1), ("test", 0, 1)):
            if not low < getattr(self, key) < high:
                raise UserError(f"data.{key}: {getattr(self, key)} is not between {low} and {high}")
        if not 0 < self.preference <= 1:
            raise UserError(f"data.preference: {self.preference} is not above 0 and at most 1")
        if self.validation + self.test >= 1:
            raise UserError("data.validation and data.test leave no rows to train on")
        if not self.rates:
            raise UserError("data.rates: names no task")
        if HATE in self.rates:
            raise UserError("data.rates.hate: an explicit dislike is no such task; set data.hate to its rate")
        reserved = {"prefers", "up", POSITION} & set(self.rates)
        if reserved:
            raise UserError(
                f"data.rates.{reserved.pop()}: this name is that of a hidden truth or a field; choose another"
            )
        for key in ("rows", "users", "items"):
            if getattr(self, key) < 1:
                raise UserError(f"data.{key}: {getattr(self, key)} is not a positive number")
        for key in ("leak_spread", "habit", "own_match", "hate", "positions", "position_bias"):
            if getattr(self, key) < 0:
                raise UserError(f"data.{key}: {getattr(self, key)} is below 0")
        if self.exposure not in EXPOSURES:
            raise UserError(f"data.exposure: {self.exposure!r} is not one of {', '.join(EXPOSURES)}")
        self._check_leaks_and_rates()

    def _check_leaks_and_rates(self) -> None:
        if isinstance(self.leak, Mapping) and set(self.leak) != set(self.tasks):
            raise UserError(f"data.leak: names {', '.join(self.leak)}, but the tasks are {', '.join(self.tasks)}")
        for (task, rate), leak, dislike in zip(self.tasks.items(), self.leaks(), self.dislikes(), strict=True):
            key = f"leak.{task}" if isinstance(self.leak, Mapping) else "leak"
            if not 0 < leak < 1:
                raise UserError(f"data.{key}: {leak} is not between 0 and 1")
            reach = 1 - self.preference if dislike else self.preference
            if not 0 < rate < reach + leak * (1 - reach):
                name = HATE if dislike else f"rates.{task}"
                raise UserError(f"data.{name}: {rate} cannot be reached with preference {self.preference}")

    @property
    def tasks(self) -> dict[str, float]:
        """Rate of every task, with an explicit dislike last."""
        return self.rates | ({HATE: self.hate} if self.hate else {})

    def leaks(self) -> Floats:
        """(T,) leak of each task."""
        one_for_all = not isinstance(self.leak, Mapping)
        return np.array([self.leak if one_for_all else self.leak[t] for t in self.tasks], np.float64)  # type: ignore[index]

    def dislikes(self) -> NDArray[np.bool_]:
        """(T,) whether each task is a dislike."""
        return np.array([t == HATE for t in self.tasks])

    def settings(self) -> dict[str, Any]:
        """All arguments that affect the data, and the version of the simulator."""
        unused = {"name"} if self.positions else {"name", "positions", "position_bias"}
        return {**{k: v for k, v in asdict(self).items() if k not in unused}, "world": _WORLD}

    def files(self) -> list[Path]:
        """None: all data is generated."""
        return []

    def write(self, writer: StoreWriter) -> Schema:
        """Draw the world and its impressions in chunks."""
        world = self._world
        sizes = self._vocabularies()
        offsets = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
        users = writer.table("users", _counts(len(_USER_FIELDS)))
        rows = (np.arange(self.users), world.age, world.gender, world.city)
        users.append(_columns(dict(zip(_USER_FIELDS, rows, strict=True)), offsets))
        splits = {
            name: writer.split(
                name,
                _counts(len(_ITEM_FIELDS) + (self.positions > 0)),
                len(self.tasks),
                group="users",
                num_truth=len(self._truth()),
            )
            for name in ("train", "validation", "test")
        }
        positives, oracle = np.zeros(len(self.tasks)), HistogramAUC(len(self.tasks))
        with Stage("simulating the feed", self.rows, "rows") as stage:
            for chunk, start in enumerate(range(0, self.rows, _CHUNK)):
                rng = np.random.default_rng([self.seed, 2, chunk])
                drawn = world.draw(rng, min(_CHUNK, self.rows - start))
                where = rng.random(len(drawn.user))
                positives += self._append(splits, drawn, where, world, offsets)
                is_test = where < self.test
                logits = torch.from_numpy(_logit(drawn.probability[is_test]))
                oracle.update(logits, torch.from_numpy(drawn.labels[is_test]))
                stage.advance(len(drawn.user))
        found = zip(self.tasks, oracle.compute().reshape(-1).tolist(), strict=True)
        writer.notes["oracle_auc_on_test"] = {name: round(auc, 6) for name, auc in found if not np.isnan(auc)}
        for name, size in sizes.items():
            writer.vocabulary(name, pl.int_range(size - 1, eager=True))
        return self._schema(sizes, positives / max(splits["train"].rows, 1))

    def truth(self, users: Ints, hour: int) -> Truth:
        """Ground truth of some users with every item.

        Args:
            users: (U,) user numbers.
            hour: hour of the day.
        """
        world, items = self._world, np.arange(self.items)
        user, item = np.repeat(users, self.items), np.tile(items, len(users))
        shape = (len(users), self.items)
        up = world._up(user, item, np.full(len(user), hour)).reshape(shape).astype(np.float32)
        given = _sigmoid(world._shows(user, item)).reshape(*shape, -1).astype(np.float32)
        popularity = np.diff(world.popularity, prepend=0.0)
        leak = np.broadcast_to(world.leak[users], (len(users), len(self.tasks))).astype(np.float32)
        return Truth(up, given, leak, self.dislikes(), popularity)

    def pairs(self, user: int, hour: int, offsets: Mapping[str, int]) -> NDArray[np.int32]:
        """(I, S) encoded ids of one user with every item at the top position.

        Args:
            user: user number.
            hour: hour of the day.
            offsets: offsets of the store's schema.
        """
        world, items = self._world, np.arange(self.items)
        values = {"item": items, "category": world.category, "author": world.author}
        values |= {"hour": np.full(self.items, hour)} | ({POSITION: np.zeros(self.items)} if self.positions else {})
        of_user = {"user": user, "age": world.age[user], "gender": world.gender[user], "city": world.city[user]}
        values |= {name: np.full(self.items, value) for name, value in of_user.items()}
        return _columns(values, offsets).ids.astype(np.int32)

    @cached_property
    def _world(self) -> _World:
        return _World(self)

    def read(self, path: Path, store: Store, labels: bool = False) -> Iterator[Split]:
        """Read new rows from a table with one column per field, holding the simulator's own numbers."""
        return rows_by_field(path, store, labels=labels)

    def _vocabularies(self) -> dict[str, int]:
        """Vocabulary size of each field including the unknown id; fields of rows first."""
        sizes = {"item": self.items, "category": _CATEGORIES, "author": _AUTHORS, "hour": _HOURS}
        sizes |= {POSITION: self.positions} if self.positions else {}
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
        place = {POSITION: rows.place} if self.positions else {}
        columns = _columns({"item": rows.item, **item, "hour": rows.hour, **place}, offsets)
        hidden = [rows.prefers, rows.up] if self.preference < 1 else []
        relevance = [rows.relevance] if self.positions else []
        truth = np.column_stack([*hidden, rows.probability, *relevance])
        is_test = where < self.test
        is_validation = ~is_test & (where < self.test + self.validation)
        chosen = {"train": ~(is_test | is_validation), "validation": is_validation, "test": is_test}
        for name, mask in chosen.items():
            part = _columns_at(columns, mask)
            splits[name].append(part, rows.labels[mask], rows.user[mask], truth[mask])
        positives: Floats = rows.labels[chosen["train"]].sum(axis=0, dtype=np.float64)
        return positives

    def _schema(self, sizes: Mapping[str, int], rates: Floats) -> Schema:
        sides = _ITEM_FIELDS | {POSITION: "context"} | _USER_FIELDS
        fields = tuple(Field(n, Kind.ID, sides[n], size) for n, size in sizes.items())
        tasks = tuple(Task(n, float(r), dislike=n == HATE) for n, r in zip(self.tasks, rates, strict=True))
        position = POSITION if self.positions else None
        return Schema(fields, tasks, truth=self._truth(), user="user", position=position)

    def _truth(self) -> tuple[str, ...]:
        """Names of the known quantities of each row; ``relevance/TASK`` is its probability at the top position."""
        relevance = [f"relevance/{t}" for t in self.tasks] if self.positions else []
        return (*(("prefers", "up") if self.preference < 1 else ()), *self.tasks, *relevance)


def _counts(single: int) -> dict[Kind, int]:
    return {Kind.ID: single, Kind.IDS: 0, Kind.NUMERIC: 0}


def _columns(values: Mapping[str, Ints], offsets: Mapping[str, int]) -> Columns:
    """Zero-based values as row indices into the embedding table."""
    ids = np.column_stack([v + 1 + offsets[name] for name, v in values.items()])
    n, none = len(ids), np.zeros(0)
    return Columns(ids, np.zeros((n, 0)), np.zeros((n, 0), np.int16), none, none)


def _columns_at(columns: Columns, mask: NDArray[np.bool_]) -> Columns:
    n, none = int(mask.sum()), np.zeros(0)
    return Columns(columns.ids[mask], np.zeros((n, 0)), np.zeros((n, 0), np.int16), none, none)
