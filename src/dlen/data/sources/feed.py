"""Feed: a simulated content feed with known hidden preference that follows DLEN's assumptions.

For every impression, the user either prefers the item (UP) or not: the match of user and item plus logistic noise is
above a threshold, which makes P(UP) a sigmoid of the match. How users express preference is a habit: P(t | UP) differs
by user, task and category and is independent of the preference. Without preference, each interaction still happens,
``leak`` times as often. A negative for one task therefore says little about the others, which is the paper's argument
against ordinary multi-task models. With ``preference: 1`` there is no hidden state, and with ``own_match`` each task
has its own taste. These are worlds in which DLEN can lose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from dlen.data.columns import Columns
from dlen.data.finished import FinishedShard
from dlen.data.parallel import Advance, Workers
from dlen.data.ragged import select_rows
from dlen.data.raw_sample import IdCounts, RawSample
from dlen.data.sources.by_field import rows_by_field
from dlen.data.sources.feed_settings import HATE, POSITION, WATCHING, FeedSettings
from dlen.data.sources.feed_world import (
    AGES,
    AUTHORS,
    CATEGORIES,
    CITIES,
    GENDERS,
    HOURS,
    PLAY_TIME_EDGES,
    Floats,
    Impressions,
    Ints,
    World,
    logit,
)
from dlen.data.split import Split
from dlen.data.store import Store
from dlen.data.truth import Truth
from dlen.data.writer import PartWriter, SplitWriter, StoreWriter, WrittenPart, shard_folder
from dlen.errors import UserError
from dlen.progress import Stage
from dlen.schema import Field, Kind, Schema, Task, View, first_rows

_CHUNK = 1 << 17
PIECE = 8  # chunks of a shard
_ROWS_PER_PIECE = 1 << 12
_USER_FIELDS = {"user": "user", "age": "user", "gender": "user", "city": "user"}
_ITEM_FIELDS = {"item": "item", "category": "item", "author": "item", "hour": "context"}


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What a piece has.

    Attributes:
        shard: its shard.
        rows: training rows.
        positives: (T,) positives among them.
        where: (m,) which bins of a :class:`HistogramAUC` have test rows, ranked by their true probabilities.
        counts: (m,) number of rows in each of them.
    """

    shard: WrittenPart
    rows: int
    positives: Floats
    where: Ints
    counts: Ints


class Feed(FeedSettings):
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
        follows: tasks that only happen after another one, such as a long view after a click. How often they do is a
            habit of the user, whatever the hidden state, so they tell nothing about it that the other one does not.
        play_time: by how many deviations the logarithm of an impression's play time is higher if the item is
            preferred, which is known only afterwards and stored as a view; 0 for no play times.
        watching: tasks of a second hidden state, watching, which has a taste of its own: clicks and long views are
            about watching, likes and comments about preference. Empty for one hidden state.
        watched: marginal P(watching).
        tie: by how much watching raises the log-odds of preference.
        strength: weight of the match of user and item in the logit of P(UP), and in that of P(watching).
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

    def files(self) -> list[Path]:
        """None: all data is generated."""
        return []

    def sample(self, folder: Path, pieces: int) -> FeedSample:
        """Some of the rows of the same world, for a dry run."""
        return FeedSample(replace(self, rows=min(self.rows, pieces * _ROWS_PER_PIECE)), self.rows)

    def write(self, writer: StoreWriter) -> Schema:
        """Draw the world, and its impressions in chunks, of which each has random numbers of its own."""
        from dlen.metrics.functional import BINS, histogram_auc  # torchmetrics takes a second: not for prepared data

        sizes, chunks = self._vocabularies(), range(-(-self.rows // _CHUNK))
        pieces = list(enumerate(chunks[first : first + PIECE] for first in chunks[::PIECE]))
        users = writer.beside.table("users", _counts(len(_USER_FIELDS)))
        users.append(_encoded(self._user_values(np.arange(self.users)), first_rows(sizes)))
        rows, positives = 0, np.zeros(len(self.tasks))
        bins = np.zeros((len(self.tasks), 2, BINS), np.int64)

        def add(drawn: _Drawn) -> bool:
            nonlocal rows, positives
            writer.add(drawn.shard)
            rows, positives = rows + drawn.rows, positives + drawn.positives
            bins.reshape(-1)[drawn.where] += drawn.counts
            return True

        def alone(piece: tuple[int, range], advance: Advance) -> None:
            add(self._draw(writer.folder, piece, advance))

        workers = Workers(writer.pool, len(pieces))
        with workers, Stage("simulating the feed", self.rows, "rows") as stage:
            work = partial(_draw, writer.folder)
            for _ in workers.merged(work, self, writer.scratch, pieces, stage, add, alone):
                pass
        oracle = histogram_auc(*torch.from_numpy(bins).unbind(1))
        aucs = zip(self.tasks, oracle.tolist(), strict=True)
        writer.notes["oracle_auc_on_test"] = {task: round(auc, 6) for task, auc in aucs if not np.isnan(auc)}
        for name, size in sizes.items():
            writer.vocabulary(name, pl.int_range(size - 1, eager=True))
        return self._schema(sizes, positives / max(rows, 1))

    def _draw(self, folder: Path, piece: tuple[int, range], advance: Advance) -> _Drawn:
        """Draw the chunks of a piece, its number first, and write them as a shard of the store in ``folder``."""
        from dlen.metrics import HistogramAUC  # as in write

        counts, offsets = _counts(len(_ITEM_FIELDS) + (self.positions > 0)), first_rows(self._vocabularies())
        shard, truths, views = PartWriter(folder, shard_folder(piece[0])), len(self._truth_names()), len(self._views())
        splits = {
            name: shard.split(name, counts, len(self.tasks), group="users", num_truth=truths, num_views=views)
            for name in ("train", "validation", "test")
        }
        positives, oracle = np.zeros(len(self.tasks)), HistogramAUC(len(self.tasks))
        for chunk in piece[1]:
            rng = np.random.default_rng([self.seed, 2, chunk])
            drawn = self._world.draw(rng, min(_CHUNK, self.rows - chunk * _CHUNK))
            masks = self._masks(rng.random(len(drawn.user)))
            self._append(splits, drawn, masks, offsets)
            positives += drawn.labels[masks["train"]].sum(axis=0, dtype=np.float64)
            logits = torch.from_numpy(logit(drawn.probability[masks["test"]]))
            oracle.update(logits, torch.from_numpy(drawn.labels[masks["test"]]))
            advance(len(drawn.user))
        counted = oracle.counts.numpy().reshape(-1)
        where = np.flatnonzero(counted)
        return _Drawn(shard.close(), splits["train"].rows, positives, where, counted[where])

    def truth(self, users: Ints, hour: int) -> Truth:
        """Ground truth of some users with every item.

        Args:
            users: (U,) user numbers.
            hour: hour of the day.

        Raises:
            UserError: the world has a second hidden state, of which a :class:`Truth` knows nothing.
        """
        if self.watching:
            raise UserError(
                "config data.watching: feed sessions are simulated in worlds with one hidden state; use data=feed"
            )
        world, items = self._world, np.arange(self.items)
        user, item = np.repeat(users, self.items), np.tile(items, len(users))
        shape = (len(users), self.items)
        up = world.up(user, item, np.full(len(user), hour)).reshape(shape).astype(np.float32)
        given_up = world.given_up(user, item).reshape(*shape, -1).astype(np.float32)
        popularity = np.diff(world.popularity, prepend=0.0)
        leak = np.broadcast_to(world.leak[users], (len(users), len(self.tasks))).astype(np.float32)
        return Truth(up, given_up, leak, self.dislikes(), popularity)

    def pairs(self, user: int, hour: int, offsets: Mapping[str, int]) -> NDArray[np.int32]:
        """(I, S) encoded ids of one user with every item at the top position.

        Args:
            user: user number.
            hour: hour of the day.
            offsets: offsets of the store's schema.
        """
        items, top = np.arange(self.items), np.zeros(self.items, np.int64)
        values = self._item_values(items, np.full(self.items, hour), top)
        return _encoded(values | self._user_values(np.full(self.items, user)), offsets).ids.astype(np.int32)

    @cached_property
    def _world(self) -> World:
        return World(self)

    def read(self, path: Path, store: Store, labels: bool = False) -> Iterator[Split]:
        """Read new rows from a table with one column per field, holding the simulator's own numbers."""
        return rows_by_field(path, store, labels=labels)

    def _vocabularies(self) -> dict[str, int]:
        """Vocabulary size of each field including the unknown id; fields of rows first."""
        sizes = {"item": self.items, "category": CATEGORIES, "author": AUTHORS, "hour": HOURS}
        sizes |= {POSITION: self.positions} if self.positions else {}
        sizes |= {"user": self.users, "age": AGES, "gender": GENDERS, "city": CITIES}
        return {name: size + 1 for name, size in sizes.items()}

    def _user_values(self, user: Ints) -> dict[str, Ints]:
        """Fields of some users."""
        world = self._world
        return {"user": user, "age": world.age[user], "gender": world.gender[user], "city": world.city[user]}

    def _item_values(self, item: Ints, hour: Ints, position: Ints) -> dict[str, Ints]:
        """Fields of rows that show some items."""
        world = self._world
        values = {"item": item, "category": world.category[item], "author": world.author[item], "hour": hour}
        return values | ({POSITION: position} if self.positions else {})

    def _masks(self, where: Floats) -> dict[str, NDArray[np.bool_]]:
        """The rows of each split, from (n,) uniform random numbers."""
        is_test = where < self.test
        is_validation = ~is_test & (where < self.test + self.validation)
        return {"train": ~(is_test | is_validation), "validation": is_validation, "test": is_test}

    def _append(
        self,
        splits: Mapping[str, SplitWriter],
        rows: Impressions,
        masks: Mapping[str, NDArray[np.bool_]],
        offsets: Mapping[str, int],
    ) -> None:
        """Write one chunk to its splits."""
        columns = _encoded(self._item_values(rows.item, rows.hour, rows.position), offsets)
        hidden = [rows.prefers, rows.up] if self.preference < 1 else []
        hidden += [rows.watching] if self.watching else []
        relevance = [rows.relevance] if self.positions else []
        truth = np.column_stack([*hidden, rows.probability, *relevance])
        for name, mask in masks.items():
            parts = (rows.labels[mask], rows.user[mask], truth[mask])
            splits[name].append(select_rows(columns, mask), *parts, views=rows.views[mask])

    def _views(self) -> tuple[View, ...]:
        return (View("play_time", len(PLAY_TIME_EDGES) + 1),) if self.play_time else ()

    def _schema(self, sizes: Mapping[str, int], rates: Floats) -> Schema:
        sides = _ITEM_FIELDS | {POSITION: "context"} | _USER_FIELDS
        fields = tuple(Field(name, Kind.ID, sides[name], size) for name, size in sizes.items())
        tasks = tuple(Task(name, float(r), dislike=name == HATE) for name, r in zip(self.tasks, rates, strict=True))
        position = POSITION if self.positions else None
        truth, views = self._truth_names(), self._views()
        return Schema(fields, tasks, truth, user="user", position=position, views=views)

    def _truth_names(self) -> tuple[str, ...]:
        """Names of the known quantities of each row; ``relevance/TASK`` is its probability at the top position."""
        relevance = [f"relevance/{task}" for task in self.tasks] if self.positions else []
        hidden = ("prefers", "up") if self.preference < 1 else ()
        return (*hidden, *((WATCHING,) if self.watching else ()), *self.tasks, *relevance)


@dataclass
class FeedSample:
    """Some rows of a simulated world.

    Args:
        source: the world with these rows.
        rows: number of rows of the whole log.
    """

    source: Feed
    rows: int

    exact = True  # the number of rows, and the ids, follow from the settings
    originals: Mapping[Path, Path] = field(default_factory=dict)

    def write(self, writer: StoreWriter) -> tuple[Schema, RawSample]:
        """Draw the rows."""
        schema, factor = self.source.write(writer), self.rows / self.source.rows
        rows = dict.fromkeys(("train", "validation", "test"), factor)
        return schema, RawSample(rows | {"users": 1.0}, lambda: IdCounts({}, {}, {}))


def _draw(folder: Path, source: Feed, piece: tuple[int, range], advance: Advance) -> _Drawn:
    """Draw a piece, unless an interrupted preparation has finished it."""
    before = FinishedShard.of(folder, piece[0])
    if before is not None:
        advance(sum(split["rows"] for split in before.shard.entry["splits"].values()))
        found = before.content
        bins = (np.array(found[name], np.int64) for name in ("where", "counts"))
        return _Drawn(before.shard, found["rows"], np.array(found["positives"]), *bins)
    drawn = source._draw(folder, piece, advance)
    content = {"rows": drawn.rows, "positives": drawn.positives.tolist()}
    content |= {"where": drawn.where.tolist(), "counts": drawn.counts.tolist()}
    FinishedShard(drawn.shard, content).save(folder, piece[0])
    return drawn


def _counts(single: int) -> dict[Kind, int]:
    return {Kind.ID: single, Kind.IDS: 0, Kind.NUMERIC: 0}


def _encoded(values: Mapping[str, Ints], offsets: Mapping[str, int]) -> Columns:
    """Zero-based values as row indices into the embedding table."""
    return Columns.of_ids(np.column_stack([v + 1 + offsets[name] for name, v in values.items()]))
