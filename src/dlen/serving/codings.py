"""Codings: how an export's schema.json describes each field, and raw values to check it.

A server has only ``schema.json``. The check turns rows of the test split back into raw values they may have come from,
using the store, and then into inputs again, using ``schema.json`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlen.batch import Batch
from dlen.data.rates import kept_rates
from dlen.data.sources.table_parse import parse_spec
from dlen.data.sources.table_spec import TableSpec
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.schema import Field, Kind
from dlen.serving.raw_ids import Row, code_of, filled_keys, key_of, rehashed, texts_of, with_codes
from dlen.serving.sequence_codings import encoded_sequences, raw_sequences
from dlen.serving.vector_codings import encoded_vectors, raw_vectors, vector_place

Array = NDArray[Any]
INPUTS = {  # of the exported model, in order
    "ids": "int64 (rows, single fields)",
    "numeric": "float32 (rows, numeric fields)",
    "bag_ids": "int64 (rows, list fields, length)",
    "bag_weights": "float32 (rows, list fields, length), 0: none",
    "sequence_ids": "int64 (rows, lists of sequences, width), oldest first",
    "sequence_lengths": "int64 (rows, sequences)",
    "vectors": "float32 (rows, numbers of all vector fields)",
}
_INPUTS = {
    Kind.ID: "ids",
    Kind.IDS: "bag_ids",
    Kind.NUMERIC: "numeric",
    Kind.SEQUENCE: "sequence_ids",
    Kind.VECTOR: "vectors",
}
_ROUNDING = 1e-4  # tolerance for numbers that are unscaled and scaled again in float32


def field_codings(store: Store) -> list[dict[str, Any]]:
    """How the raw values of each field become inputs, in the order of the inputs.

    Raises:
        UserError: the store was written by an earlier version and lacks the coding of a field.
    """
    codings, times = [], _times(store)
    for kind in Kind:
        for position, field in enumerate(store.schema.lists if kind is Kind.SEQUENCE else store.schema.of_kind(kind)):
            coding: dict[str, Any] = {"name": field.name, "input": _INPUTS[kind], "position": position}
            if field.has_ids:
                coding["offset"] = store.schema.offsets[field.name]
            if kind is Kind.VECTOR:
                coding |= vector_place(store, field)
            codings.append(coding | _coding(store, field) | times.get(field.name, {}))
    return codings


def _times(store: Store) -> dict[str, dict[str, Any]]:
    """By field, which column a part of a time comes from, and the hours that are added to UTC before it is taken."""
    text = store.content["settings"].get("spec")
    spec = parse_spec(text, store.folder) if isinstance(text, str) else TableSpec()
    return {
        f"{name}_{part}": {"time": {"column": field.column, "part": part, "utc_offset": field.utc_offset}}
        for name, field in spec.fields.items()
        if field.kind == "time"
        for part in field.parts
    }


def _coding(store: Store, field: Field) -> dict[str, Any]:
    statistics = dict(store.content["statistics"].get(field.name, {}))
    coding: dict[str, Any] = {"share": field.share} if field.share else {}
    if field.share and "hash" in (shared := store.content["statistics"].get(field.share, {})):
        coding["hash"] = shared["hash"]
    coding |= {key: statistics.pop(key) for key in ("max_values", "keep", "range", "hash") if key in statistics}
    if field.name in store.content["vocabularies"]:
        coding["values"] = store.vocabulary(field.name)["value"].cast(pl.String).to_list()
    if field.kind is Kind.SEQUENCE:  # the rest is said once per sequence
        return {key: value for key, value in coding.items() if key in ("share", "hash", "values")}
    if "rate" in statistics:
        coding["rate"] = _latest(store, statistics.pop("rate"))
    if statistics:
        coding["statistics"] = statistics
    ids = {"values", "share", "hash"}
    told = ids if field.kind is Kind.IDS else ids | {"range", "statistics"}
    if not told & set(coding) or (field.kind is Kind.IDS and "max_values" not in coding):
        raise UserError(
            f"{store.folder}: the coding of field {field.name} is missing, because an earlier version wrote this "
            "folder; delete it and train again"
        )
    return coding


def _latest(store: Store, rate: Mapping[str, Any]) -> dict[str, Any]:
    """The rates or counts that new rows get, by key."""
    latest = kept_rates(store, rate["history"]).latest()
    return {
        "by": rate["by"],
        "separators": rate["separators"],
        "keys": latest["key"].to_list(),
        "latest": latest[rate["output"]].cast(pl.Float64).to_list(),
    }


# From rows of a store to raw values, using the store


def raw_rows(store: Store, batch: Batch) -> tuple[list[Row], Batch]:
    """Return raw values that rows of a store may have come from, and the rows as a server has to see them.

    These rows differ from the store's in rates: a server knows rates as they are after the log's last row. They also
    differ in hashed ids, whose text the store does not know: any text stands for a bucket, and has its own hash. A list
    that the data truncated, or may have truncated, gets a further value that has to be truncated again.

    Raises:
        UserError: a rate's key is a list with weights, which a request cannot express.
    """
    rows: list[Row] = [{} for _ in range(len(batch))]
    batch = replace(batch, ids=batch.ids.clone(), bag_ids=batch.bag_ids.clone(), numeric=batch.numeric.clone())
    for position, field in enumerate(store.schema.of_kind(Kind.ID)):
        codes, values = (batch.ids[:, position] - store.schema.offsets[field.name]).tolist(), _values(store, field.name)
        _fill(rows, field.name, [values[code] for code in codes])
        batch.ids[:, position] = rehashed(values, batch.ids[:, position], store.schema.offsets[field.name])
    for position, field in enumerate(store.schema.of_kind(Kind.IDS)):
        _fill(rows, field.name, _lists(store, field.name, batch, position))
        start, count = int(batch.bag_lengths[:position].sum()), int(batch.bag_lengths[position].sum())
        own, values = batch.bag_ids[start : start + count], _values(store, field.name)
        batch.bag_ids[start : start + count] = rehashed(values, own, store.schema.offsets[field.name])
    for position, field in enumerate(store.schema.of_kind(Kind.NUMERIC)):
        statistics = store.content["statistics"][field.name]
        if "rate" not in statistics:
            _fill(rows, field.name, [_unscaled(statistics, value) for value in batch.numeric[:, position].tolist()])
            continue
        rates = _rates(store, field.name, statistics["rate"], rows)
        batch.numeric[:, position] = torch.from_numpy((rates - statistics["mean"]) / statistics["deviation"])
    raw_vectors(store, batch, rows)
    return rows, replace(batch, sequences=raw_sequences(store, batch, rows))


def _fill(rows: list[Row], name: str, values: Sequence[Any]) -> None:
    for row, value in zip(rows, values, strict=True):
        row[name] = value


def _values(store: Store, name: str) -> Sequence[Any]:
    """A raw value for each code of a field; None for 0, which means absent or unknown."""
    statistics = store.content["statistics"].get(name, {})
    owner = store.schema.owner(name)
    if "hash" in store.content["statistics"].get(owner, {}) or owner in store.content["vocabularies"]:
        return texts_of(store, name)
    if "range" in statistics:
        return [None, *range(statistics["range"][0], statistics["range"][1] + 1)]
    edges = np.asarray(statistics["edges"], np.float64)
    lowest = np.nextafter(edges[:1], -np.inf) if len(edges) else np.zeros(1)
    return [None, *[None] * statistics["absent"], *lowest.tolist(), *edges.tolist()]


def _lists(store: Store, name: str, batch: Batch, position: int) -> list[list[list[Any]]]:
    """[[value, weight], ...] for each row.

    A list of full length gets one more value, which has to be truncated, and every second list an absent value, which
    has to be left out before.
    """
    statistics, values = store.content["statistics"][name], _values(store, name)
    cap, keep = statistics["max_values"], statistics.get("keep", "heaviest")
    ends = batch.bag_lengths.flatten().cumsum(0).view(batch.bag_lengths.shape)[position].tolist()
    lists = []
    for row, (end, length) in enumerate(zip(ends, batch.bag_lengths[position].tolist(), strict=True)):
        codes = (batch.bag_ids[end - length : end] - store.schema.offsets[name]).tolist()
        weights = batch.bag_weights[end - length : end].tolist()
        known = [values[c] or f"{name} {row}.{i}, which is not known" for i, c in enumerate(codes)]
        pairs = [[value, weight] for value, weight in zip(known, weights, strict=True)]
        if length == cap and keep != "heaviest":
            pairs = [[values[-1], 1.0], *pairs] if keep == "last" else [*pairs, [values[-1], 1.0]]
        elif length == cap:  # as light as the lightest and after it, or lighter than all others
            lightest = min(weights)
            lighter = row % 2 and set(weights) != {1.0}
            extra = [values[-1], lightest - 1 - abs(lightest) if lighter else lightest]
            pairs = [extra, *pairs] if lighter else [*pairs, extra]
        lists.append([["", 1.0], *pairs, [None, 1.0]] if row % 2 else pairs)
    return lists


def _unscaled(statistics: Mapping[str, Any], value: float) -> float | None:
    if value == 0:
        return None  # absent is the mean
    number = value * statistics["deviation"] + statistics["mean"]
    if statistics.get("transform") != "log1p":
        return number
    with np.errstate(over="ignore"):
        return float(np.sign(number) * min(np.expm1(abs(number)), np.finfo(np.float64).max))


def _rates(store: Store, name: str, rate: Mapping[str, Any], rows: list[Row]) -> Array:
    """(n,) values that the store's history gives rows after its last row. Fills in key columns that rows lack."""
    table = kept_rates(store, rate["history"])
    keys = filled_keys(name, rate, table.history["key"], rows)
    when = np.full(len(rows), np.inf) if table.settings.timed else None
    features = table.features(keys, when)
    return features[:, -1 if rate["output"] == "count" else int(rate["output"])].astype(np.float64)


# From raw values to inputs, using schema.json


def encoded(schema: Mapping[str, Any], rows: Sequence[Row]) -> tuple[Tensor, ...]:
    """Encode raw values as inputs of the exported model, using ``schema.json`` alone.

    Args:
        schema: content of ``schema.json``.
        rows: raw values, from :func:`raw_rows`.

    Returns:
        The inputs, as in :func:`~dlen.serving.export.dense`.
    """
    fields = schema["fields"]
    of_input = {name: [f for f in fields if f["input"] == name] for name in _INPUTS.values()}
    singles = [[_single(f, code, row) for row in rows] for f, code in with_codes(of_input["ids"], fields)]
    numbers = [[_number(f, latest, row) for row in rows] for f, latest in _with_latest(of_input["numeric"])]
    bags = [[_bag(f, code, row) for row in rows] for f, code in with_codes(of_input["bag_ids"], fields)]
    longest = max((len(bag) for column in bags for bag in column), default=0) or 1
    ids, weights = np.zeros((len(rows), len(bags), longest), np.int64), np.zeros((len(rows), len(bags), longest))
    for position, column in enumerate(bags):
        for row, bag in enumerate(column):
            for place, (value, weight) in enumerate(bag):
                ids[row, position, place], weights[row, position, place] = value, weight

    def stacked(columns: list[list[Any]], kind: type) -> Tensor:
        return torch.from_numpy(np.array(columns, kind).reshape(len(columns), len(rows)).T.copy())

    return (
        stacked(singles, np.int64),
        stacked(numbers, np.float32),
        torch.from_numpy(ids),
        torch.from_numpy(weights.astype(np.float32)),
        *encoded_sequences(schema, rows),
        encoded_vectors(schema, rows),
    )


def _with_latest(fields: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], dict[str, float]]]:
    """Pair each field with the latest value of each key, where it is a rate."""
    rates = [f.get("rate", {"keys": (), "latest": ()}) for f in fields]
    return [(f, dict(zip(r["keys"], r["latest"], strict=True))) for f, r in zip(fields, rates, strict=True)]


def _single(field: Mapping[str, Any], codes: Mapping[str, int], row: Row) -> int:
    value, offset = row[field["name"]], int(field["offset"])
    if {"values", "share", "hash"} & set(field):
        return code_of(field, codes, value)
    if "range" in field:
        return offset if value is None else offset + 1 + value - field["range"][0]
    absent, edges = field["statistics"]["absent"], field["statistics"]["edges"]
    return offset + absent + (0 if value is None else 1 + int(np.searchsorted(edges, value, side="right")))


def _number(field: Mapping[str, Any], latest: Mapping[str, float], row: Row) -> float:
    scale = field["statistics"]
    if "rate" in field:
        value = latest.get(key_of(field["name"], field["rate"], row) or "", 0.0)
    elif row[field["name"]] is None:
        return 0.0
    else:
        value = row[field["name"]]
        value = np.sign(value) * np.log1p(abs(value)) if scale.get("transform") == "log1p" else value
    return float((value - scale["mean"]) / scale["deviation"])


def _bag(field: Mapping[str, Any], codes: Mapping[str, int], row: Row) -> list[tuple[int, float]]:
    pairs = [[value, weight] for value, weight in row[field["name"]] if value]
    cap, keep = field["max_values"], field.get("keep", "heaviest")
    if keep == "heaviest":
        pairs = sorted(pairs, key=lambda pair: -pair[1])
    pairs = pairs[-cap:] if keep == "last" else pairs[:cap]
    return [(code_of(field, codes, value), weight) for value, weight in pairs]


def different_field(
    fields: Sequence[Mapping[str, Any]], inputs: tuple[Tensor, ...], wanted: tuple[Tensor, ...]
) -> str | None:
    """The first field whose inputs differ from the expected ones, ignoring the order within lists."""
    pairs = dict(zip(INPUTS, zip(inputs, wanted, strict=True), strict=True))
    for field in fields:
        name, first = field["input"], field["position"]
        of_field = slice(first, first + field["size"]) if name == "vectors" else first
        own, expected = (part[:, of_field] for part in pairs[name])
        if name == "ids":
            same = torch.equal(own, expected)
        elif name == "sequence_ids":
            same = torch.equal(*pairs["sequence_lengths"]) and torch.equal(own, expected)
        elif name == "bag_ids":
            weights, expected_weights = (part[:, first] for part in pairs["bag_weights"])
            same = _bags(own, weights) == _bags(expected, expected_weights)
        else:
            same = torch.allclose(own, expected, _ROUNDING, _ROUNDING)
        if not same:
            return str(field["name"])
    return None


def _bags(ids: Tensor, weights: Tensor) -> list[list[tuple[int, float]]]:
    """The ids with a non-zero weight in each row, with their weights, sorted."""
    return [
        sorted((i, w) for i, w in zip(row, of_row, strict=True) if w)
        for row, of_row in zip(ids.tolist(), weights.tolist(), strict=True)
    ]
