"""Exceptions: the one that a user is meant to read, and what data must have for a model."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Wrong input or settings. The message is one line that names the file, row, field or config key.

    The commands print it without a traceback and exit with code 2.

    Args:
        message: line breaks in it, such as those of a cell that is quoted, are shown as such.
        details: lines below it, such as a list of what differs.
    """

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        shown = str(message).replace("\r", "\\r").replace("\n", "\\n")
        super().__init__("\n".join([shown, *details]))


class UnfitError(UserError):
    """A model that the data do not allow."""


class UnmetNeedError(ValueError):
    """Raised by a model whose schema lacks what it needs, such as a funnel or a position."""
