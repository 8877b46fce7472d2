"""Valid values of settings, declared as the annotations of a dataclass: ``rows: Annotated[int, Range(1)] = 1000``.

An annotation is a plain type, a ``Literal`` of names, a list or mapping of such values, a dataclass for a group of
settings, or a union of these; ``Annotated`` adds limits.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, is_dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from dlen.checks import is_finite, is_whole
from dlen.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


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

    def described(self, kind: str) -> str:
        """The valid values, of a type described by ``kind``."""
        limits = f"{kind} {'above' if self.above else 'from'} {self.low:g}"
        return limits if self.high == math.inf else f"{limits} {'and below' if self.below else 'to'} {self.high:g}"

    def fault(self, value: Any, kind: str) -> str | None:
        """What is wrong with a value that has the annotated type; None if it is valid."""
        high_enough = value > self.low if self.above else value >= self.low
        if high_enough and (value < self.high if self.below else value <= self.high):
            return None
        return f"{value!r} is not {self.described(kind)}"


INSIDE_0_1 = Range(0, 1, above=True, below=True)


class OneOf:
    """One of some names, or a list of them."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def described(self, kind: str) -> str:
        """The valid values, of a type described by ``kind``."""
        return f"one of {', '.join(self.choices)}"

    def fault(self, value: Any, kind: str) -> str | None:
        """What is wrong with a value that has the annotated type; None if it is valid."""
        for name in value if isinstance(value, list) else [value]:
            if name not in self.choices:
                hint = did_you_mean(name, self.choices)
                return f"{name!r} is not {self.described(kind)}{hint}"
        return None


@dataclass(frozen=True, slots=True)
class Matching:
    """A text that matches a pattern as a whole, or a list of such texts.

    Attributes:
        pattern: regular expression.
        what: what the value is, for messages: ``the name of a column``.
    """

    pattern: str
    what: str

    def described(self, kind: str) -> str:
        """The valid values, of a type described by ``kind``."""
        return self.what

    def fault(self, value: Any, kind: str) -> str | None:
        """What is wrong with a value that has the annotated type; None if it is valid."""
        texts = value if isinstance(value, list) else [value]
        return None if all(re.fullmatch(self.pattern, text) for text in texts) else f"{value!r} is not {self.what}"


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message that suggests the most similar known name; empty if none is similar."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


class _Kind(NamedTuple):
    """A plain type in words, one value and several, and whether a value has it."""

    one: str
    many: str
    fits: Callable[[Any], bool]


_GROUP = dict[str, Any]
_KINDS: dict[Any, _Kind] = {
    str: _Kind("text", "texts", lambda value: isinstance(value, str)),
    int: _Kind("a whole number", "whole numbers", is_whole),
    float: _Kind("a finite number", "finite numbers", is_finite),
    bool: _Kind("true or false", "true and false", lambda value: isinstance(value, bool)),
    Path: _Kind("a path", "paths", lambda value: isinstance(value, str)),
    type(None): _Kind("null", "nulls", lambda value: value is None),
    _GROUP: _Kind("a group of settings", "groups of settings", lambda value: isinstance(value, Mapping)),
}


def _kind(plain: Any) -> _Kind | None:
    """The plain type of an annotation, a group for a dataclass; None for a list, a mapping, a union or names."""
    return _KINDS.get(_GROUP if is_dataclass(plain) else plain)


def described(hint: Any, *, many: bool = False) -> str:
    """The valid values of an annotation in words: ``a whole number from 1``; ``many`` for several of them."""
    plain, *limits = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    members = _members(plain)
    if kind := _kind(plain):
        text = kind.many if many else kind.one
    elif get_origin(plain) is Literal:
        text = _listed(_alternatives(plain, many))
    elif len(members) > 1:
        text = _listed([text for member in members for text in _alternatives(member, many)])
    elif get_origin(plain) is list:
        text = f"{'lists' if many else 'a list'} of {described(get_args(plain)[0], many=True)}"
    elif get_origin(plain) is dict:
        start = "mappings" if many else "a mapping"
        text = f"{start} of names to {described(get_args(plain)[1], many=True)}"
    else:
        raise TypeError(f"{hint} has no description")
    for limit in limits:
        text = limit.described(text)
    return text


def _alternatives(hint: Any, many: bool) -> list[str]:
    if hint is bool:
        return ["true", "false"]
    return [str(name) for name in get_args(hint)] if get_origin(hint) is Literal else [described(hint, many=many)]


def _listed(texts: Sequence[str]) -> str:
    """``a, b or c``; null comes last."""
    texts = [*(text for text in texts if text != "null"), *(text for text in texts if text == "null")]
    return " or ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union; any other annotation is its only one."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _has_type(plain: Any, value: Any) -> bool:
    """Whether a value has the type of an annotation without limits, and what is in it has the annotated values."""
    if kind := _kind(plain):
        return kind.fits(value)
    of = get_args(plain)
    if get_origin(plain) is Literal:
        return any(value == name and type(value) is type(name) for name in of)
    if get_origin(plain) is list:
        return isinstance(value, list) and all(fault(of[0], item) is None for item in value)
    if get_origin(plain) is dict:
        named = isinstance(value, dict) and all(isinstance(name, str) for name in value)
        return named and all(fault(of[1], item) is None for item in value.values())
    raise TypeError(f"{plain} cannot be checked")


def fault(hint: Any, value: object) -> str | None:
    """What is wrong with a value of an annotated setting; None if it is valid."""
    plain, *limits = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    members = _members(plain)
    if plain is Any or (len(members) > 1 and any(fault(member, value) is None for member in members)):
        wrong = None
    elif len(members) > 1 or not _has_type(plain, value):
        named = next((limit.what for limit in limits if isinstance(limit, Matching)), None)
        way_out = f"; write ./{value}" if Path in members and is_whole(value) else ""
        wrong = f"{value!r} is not {named or described(plain)}{way_out}"
    else:
        kind = described(plain)
        wrong = next((wrong for limit in limits if (wrong := limit.fault(value, kind))), None)
    return wrong


def check_source(source: DataclassInstance) -> None:
    """Raise UserError for the first setting of a data source that violates its annotation."""
    for name, hint in get_type_hints(type(source), include_extras=True).items():
        wrong = fault(hint, getattr(source, name))
        if wrong:
            raise UserError(f"config data.{name}: {wrong}")


def check_group(
    group: DictConfig, kind: type[DataclassInstance], key: str = "", start: str = "", *, partial: bool = False
) -> None:
    """Raise UserError for the first setting of a group that violates the annotation of a dataclass's field.

    A field such as ``from_`` stands for a setting whose name is a keyword of Python.

    Args:
        kind: the dataclass, whose fields are the settings that the group must have; it may have others.
        key: dotted key of the group; empty for a whole config.
        start: start of the message, such as the file that the config was read from.
        partial: any setting may be absent, as some are in configs of earlier versions, and not only those with a
            default in the dataclass.
    """
    hints, fields = get_type_hints(kind, include_extras=True), kind.__dataclass_fields__
    for field, hint in hints.items():
        name = field.rstrip("_")
        dotted = f"{key}.{name}" if key else name
        if name not in group and not OmegaConf.is_missing(group, name):
            if partial or fields[field].default is not MISSING:
                continue
            raise UserError(f"{start}config {dotted}: is missing")
        value = group[name]
        groups = [member for member in _members(hint) if is_dataclass(member)]
        if groups and OmegaConf.is_dict(value):
            assert isinstance(groups[0], type)
            check_group(value, groups[0], dotted, start, partial=partial)
        elif wrong := fault(hint, _plain(hint, value)):
            raise UserError(f"{start}config {dotted}: {wrong}")


def _plain(hint: Any, value: Any) -> Any:
    """A value as Python's; what an instantiated group refers to is resolved when it is instantiated."""
    if not OmegaConf.is_config(value):
        return value
    return OmegaConf.to_container(value, resolve=_GROUP not in _members(hint))
