"""Valid values of settings, declared as the annotations of a dataclass: ``rows: Annotated[int, Range(1)] = 1000``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol, get_args, get_origin, get_type_hints

from dlen.checks import is_finite, is_whole
from dlen.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Limit(Protocol):
    """A condition on a value that has the annotated type."""

    def fault(self, value: Any, kind: str) -> str | None:
        """What is wrong with a value of a type described by ``kind``; None if it is valid."""


@dataclass(frozen=True, slots=True)
class Range:
    """An interval.

    Attributes:
        low: lower end.
        high: upper end.
        above: exclude the lower end.
        below: exclude the upper end.
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def fault(self, value: Any, kind: str) -> str | None:
        """See :class:`Limit`."""
        high_enough = value > self.low if self.above else value >= self.low
        if high_enough and (value < self.high if self.below else value <= self.high):
            return None
        limits = f"{'above' if self.above else 'from'} {self.low:g}"
        if self.high < math.inf:
            limits += f" {'and below' if self.below else 'to'} {self.high:g}"
        return f"{value!r} is not {kind} {limits}"


INSIDE_0_1 = Range(0, 1, above=True, below=True)


class OneOf:
    """One of some names, or a list of them."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def fault(self, value: Any, kind: str) -> str | None:
        """See :class:`Limit`."""
        for name in value if isinstance(value, list) else [value]:
            if name not in self.choices:
                hint = did_you_mean(name, self.choices)
                return f"{name!r} is not one of {', '.join(self.choices)}{hint}"
        return None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message that suggests the most similar known name; empty if none is similar."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_finite_mapping(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_finite, value.values()))


_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("text", lambda value: isinstance(value, str)),
    int: ("a whole number", is_whole),
    float: ("a finite number", is_finite),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    list[str]: ("a list of texts", _is_list_of_texts),
    float | str: (
        "a number from 0 or the name of a column",
        lambda value: (is_finite(value) and value >= 0) or (isinstance(value, str) and value != ""),
    ),
    str | None: ("text", lambda value: value is None or isinstance(value, str)),
    dict[str, float]: ("a mapping of names to finite numbers", _is_finite_mapping),
    float | dict[str, float]: (
        "a finite number or a mapping of names to finite numbers",
        lambda value: is_finite(value) or _is_finite_mapping(value),
    ),
}


def fault(hint: Any, value: object) -> str | None:
    """What is wrong with a value of an annotated setting; None if it is valid. Types other than the above pass."""
    plain, *limits = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    kind, fits = _KINDS.get(plain, ("", lambda value: True))
    if not fits(value):
        return f"{value!r} is not {kind}"
    return next((wrong for limit in limits if (wrong := limit.fault(value, kind))), None)


def check_source(source: DataclassInstance) -> None:
    """Raise UserError for the first setting of a data source that violates its annotation."""
    for name, hint in get_type_hints(type(source), include_extras=True).items():
        wrong = fault(hint, getattr(source, name))
        if wrong:
            raise UserError(f"config data.{name}: {wrong}")
