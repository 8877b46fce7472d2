"""Counts the ids of a split that has just been written, including those of its user groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dlen.data.columns import Array, Part
from dlen.data.ragged import field_of_values, places_of
from dlen.data.scratch import read_flat
from dlen.schema import Field, Kind, Schema

_PIECE = 1 << 22  # values counted at a time
_ROWS = 1 << 16  # rows whose lists are counted at a time
_SAMPLE = 1 << 20  # rows whose sequences are looked at, evenly spaced


def unknown_shares(occurrences: Mapping[str, Array]) -> dict[str, float]:
    """For each id field, the share of values that are unknown or absent."""
    return {name: float(counts[0] / max(counts.sum(), 1)) for name, counts in occurrences.items()}


class WrittenSplits:
    """The splits of a store whose arrays are written, but not yet its ``store.json``.

    Args:
        folder: folder of the store.
        shards: entries of its shards.
        beside: the entry of what their rows point to beside them.
        schema: schema of the ids.
    """

    def __init__(self, folder: Path, shards: Sequence[Part], beside: Part, schema: Schema) -> None:
        self.folder, self.shards, self.beside, self.schema = folder, shards, beside, schema

    def _owner(self, shard: Part, array: str) -> Part:
        return shard if array in shard["arrays"] else self.beside

    def count_ids(self, split: str) -> dict[str, Array]:
        """(vocab_size,) occurrences of each id of a field in the rows of a split, by field; without sequences.

        The ids of a user group count once for each row of the split.
        """
        schema, group = self.schema, self.shards[0]["splits"][split]["group"]
        totals, uses = np.zeros(schema.num_embeddings, np.int64), dict[Path, Array]()
        borrowed = {f: np.zeros(f.vocab_size, np.int64) for f in schema.fields if f.share and not f.sequence}
        for shard in self.shards:
            folder = self.folder / shard["folder"]
            _add_table(totals, folder, split)
            if group is not None:
                owner = self.folder / self._owner(shard, f"{group}/bag_start")["folder"]
                of_groups = uses.setdefault(owner, np.zeros(len(read_flat(owner, group, "bag_start")) - 1, np.int64))
                _add(of_groups, read_flat(folder, split, "group"))
            for field, counts in borrowed.items():
                counts += _of_field(folder, split, field, schema)
        for owner, of_groups in uses.items():
            _add_table(totals, owner, group, of_groups)
        for field, counts in borrowed.items():
            totals[schema.rows(field.name)] -= counts
        own = {f.name: totals[schema.rows(f.name)] for f in schema.owners if not f.sequence}
        return own | {field.name: counts for field, counts in borrowed.items()}

    def unknown_in_sequences(self, split: str) -> dict[str, float]:
        """For each stored list of a sequence, the share of values that are unknown, over up to 2^20 rows of a split."""
        rows = [shard["splits"][split]["rows"] for shard in self.shards]
        sampled = np.unique(np.linspace(0, max(sum(rows) - 1, 0), min(sum(rows), _SAMPLE)).astype(np.int64))
        bounds = np.cumsum([0, *rows])
        of_shards = np.split(sampled, np.searchsorted(sampled, bounds[1:-1]))
        shares: dict[str, float] = {}
        for place, (name, lists) in enumerate(self.schema.sequences.items()):
            found = [
                self._unknown(shard, split, place, name, chosen - first)
                for shard, first, chosen in zip(self.shards, bounds, of_shards, strict=False)
            ]
            unknown, total = (sum(part) for part in zip(*found, strict=True))
            of_lists = zip(lists, unknown.tolist(), strict=False)  # the list of gaps is not stored, and never unknown
            shares |= {field.name: count / max(total, 1) for field, count in of_lists}
        return shares

    def _unknown(self, shard: Part, split: str, place: int, name: str, rows: Array) -> tuple[Array, int]:
        """Unknown values of each stored list of a sequence in some rows of a shard, and the number of values."""
        start, length = (
            read_flat(self.folder / shard["folder"], split, part).reshape(-1, len(self.schema.sequences))[:, place]
            for part in ("sequence_start", "sequence_length")
        )
        array = f"sequences/{name}/values"
        owner = self._owner(shard, array)
        width = owner["arrays"][array]["shape"][1]
        codes = read_flat(self.folder / owner["folder"], f"sequences/{name}", "values").reshape(-1, width)
        unknown, total = np.zeros(width, np.int64), 0
        for first in range(0, len(rows), _ROWS):
            seen = codes[places_of(*(part[rows[first : first + _ROWS]] for part in (start, length)))]
            unknown, total = unknown + (seen == 0).sum(0), total + len(seen)
        return unknown, total


def _of_field(folder: Path, split: str, field: Field, schema: Schema) -> Array:
    """(vocab_size,) occurrences of the ids of one field that shares those of another."""
    place = schema.of_kind(field.kind).index(field)
    counts = np.zeros(field.vocab_size, np.int64)
    if field.kind is Kind.ID:
        ids = read_flat(folder, split, "ids").reshape(-1, len(schema.of_kind(Kind.ID)))[:, place]
        _add(counts, ids, first=schema.offsets[field.name])
        return counts
    lengths = read_flat(folder, split, "bag_lengths").reshape(-1, len(schema.of_kind(Kind.IDS)))
    starts, bag_ids = read_flat(folder, split, "bag_start"), read_flat(folder, split, "bag_ids")
    for first in range(0, len(lengths), _ROWS):
        of_rows = lengths[first : first + _ROWS]
        values = bag_ids[starts[first] : starts[first + len(of_rows)]]
        _add(counts, values[field_of_values(of_rows) == place], first=schema.offsets[field.name])
    return counts


def _add_table(totals: Array, folder: Path, table: str, uses: Array | None = None) -> None:
    """Add the ids of a table's rows to ``totals``, weighting each row by ``uses``."""
    ids, bag_ids = read_flat(folder, table, "ids"), read_flat(folder, table, "bag_ids")
    if uses is None:
        _add(totals, ids)
        _add(totals, bag_ids)
        return
    singles = len(ids) // max(len(uses), 1)
    starts = read_flat(folder, table, "bag_start")
    _add(totals, ids, lambda place: uses[place // singles])
    _add(totals, bag_ids, lambda place: uses[np.searchsorted(starts, place, "right") - 1])


def _add(totals: Array, ids: Array, weight_of: Callable[[Array], Array] | None = None, *, first: int = 0) -> None:
    """Count ids from ``first``, weighted by ``weight_of`` their position, in pieces: ``ids`` may exceed the memory."""
    step = max(len(totals), _PIECE)
    for start in range(0, len(ids), step):
        piece = ids[start : start + step]
        weights = None if weight_of is None else weight_of(np.arange(start, start + len(piece)))
        totals += np.bincount(piece - first, weights, len(totals)).astype(np.int64)
