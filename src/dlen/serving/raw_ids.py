"""Raw ids: the texts of ids, the ids of texts, and keys of rates and histories, as a server makes them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import torch
from torch import Tensor

from dlen.data.partitions import BETWEEN
from dlen.data.sources.table_columns import HashedIds
from dlen.data.store import Store
from dlen.errors import UserError

Row = dict[str, Any]  # raw values by field or by key column: None, text, a number, or a list


def key_of(name: str, feature: Mapping[str, Any], row: Row) -> str | None:
    """The key of a rate, count or history for a row; None if a part is absent.

    Args:
        name: name of the field, for the message.
        feature: its entry in ``schema.json``, with ``by`` and ``separators``.

    Raises:
        UserError: a part is a list with weights.
    """
    parts = []
    for by, separator in zip(feature["by"], feature["separators"], strict=True):
        part = row[by]
        if isinstance(part, list):
            if any(weight != 1 for _, weight in part):
                raise UserError(
                    f"field {name}: its key {by} is a list with weights, which a request cannot express; leave it out"
                )
            part = separator.join(value for value, _ in part if value)
        if part is None or part == "":
            return None
        parts.append(str(part))
    return BETWEEN.join(parts)


# Using the store


def texts_of(store: Store, name: str) -> Sequence[Any]:
    """A text for each code of a field with a vocabulary or hashed ids; None for 0, which means absent or unknown."""
    owner = store.schema.owner(name)
    hashed = store.content["statistics"].get(owner, {}).get("hash")
    return [None, *store.vocabulary(name)["value"].cast(pl.String)] if hashed is None else _HashedTexts(owner, hashed)


class _HashedTexts(Sequence[Any]):
    """A text for each bucket of a hashed field, made when it is asked for; None for 0.

    Args:
        name: name of the field.
        coding: its ``hash`` in ``schema.json``.
    """

    def __init__(self, name: str, coding: Mapping[str, Any]) -> None:
        self.name, self.buckets = name, int(coding["buckets"])

    def __len__(self) -> int:
        return self.buckets + 1

    def __getitem__(self, code: Any) -> Any:
        return f"{self.name} {code}" if code else None


def rehashed(values: Sequence[Any], ids: Tensor, offset: int) -> Tensor:
    """(n,) ids of the texts that stand for some ids of a hashed field; the ids themselves for any other field."""
    if not isinstance(values, _HashedTexts):
        return ids
    texts = pl.Series([values[code] for code in (ids - offset).tolist()], dtype=pl.String)
    return torch.from_numpy(HashedIds(values.buckets).encode(texts)).to(ids.dtype) + offset


def filled_keys(name: str, feature: Mapping[str, Any], known: pl.Series, rows: Sequence[Row]) -> pl.Series:
    """The key of each row, see :func:`key_of`, whose columns that a row lacks are filled in with one of ``known``."""
    keys, known_keys = [], known.head(len(rows)).to_list()
    for number, row in enumerate(rows):
        parts = known_keys[number % len(known_keys)].split(BETWEEN) if known_keys else [""] * len(feature["by"])
        for by, part in zip(feature["by"], parts, strict=False):
            row.setdefault(by, part)
        keys.append(key_of(name, feature, row))
    return pl.Series(keys, dtype=pl.String)


# Using schema.json alone


def with_codes(
    fields: Sequence[Mapping[str, Any]], owners: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], dict[str, int]]]:
    """Pair each field with the id of each raw value, where it or the field that it shares ids with has a vocabulary."""
    values = {f["name"]: f.get("values", ()) for f in owners}
    return [(f, {v: f["offset"] + i + 1 for i, v in enumerate(values[f.get("share", f["name"])])}) for f in fields]


def code_of(field: Mapping[str, Any], codes: Mapping[str, int], value: str | None) -> int:
    """The id of a text, by its place in ``values`` or by its hash."""
    offset = int(field["offset"])
    if "hash" not in field:
        return codes.get(value or "", offset)
    if not value:
        return offset
    digest = getattr(hashlib, field["hash"]["function"])(
        value.encode(), digest_size=field["hash"]["digest_size"]
    ).digest()
    return offset + 1 + int.from_bytes(digest, "little") % int(field["hash"]["buckets"])
