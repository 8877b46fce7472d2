"""The key of a rate or history, as a server makes it from a row's raw values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlen.errors import UserError

Row = dict[str, Any]  # raw values by field or by key column: None, text, a number, or a list
BETWEEN = "\x1f"  # separates the parts of a key


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
            part = separator.join(value for value, _ in part)
        if part is None or part == "":
            return None
        parts.append(str(part))
    return BETWEEN.join(parts)
