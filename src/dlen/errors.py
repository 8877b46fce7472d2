"""Exceptions: errors for the user, and unmet requirements of a model."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Invalid input or settings. The message is one line that names the file, row, field or config key.

    The commands print it without a traceback and exit with code 2.

    Args:
        message: the message. Unprintable characters, such as line breaks in quoted cells or terminal control
            characters, are escaped.
        details: further lines, such as a list of differences.
    """

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__("\n".join(map(_printable, [str(message), *details])))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: object) -> str:
    """A text, such as an error of another library, with single spaces in place of line breaks and indentation."""
    return " ".join(str(text).split())


def last_line(output: str) -> str:
    """What a process said last, such as the message with which a command failed."""
    lines = [line for line in output.splitlines() if line.strip()] or ["no output"]
    return lines[-1].removeprefix("error: ")


class UnfitError(UserError):
    """The data do not meet the requirements of the model."""


class UnmetNeedError(ValueError):
    """Raised by a model if the schema lacks something it needs, such as a funnel or a position."""
