"""Appended days of a store: the rows that a run trains on and is tested on, and the ids that were known then."""

from __future__ import annotations

import re
from copy import copy
from dataclasses import dataclass

import torch

from dlen.data.split import Split
from dlen.data.store import Rows, Store
from dlen.errors import UserError
from dlen.schema import Kind, Schema

_SAMPLE = 1 << 16
SPLIT = "days"  # the split with the rows of appended days


@dataclass(frozen=True, slots=True)
class Days:
    """The appended days of a run, by the labels of their shards.

    Attributes:
        first: first day to train on; None for the first one there is.
        last: last day to train on; None for the last one there is. Without both, the training split is trained on.
        test: day to test on; None for the one after ``last``, or the validation rows if there is none.
        validation: share of the rows of the trained days, the last ones, that validate instead.
    """

    first: str | None = None
    last: str | None = None
    test: str | None = None
    validation: float = 0.1


def in_order(label: str) -> list[tuple[int, str]]:
    """Sort key of labels, by which 9 comes before 10."""
    parts = re.findall(r"\d+|\D+", label)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def labels_of(store: Store) -> list[str]:
    """Labels of the appended days of a store, in order."""
    return sorted({shard["label"] for shard in store.shards if SPLIT in shard["splits"]}, key=in_order)


def between(store: Store, first: str | None, last: str | None) -> list[str]:
    """The appended days from ``first`` to ``last``, both included; ``last`` may be the beginning of labels like 24/nl.

    Raises:
        UserError: there are none.
    """
    chosen = [label for label in labels_of(store) if first is None or in_order(label) >= in_order(first)]
    chosen = [d for d in chosen if last is None or in_order(d) <= in_order(last) or d.startswith(f"{last}/")]
    if not chosen:
        wanted = f"{first or 'the first'} to {last or 'the last'}"
        raise UserError(f"config days.from: {store.folder} has no day from {wanted}; {_there_are(store)}")
    return chosen


def _there_are(store: Store) -> str:
    labels = labels_of(store)
    return f"its appended days are {', '.join(labels)}" if labels else "prepare.py append=true appends days"


def on_days(store: Store, days: Days) -> Store:
    """A store whose splits are rows of appended days.

    Its ids are those known on the last trained day: later ones, which rows of the test day may have, are unknown, as
    they are to a model that is trained before that day.

    Raises:
        UserError: there are no such days.
    """
    labels, view = labels_of(store), copy(store)
    trains = days.first is not None or days.last is not None
    trained = between(store, days.first, days.last) if trains else []
    if days.test is not None and days.test not in labels:
        raise UserError(f"config days.test: {store.folder} has no day {days.test}; {_there_are(store)}")
    following = [label for label in labels if trained and in_order(label) > in_order(trained[-1])][:1]
    tested = [days.test] if days.test is not None else following
    selected = dict(store.selected)
    if trained:
        rows = Rows(SPLIT, _shards(store, trained))
        number = store.count(rows)
        validating = round(days.validation * number)
        selected["train"] = Rows(SPLIT, rows.shards, 0, number - validating)
        selected["validation"] = Rows(SPLIT, rows.shards, number - validating, number) if validating else rows
        selected["test"] = selected["validation"]
        view.as_of(max(rows.shards))
    if tested:
        selected["test"] = Rows(SPLIT, _shards(store, tested))
    view.selected = selected
    view.content = {**store.content, "unknown": {name: _unknown(view.split(name), view.schema) for name in selected}}
    return view


def _unknown(split: Split, schema: Schema) -> dict[str, float]:
    """For each field with ids, the share of values that are unknown, in up to 2^16 evenly spaced rows."""
    rows = torch.linspace(0, len(split) - 1, min(len(split), _SAMPLE), dtype=torch.float64).long()
    batch = split.batch(rows)
    found = dict(zip(schema.of_kind(Kind.ID), batch.ids.unbind(1), strict=True))
    bags = schema.of_kind(Kind.IDS)
    if bags:
        of_fields = batch.bag_ids.split(batch.bag_lengths.sum(1).tolist())
        found |= dict(zip(bags, of_fields, strict=True))
    for lists, sequence in zip(schema.sequences.values(), batch.sequences, strict=True):
        found |= dict(zip(lists, sequence.ids.unbind(1), strict=True))
    return {f.name: float((ids == schema.offsets[f.name]).sum() / max(len(ids), 1)) for f, ids in found.items()}


def _shards(store: Store, labels: list[str]) -> tuple[int, ...]:
    return tuple(n for n, shard in enumerate(store.shards) if SPLIT in shard["splits"] and shard["label"] in labels)
