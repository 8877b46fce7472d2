"""Settings of the wrong type: each number and text of a source is checked, whichever it is."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from dlen.data.sources.aliccp import AliCCP
from dlen.data.sources.aliccp_demo import AliCCPDemo
from dlen.data.sources.feed import Feed
from dlen.errors import UserError

SOURCES: list[tuple[Any, dict[str, Any]]] = [(Feed, {}), (AliCCP, {"raw_dir": "raw"}), (AliCCPDemo, {"raw_dir": "raw"})]
WRONG: dict[type, list[Any]] = {
    int: [None, "x", 1.5, True, [1], float("nan")],
    float: [None, "x", True, [1.0], float("nan"), float("inf"), 10**400],
    str: [None, 1, ["x"], {"a": 1}],
}
CASES = [
    (source, given, field.name, value)
    for source, given in SOURCES
    for field in fields(source)
    for value in WRONG.get(get_type_hints(source)[field.name], [])
]


@pytest.mark.parametrize(("source", "given", "name", "value"), CASES)
def test_a_value_of_another_type_is_named(source: Any, given: dict[str, Any], name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^config data\.{name}: "):
        source(**{**given, name: value})


@pytest.mark.parametrize(("source", "given"), SOURCES)
def test_seeds_begin_at_0(source: Any, given: dict[str, Any]) -> None:
    seeds = [field.name for field in fields(source) if field.name.endswith("seed")]
    assert seeds
    for name in seeds:
        with pytest.raises(UserError, match=rf"config data\.{name}: -1 is not a whole number from 0"):
            source(**{**given, name: -1})
