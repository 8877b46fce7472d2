"""The declared settings of every command: what they accept, and that they are the keys of conf/*.yaml."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dlen.config_keys import groups_of, includes
from dlen.errors import UserError
from dlen.settings import Count, Group, Seeds, Settings, Share, Switch, Workers
from dlen.sweeping.settings import StudySettings
from dlen.valid import Matching, OneOf, Range, check_group, described, fault
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
from config_reference import DECLARED

CONF = ROOT / "conf"
_NO_KEYS = ("defaults", "hydra")
_CHOSEN = ("debug",)  # a group without keys of its own


def _names(kind: type[Any]) -> dict[str, Any]:
    return {field.rstrip("_"): hint for field, hint in get_type_hints(kind, include_extras=True).items()}


@pytest.mark.parametrize("command", DECLARED)
def test_every_key_of_a_command_is_declared_and_no_other(command: str) -> None:
    declared = _names(DECLARED[command])
    keys: dict[str, Any] = {}
    for name in [*includes(CONF, command), command]:
        keys |= yaml.safe_load((CONF / f"{name}.yaml").read_text())
    groups = {group for group in groups_of(CONF, command) if "/" not in group and group not in _CHOSEN}
    assert declared.keys() == {key for key in keys if key not in _NO_KEYS} | groups
    for key, hint in declared.items():
        if is_dataclass(hint) and isinstance(hint, type) and isinstance(keys.get(key), dict):
            assert _names(hint).keys() == keys[key].keys(), key


def test_every_key_of_a_study_is_declared() -> None:
    assert _names(StudySettings).keys() == yaml.safe_load((CONF / "sweep/base.yaml").read_text()).keys()


# What annotations accept


@dataclass
class Inner:
    from_: Count


@dataclass
class Outer:
    inner: Inner
    name: str | None
    rate: Annotated[float, Range(0, 1)] = 0.5


CASES: list[tuple[Any, list[object], list[object], str]] = [  # annotation, valid values, others, description
    (Count, [1, 7], [0, 1.0, True, "1", None], "a whole number from 1"),
    (Workers, [1, "auto"], [0, "Auto", True, None], "auto or a whole number from 1"),
    (Switch, [True, False, "auto"], [0, 1, "yes", None], "auto, true or false"),
    (Share, [1, 0.5, 1.0], [0, 0.0, 1.5, True], "a whole number from 1 or a finite number above 0 to 1"),
    (Seeds, [3, [0, 2]], [0, [-1], "0", [True]], "a whole number from 1 or a list of whole numbers from 0"),
    (Literal["best", "last"], ["best"], ["first", None, 1], "best or last"),
    (str | None, ["", None], [1, ["a"]], "text or null"),
    (Path, ["a/b", "3"], [3, True, ["a"], None], "a path"),
    (Path | list[Path], ["a", ["a", "b"]], [3, [3]], "a path or a list of paths"),
    (Group, [{}, {"a": [1]}], [1, "a", [1], None], "a group of settings"),
    (Inner, [{"from": 1}], [1, None], "a group of settings"),
    (dict[str, list[str]], [{"a": ["b"]}, {}], [{"a": "b"}, {1: ["b"]}, []], "a mapping of names to lists of texts"),
    (Annotated[str, OneOf("a", "b")], ["a"], ["c"], "one of a, b"),
    (Annotated[str, Matching(r"\w+", "a name")] | None, ["x", None], ["", "a b", 3], "a name or null"),
    (Annotated[list[str], Matching("[ab]+", "names")], [[], ["a", "ba"]], ["a", ["c"], [1]], "names"),
    (Any, [1, None, {}], [], ""),
]


@pytest.mark.parametrize(("hint", "valid", "others", "text"), CASES)
def test_values_of_an_annotation(hint: Any, valid: list[object], others: list[object], text: str) -> None:
    assert [value for value in valid if fault(hint, value) is not None] == []
    assert [value for value in others if fault(hint, value) is None] == []
    if hint is not Any:
        assert described(hint) == text
        assert all(repr(value) in str(fault(hint, value)) for value in others if not isinstance(value, list | dict))


@given(st.integers(-5, 5) | st.floats(-2, 2) | st.booleans() | st.none() | st.sampled_from(["auto", ""]))
def test_a_union_accepts_what_one_of_its_members_accepts(value: object) -> None:
    for union, members in (
        (Switch, (bool, Literal["auto"])),
        (Share, (Count, Annotated[float, Range(0, 1, above=True)])),
    ):
        assert (fault(union, value) is None) == any(fault(member, value) is None for member in members)


def _wrong(content: dict[str, Any], *, partial: bool = False) -> str:
    with pytest.raises(UserError) as error:
        check_group(OmegaConf.create(content), Outer, "top", "file: ", partial=partial)
    return str(error.value)


def test_a_group_names_the_key_and_the_place() -> None:
    check_group(OmegaConf.create({"inner": {"from": 1, "more": 2}, "name": None, "others": 3}), Outer)
    assert _wrong({"inner": {"from": 0}, "name": "a"}) == "file: config top.inner.from: 0 is not a whole number from 1"
    assert _wrong({"inner": 3, "name": "a"}) == "file: config top.inner: 3 is not a group of settings"
    assert _wrong({"inner": {"from": 1}, "name": "a", "rate": 2}).startswith("file: config top.rate: 2 is not")


def test_an_absent_setting() -> None:
    assert _wrong({"inner": {}, "name": "a"}) == "file: config top.inner.from: is missing"
    check_group(OmegaConf.create({"inner": {}}), Outer, partial=True)
    assert "from" in _wrong({"inner": {"from": 0}}, partial=True)


def test_a_reference_is_resolved() -> None:
    check_group(OmegaConf.create({"n": 2, "inner": {"from": "${n}"}, "name": "${inner.from}_"}), Outer)
    assert "inner.from: 0" in _wrong({"n": 0, "inner": {"from": "${n}"}, "name": "a"})


PATHS = [
    (command, field.name)
    for command, kind in DECLARED.items()
    for field in fields(kind)
    if "Path" in str(get_type_hints(kind)[field.name])
]


@pytest.mark.parametrize(("command", "key"), PATHS)
@pytest.mark.parametrize(("value", "hint"), [(3, "; write ./3"), (True, "")])
def test_a_path_that_hydra_reads_as_a_number(command: str, key: str, value: object, hint: str) -> None:
    with pytest.raises(UserError, match=f"^config {key}: {value} is not a path") as error:
        check_group(OmegaConf.create({key: value}), DECLARED[command], partial=True)
    assert str(error.value).endswith(hint)


def test_commands_have_the_settings_of_all() -> None:
    assert all(issubclass(kind, Settings) for kind in DECLARED.values())
