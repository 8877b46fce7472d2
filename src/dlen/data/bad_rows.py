"""Counts unreadable rows, reports the first few, and fails once there are more than ``data.bad_rows`` allows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dlen.checks import is_whole
from dlen.errors import UserError

_SHOWN = 5


class BadRowError(UserError):
    """Raised for rows that cannot be read.

    Args:
        path: path of the file.
        lines: row numbers within the file.
        problem: what is wrong with the first of these rows.
        where: the word for a row in messages, such as ``row`` or ``line``.
    """

    def __init__(self, path: Path, lines: Sequence[int], problem: str, where: str = "row") -> None:
        super().__init__(f"{path}, {where} {lines[0]}: {problem}")
        self.path, self.lines, self.problem, self.where = path, list(lines), problem, where

    def only(self, line: int) -> BadRowError:
        """The same error for one of its lines. Only the first line quotes its value; the others refer to the first."""
        problem = self.problem if line == self.lines[0] else f"same problem as {self.where} {self.lines[0]}"
        return BadRowError(self.path, [line], problem, self.where)


class BadRows:
    """Counter of unreadable rows over all files. A row counts once, however often it is read.

    Args:
        allowed: maximum number of rows to skip before raising an error.

    Attributes:
        kept: in a worker, arguments of the errors, which the parent adds and reports; None to report them here.

    Raises:
        UserError: ``allowed`` is not a non-negative integer.
    """

    def __init__(self, allowed: int) -> None:
        if not is_whole(allowed) or allowed < 0:
            raise UserError(f"config data.bad_rows: {allowed!r} is not a whole number from 0")
        self.allowed = allowed
        self.kept: list[tuple[Path, list[int], str, str]] | None = None
        self._seen: set[tuple[Path, int]] = set()

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, error: BadRowError) -> None:
        """Skip these rows, or raise an error if that exceeds the limit."""
        new = [line for line in error.lines if (error.path, line) not in self._seen]
        if new and self.kept is not None:
            self.kept.append((error.path, error.lines, error.problem, error.where))
        for line in new:
            if len(self._seen) >= self.allowed:
                raise self.too_many(error.only(line))
            self._seen.add((error.path, line))
            if self.kept is None:
                self._report(error.only(line))

    def _report(self, error: BadRowError) -> None:
        if len(self._seen) <= _SHOWN:
            print(f"left out: {error}", file=sys.stderr)
        elif len(self._seen) == _SHOWN + 1:
            print(f"left out: further {error.where}s are counted but not shown", file=sys.stderr)

    def too_many(self, error: BadRowError) -> UserError:
        """The error for the first row beyond the limit."""
        return UserError(f"{error}; the limit data.bad_rows={self.allowed} is exceeded") if self.allowed else error
