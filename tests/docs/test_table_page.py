"""docs/table.md has every key of a table's YAML with its type and default, and its examples make a data set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_type_hints

import polars as pl
import pytest
import yaml

from dlen.data.prepare import prepare
from dlen.data.sources.expression import Expression
from dlen.data.sources.table import Table
from dlen.data.sources.table_spec import (
    FieldSpec,
    HistorySpec,
    JoinSpec,
    RateSpec,
    RatesSpec,
    SplitSpec,
    TableSpec,
    TaskSpec,
)
from dlen.data.store import Store
from dlen.valid import OneOf
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "table.md").read_text()
# Heading -> class of the settings in the tables below it, up to the next of these headings.
SECTIONS: dict[str, Any] = {
    "Top level": TableSpec,
    "`fields`": FieldSpec,
    "`rate` and `count`": RateSpec,
    "`history`": HistorySpec,
    "`tasks`": TaskSpec,
    "`split`": SplitSpec,
    "`rates`": RatesSpec,
    "`joins`": JoinSpec,
}
TYPES = {
    "str": "text",
    "str | None": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "list[str]": "list of texts",
}


def rows() -> dict[str, dict[str, list[str]]]:
    """Type, default and description of every key, by section."""
    found: dict[str, dict[str, list[str]]] = {name: {} for name in SECTIONS}
    section = ""
    for line in PAGE.splitlines():
        if heading := re.match(r"#+ (.+)", line):
            section = heading[1] if heading[1] in SECTIONS else section
        if row := re.match(r"\| `(\w+)` \| (.+?) \| (.+?) \| (.+) \|$", line):
            assert row[1] not in found[section], f"{row[1]} occurs twice"
            found[section][row[1]] = [row[2], row[3].replace("\\|", "|"), row[4]]
    return found


def default_of(key: Field[Any]) -> Any:
    return key.default if key.default_factory is MISSING else key.default_factory()


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_on_the_page_and_every_key_of_the_page_is_accepted(section: str) -> None:
    assert set(rows()[section]) == {key.name for key in fields(SECTIONS[section]) if key.init}


@pytest.mark.parametrize("section", SECTIONS)
def test_types_and_defaults_are_those_of_the_code(section: str) -> None:
    for key in [key for key in fields(SECTIONS[section]) if key.init]:
        kind, default, _ = rows()[section][key.name]
        assert kind == TYPES.get(re.sub(r"^Annotated\[([\w\[\]]+), .*", r"\1", str(key.type)), kind), key.name
        value = default_of(key)
        if said := re.fullmatch(r"`(.+)`", default):
            assert yaml.safe_load(said[1]) == value, key.name
        else:  # in words
            assert value in ("", None, [], {}) or isinstance(value, SplitSpec | RatesSpec), key.name


def choices(key: str) -> tuple[str, ...]:
    """Valid values of a setting of a field."""
    (one_of,) = get_type_hints(FieldSpec, include_extras=True)[key].__metadata__
    assert isinstance(one_of, OneOf)
    return one_of.choices


def test_every_choice_is_on_the_page() -> None:
    for section, settings in SECTIONS.items():
        for key, hint in get_type_hints(settings, include_extras=True).items():
            for one_of in [limit for limit in getattr(hint, "__metadata__", ()) if isinstance(limit, OneOf)]:
                for choice in one_of.choices:
                    assert f"`{choice}`" in rows()[section][key][2], (key, choice)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, and tables to join, with the columns of the page's examples."""
    folder = tmp_path_factory.mktemp("logs")
    n = pl.Series("n", range(600))
    mixed = (n * 7919) % 101
    log = pl.DataFrame(
        {
            "user_id": n % 40,
            "video_id": mixed % 30,
            "category": [("news", "sport", "ad")[i % 3] for i in n],
            "history": [",".join(str(j) for j in range(i % 6)) for i in n],
            "watched": ["|".join(str(j) for j in range(i % 4)) for i in n],
            "watched_how": ["|".join("x" for _ in range(i % 4)) for i in n],
            "last_liked": mixed % 7,
            "author_id": mixed % 9,
            "tags": [f"red:0.5|blue:{i % 3}" for i in n],
            "age": n % 50,
            "duration": mixed,
            "price": mixed * 2.5,
            "time_ms": 1_700_000_000_000 + n * 600_000,
            "day": [f"2023-11-{14 + i // 150}" for i in n],
            "joined": [f"{1 + i % 28:02}.03.2021" for i in n],
            "is_click": (mixed % 2 == 0).cast(pl.Int8),
            "is_like": (mixed % 3 == 0).cast(pl.Int8),
            "is_buy": ((mixed % 2 == 0) & (mixed % 5 == 0)).cast(pl.Int8),
            "stars": mixed % 6,
            "asked": (n % 2 == 0).cast(pl.Int8),
            "play_ms": mixed * 200,
            "seconds": mixed * 0.2,
            "worth": n % 3 * 0.5,
            "coordinates": [f"{i % 7} {i % 5}.5" for i in n],
            "part": [("a", "a", "b", "c", "d")[i % 5] for i in n],
        }
    )
    log.write_csv(folder / "log.csv")
    (folder / "days").mkdir()
    for day in range(3):
        log[200 * day : 200 * day + 200].write_csv(folder / "days" / f"{day + 1}.csv")
    for day, rows in enumerate((log[:300], log[300:500], log[500:])):
        place = folder / "logs" / f"day=2026-11-{22 + day}" / "country=nl"
        place.mkdir(parents=True)
        rows.select("user_id", "video_id", "is_click").write_parquet(place / "part-0.parquet")
    pl.DataFrame({"user_id": range(40), "city": [f"c{i % 5}" for i in range(40)]}).write_csv(folder / "users.csv")
    videos = {"author": [f"a{i % 7}" for i in range(30)], "caption": [f"[{i}, {i % 3}, 0.5]" for i in range(30)]}
    pl.DataFrame({"id": range(30), **videos}).write_csv(folder / "videos.csv")
    return folder


EXAMPLES: list[Mapping[str, Any]] = [
    yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
]


def prepared(logs: Path, data: Path, example: Mapping[str, Any], number: int) -> Store:
    rest = {"files": "log.csv", "fields": {"user_id": {}}, "tasks": {"click": "is_click"}, "ignore": "rest"}
    (logs / f"spec{number}.yaml").write_text(yaml.safe_dump({**rest, **example}, sort_keys=False))
    return prepare(Table(str(logs / f"spec{number}.yaml"), f"example{number}"), data)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_make_a_data_set(logs: Path, tmp_path: Path, number: int) -> None:
    store = prepared(logs, tmp_path, EXAMPLES[number], number)
    assert all(len(store.split(name)) for name in ("train", "validation", "test"))


def test_every_kind_of_everything_has_an_example() -> None:
    def values(section: str, key: str) -> set[Any]:
        return {item.get(key) for e in EXAMPLES for item in e.get(section, {}).values() if isinstance(item, dict)}

    assert set(choices("kind")) <= values("fields", "kind")
    assert set(choices("transform")) <= values("fields", "transform") | {"standardise"}
    assert {e["split"]["by"] for e in EXAMPLES if "split" in e} == {"fraction", "hash", "time", "column"}
    for section, kind in {"tasks": TaskSpec, "joins": JoinSpec}.items():
        shown = {
            key for e in EXAMPLES for item in e.get(section, {}).values() if isinstance(item, dict) for key in item
        }
        assert shown == {key.name for key in fields(kind)}
    shown = {key for e in EXAMPLES for key in e.get("rates", {})}
    assert shown == {key.name for key in fields(RatesSpec)}


def test_names_of_fields_are_those_that_the_page_says(logs: Path, tmp_path: Path) -> None:
    rates, times = (
        prepared(logs, tmp_path, next(e for e in EXAMPLES if name in e.get("fields", {})), number).schema
        for number, name in enumerate(("skipped", "joined"))
    )
    made = {field.name: field.side for field in rates.fields}
    expected = {"video_click": "item", "video_like": "item", "skipped": "cross", "seen": "user"}
    assert made == {"user_id": "user", "video_id": "item", **expected}
    assert {f.name for f in times.fields} == {"shown_hour", "shown_weekday", "shown_month", "joined_month"}


def test_expressions_of_the_page_are_parsed() -> None:
    text = PAGE[PAGE.index("### Labels") : PAGE.index("## `split`")]
    for operator in ("==", "!=", "<", "<=", ">", ">="):
        assert f"`{operator}`" in text
        assert Expression(f"a {operator} 1").columns == ["a"]
    assert Expression('not (a in [1, 2] or col("odd-name") not in ["x"]) and b == 1').columns == ["a", "odd-name", "b"]
