"""Codings of sequences: how an export's schema.json describes them, and raw values to check it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlen.batch import Batch
from dlen.batch import Sequence as BatchSequence
from dlen.data.columns import GAP_BUCKETS, Places
from dlen.data.histories import histories_of, stored_history
from dlen.data.ragged import places_of
from dlen.data.sequences import SplitSequences
from dlen.data.shards import Found
from dlen.data.store import Store
from dlen.serving.raw_ids import Row, code_of, filled_keys, key_of, rehashed, texts_of, with_codes


def sequence_codings(store: Store) -> list[dict[str, Any]]:
    """How each sequence becomes inputs, in the order of ``sequence_lengths``."""
    codings = []
    for name, lists in store.schema.sequences.items():
        coding: dict[str, Any] = {"name": name, "lists": [f.name for f in lists]}
        kept = store.content["histories"].get(name)
        if kept is None:
            statistics = store.content["statistics"][lists[0].name]
            coding |= {"max_values": statistics["max_values"], "order": statistics["order"]}
        else:
            coding["history"] = _latest(store, name, kept)
        codings.append(coding)
    return codings


def _latest(store: Store, name: str, kept: Mapping[str, Any]) -> dict[str, Any]:
    """The histories of new rows by key, as ids of the model's input, with the time of each event.

    A row sees those of its key's events that are strictly earlier than it is.
    """
    stored, known = stored_history(store, name)
    keys = known["key"].unique(maintain_order=True)
    places = histories_of(keys, np.full(len(keys), np.inf), stored, known, kept["length"])
    split = SplitSequences.of([stored], places)
    index = torch.arange(len(keys))
    (sequence,) = split.gather(Found(index), split.count(index))
    lists = sequence.ids.T[: stored.values.shape[1]]
    history = {"by": kept["by"], "separators": kept["separators"], "keys": keys.to_list()}
    history |= {"ends": np.cumsum(places.length, dtype=np.int64).tolist(), "events": lists.tolist()}
    when = stored.when.numpy()[places_of(places.start[:, 0], places.length[:, 0])]
    return history | {"when": when.tolist(), "seconds": kept["seconds"], "gap": stored.gaps}


# From rows of a store to raw values, using the store


def raw_sequences(store: Store, batch: Batch, rows: list[Row]) -> tuple[BatchSequence, ...]:
    """Add raw values of the sequences to rows, and return the sequences that a server has to make of them.

    Args:
        rows: raw values of the other fields, changed in place.
    """
    wanted = []
    for (name, lists), sequence in zip(store.schema.sequences.items(), batch.sequences, strict=True):
        if name in store.content["histories"]:
            wanted.append(_history(store, name, rows))
            continue
        columns = []
        for ids, field in zip(sequence.ids.unbind(1), lists, strict=True):
            texts, offset = texts_of(store, field.name), store.schema.offsets[field.name]
            columns.append(rehashed(texts, ids, offset))
            codes = (ids - offset).split(sequence.lengths.tolist())
            for row, of_row in zip(rows, codes, strict=True):
                row[field.name] = _raw_list(store, field.name, [texts[code] for code in of_row.tolist()])
        wanted.append(BatchSequence(sequence.lengths, torch.stack(columns, 1)))
    return tuple(wanted)


def _raw_list(store: Store, name: str, texts: list[str | None]) -> list[str | None]:
    """A list as in the log; one of full length gets an older value, which has to be cut."""
    statistics = store.content["statistics"][name]
    unknown = "not a known id" if store.schema.owner(name) in store.content["vocabularies"] else None  # hashed: empty
    known = [unknown if text is None else text for text in texts]
    known = ["an older id", *known] if len(known) == statistics["max_values"] else known
    return known[::-1] if statistics["order"] == "newest_first" else known


def _history(store: Store, name: str, rows: list[Row]) -> BatchSequence:
    """What the events of an export give rows at some times. Fills in key columns that rows lack.

    Every third row is as old as one of its key's exported events, and sees those before; the others come after all.
    """
    kept = store.content["histories"][name]
    stored, known = stored_history(store, name)
    latest, number = float(stored.when.max()) if len(stored.when) else 0.0, np.arange(len(rows))
    keys, all_times = filled_keys(name, kept, known["key"], rows), np.full(len(rows), np.inf)
    exported = histories_of(keys, all_times, stored, known, kept["length"])
    first, length = exported.start[:, 0], exported.length[:, 0]
    now, old = latest + 1 + number**3 * 7.0, (number % 3 == 2) & (length > 0)
    now[old] = stored.when.numpy()[first[old] + number[old] % length[old]]
    for row, when in zip(rows, now.tolist(), strict=True):
        row[f"{name} now"] = when
    seen = histories_of(keys, now, stored, known, kept["length"])
    start = np.maximum(seen.start, exported.start)
    kept_length = np.maximum(seen.start + seen.length - start, 0).astype(np.int16)
    split, index = SplitSequences.of([stored], Places(start, kept_length, seen.when)), torch.arange(len(rows))
    return split.gather(Found(index), split.count(index))[0]


# From raw values to inputs, using schema.json


def encoded_sequences(schema: Mapping[str, Any], rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Encode raw values of sequences, using ``schema.json`` alone.

    Args:
        schema: content of ``schema.json``.
        rows: raw values, from :func:`raw_sequences`.

    Returns:
        (B, N, W) int64 ids, padded with 0, and (B, Q) int64 lengths.
    """
    fields = {f["name"]: f for f in schema["fields"]}
    columns: list[list[list[int]]] = []  # by list and row
    lengths: list[list[int]] = []
    for sequence in schema["sequences"]:
        if "history" in sequence:
            of_rows = _with_history(sequence, fields, rows)
        else:
            of_rows = _with_lists(sequence, fields, rows)
        columns += [list(column) for column in zip(*of_rows, strict=True)]
        lengths.append([len(lists[0]) for lists in of_rows])
    width = max((n for column in lengths for n in column), default=0) or 1
    ids = np.zeros((len(rows), len(columns), width), np.int64)
    for position, column in enumerate(columns):
        for row, values in enumerate(column):
            ids[row, position, : len(values)] = values
    return torch.from_numpy(ids), torch.tensor(lengths, dtype=torch.int64).reshape(-1, len(rows)).T.contiguous()


def _with_lists(sequence: Mapping[str, Any], fields: Mapping[str, Any], rows: Sequence[Row]) -> list[list[list[int]]]:
    """Ids by row and list, oldest first."""
    lists = with_codes([fields[name] for name in sequence["lists"]], list(fields.values()))
    of_rows = []
    for row in rows:
        ids = []
        for field, codes in lists:
            raw = row[field["name"]][::-1] if sequence["order"] == "newest_first" else row[field["name"]]
            ids.append([code_of(field, codes, value) for value in raw[-sequence["max_values"] :]])
        of_rows.append(ids)
    return of_rows


def _with_history(sequence: Mapping[str, Any], fields: Mapping[str, Any], rows: Sequence[Row]) -> list[list[list[int]]]:
    """Ids by row and list, of the latest events of the row's key that are earlier than the row."""
    history, name = sequence["history"], sequence["name"]
    starts = dict(zip(history["keys"], zip([0, *history["ends"]], history["ends"], strict=False), strict=True))
    of_rows = []
    for row in rows:
        first, last = starts.get(key_of(name, history, row) or "", (0, 0))
        last = bisect_left(history["when"], row[f"{name} now"], first, last)
        lists = [events[first:last] for events in history["events"]]
        if history["gap"]:
            gaps = [row[f"{name} now"] - when for when in history["when"][first:last]]
            offset = fields[sequence["lists"][-1]]["offset"]
            buckets = [min(int(min(gap, 2.0**GAP_BUCKETS) + 1).bit_length(), GAP_BUCKETS) for gap in gaps]
            lists.append([offset + bucket for bucket in buckets])
        of_rows.append(lists)
    return of_rows
