"""Exceptions: the one that a user is meant to read, and what data must have for a model."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Wrong input or settings. The message is one line that names the file, row, field or config key.

    The commands print it without a traceback and exit with code 2.

    Args:
        message: what cannot be printed in it, such as a line break of a cell that is quoted or what would move a
            terminal's cursor, is shown as its escape.
        details: lines below it, such as a list of what differs.
    """

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__("\n".join(map(_printable, [str(message), *details])))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UnfitError(UserError):
    """A model that the data do not allow."""


class UnmetNeedError(ValueError):
    """Raised by a model whose schema lacks what it needs, such as a funnel or a position."""
