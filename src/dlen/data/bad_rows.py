"""Bad rows: counted, the first ones shown, and refused once there are more than a setting tolerates."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dlen.errors import UserError

_SHOWN = 5


class BadRowError(UserError):
    """Rows that cannot be read.

    Args:
        path: of their file.
        lines: their numbers in it.
        problem: of the first.
        where: what a line of this file is called.
    """

    def __init__(self, path: Path, lines: Sequence[int], problem: str, where: str = "row") -> None:
        super().__init__(f"{path}, {where} {lines[0]}: {problem}")
        self.path, self.lines, self.problem, self.where = path, lines, problem, where

    def only(self, line: int) -> BadRowError:
        """The same of one of its lines; a problem that quotes the first line's value is not told of another."""
        problem = self.problem if line == self.lines[0] else f"the same as {self.where} {self.lines[0]}"
        return BadRowError(self.path, [line], problem, self.where)


class BadRows:
    """Those of all files so far; the same row counts once, however often it is read.

    Args:
        allowed: how many are left out before they are too many.

    Raises:
        UserError: ``allowed`` is no whole number from 0.
    """

    def __init__(self, allowed: int) -> None:
        if not isinstance(allowed, int) or isinstance(allowed, bool) or allowed < 0:
            raise UserError(f"config data.bad_rows: {allowed!r} is not a whole number from 0")
        self.allowed = allowed
        self._seen: set[tuple[Path, int]] = set()

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, error: BadRowError) -> None:
        """Leave these rows out, or raise the error where they are too many."""
        for line in error.lines:
            if (error.path, line) in self._seen:
                continue
            if len(self._seen) >= self.allowed:
                raise self.too_many(error.only(line))
            self._seen.add((error.path, line))
            if len(self._seen) <= _SHOWN:
                print(f"left out: {error.only(line)}", file=sys.stderr)
            elif len(self._seen) == _SHOWN + 1:
                print(f"left out: further {error.where}s, which are counted and not shown", file=sys.stderr)

    def too_many(self, error: BadRowError) -> UserError:
        """What is said of the row after the last one that is tolerated."""
        return UserError(f"{error}; data.bad_rows={self.allowed} tolerates no more") if self.allowed else error
