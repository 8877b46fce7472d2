"""Checks of numeric settings; errors name the setting and its valid range."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TypeGuard, TypeVar

E = TypeVar("E", bound=StrEnum)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is an integer; booleans are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number that a float can hold, neither infinite nor nan."""
    return is_number(value) and abs(value) <= sys.float_info.max


def whole(name: str, value: object, least: int, most: int = 2**31 - 1) -> int:
    """Return ``value`` if it is an integer in the range; otherwise raise ValueError with the setting's name."""
    if not is_whole(value) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r}")
    return value


def positive(name: str, value: object, most: float = 1e9) -> float:
    """Return ``value`` as a float if it is a number above 0; otherwise raise ValueError with the setting's name."""
    if not is_number(value) or not 0 < value <= most:
        raise ValueError(f"{name} must be a number above 0 and at most {most:g}, got {value!r}")
    return float(value)


def from_zero(**values: object) -> None:
    """Raise ValueError for the first setting that is not a finite number from 0."""
    for name, value in values.items():
        if not is_number(value) or not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be a number from 0, got {value!r}")


def choice(name: str, value: object, kind: type[E]) -> E:
    """Return the member of an enumeration; otherwise raise ValueError with the setting's name and its choices."""
    if value not in list(kind):
        raise ValueError(f"{name} must be one of {', '.join(kind)}, got {value!r}")
    return kind(str(value))
