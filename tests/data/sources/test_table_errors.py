"""Invalid tables and specs: one line that names the file and the row or key, and nothing left behind."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dlen.data.prepare import prepare
from dlen.data.sources import table_file
from dlen.data.sources.table import Table
from tests.data.helpers import left_in, make_table, refusal

SPEC: dict[str, Any] = {
    "fields": {"n": {"kind": "numeric"}, "user": {"kind": "id"}, "when": {"kind": "time"}},
    "tasks": {"click": "click", "buy": {"label": "buy == 1", "observed_where": "click"}},
    "split": {"by": "fraction", "validation": 0.2, "test": 0.2},
    "user": "user",
}
ROWS = 120


def lines() -> list[str]:
    """A header and rows; row k of the file is element k - 1."""
    cells = [f"{n},u{n % 9},{1_600_000_000 + 5000 * n},{n % 2},{n % 4 // 2}" for n in range(ROWS)]
    return ["n,user,when,click,buy", *cells]


def refused(folder: Path, spec: Any, text: str | bytes, name: str = "t.csv") -> str:
    message = refusal(lambda: prepare(make_table(folder, spec, name, text), folder / "data"))
    assert left_in(folder / "data") == []
    return message


def wrong_cell(folder: Path, row: int, column: str, cell: str) -> str:
    content = lines()
    cells = content[row - 1].split(",")
    cells[content[0].split(",").index(column)] = cell
    content[row - 1] = ",".join(cells)
    return refused(folder, SPEC, "\n".join(content) + "\n")


def test_the_good_table_is_read(tmp_path: Path) -> None:
    store = prepare(make_table(tmp_path, SPEC, text="\n".join(lines())), tmp_path / "data")
    assert sum(len(store.split(s)) for s in ("train", "validation", "test")) == ROWS


@pytest.mark.parametrize("chunk", [10, 1 << 17])
@pytest.mark.parametrize("row", [2, 57, ROWS + 1])
@pytest.mark.parametrize(
    ("column", "cell", "named"),
    [
        ("click", "2", "click"),
        ("click", "0.5", "click"),
        ("click", "yes", "click"),
        ("buy", "maybe", "buy"),
        ("n", "12a", "12a"),
        ("n", "1,5", ""),
        ("n", "inf", "n"),
        ("n", "-inf", "n"),
        ("n", "nan", "n"),
        ("n", "NA", "NA"),
        ("when", "yesterday", "when"),
        ("when", "1e30", "when"),
    ],
)
def test_a_wrong_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, cell: str, named: str, row: int, chunk: int
) -> None:
    monkeypatch.setattr(table_file, "CHUNK", chunk)
    message = wrong_cell(tmp_path, row, column, cell)
    assert f"{tmp_path / 't.csv'}, row {row}:" in message
    assert named in message


@pytest.mark.parametrize("row", [2, 57, ROWS + 1])
@pytest.mark.parametrize(
    "change", [lambda line: line + ",9", lambda line: line.rsplit(",", 1)[0]], ids=["more", "less"]
)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_row_of_the_wrong_width(tmp_path: Path, row: int, change: Callable[[str], str], compressed: bool) -> None:
    content = lines()
    content[row - 1] = change(content[row - 1])
    text = ("\n".join(content) + "\n").encode()
    name = "t.csv.gz" if compressed else "t.csv"
    message = refused(tmp_path, SPEC, gzip.compress(text) if compressed else text, name)
    assert f"{tmp_path / name}, row {row}:" in message


@pytest.mark.parametrize("before", [["# a comment"], ["", ""], ["# one", "", "# two"]])
def test_rows_are_counted_as_lines_of_the_file(tmp_path: Path, before: list[str]) -> None:
    """The row number of a wrong label is its line number in an editor, also after comments and blank lines."""
    content = lines()
    content[10:10] = before
    place = 60
    content[place - 1] = content[place - 1].rsplit(",", 2)[0] + ",7,0"
    message = refused(tmp_path, SPEC | {"comment": "#"}, "\n".join(content) + "\n")
    assert f"row {place}:" in message


@pytest.mark.parametrize("blank", [1, 3])
def test_blank_lines_before_the_header_are_counted(tmp_path: Path, blank: int) -> None:
    content = [*[""] * blank, *lines()]
    content[59] = content[59].rsplit(",", 2)[0] + ",7,0"
    assert "row 60:" in refused(tmp_path, SPEC, "\n".join(content) + "\n")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("last", "cells"), [("1,u1", 2), ("1,u1,1600000000,0,0,", 6), ('1,"u1",1600000000,0,0,,', 7)])
def test_the_last_wrong_row_without_a_newline(tmp_path: Path, last: str, cells: int, compressed: bool) -> None:
    """Polars reads the second one silently (found by ``make fuzz``)."""
    text, name = "\n".join([*lines(), last]).encode(), "t.csv.gz" if compressed else "t.csv"
    message = refused(tmp_path, SPEC, gzip.compress(text) if compressed else text, name)
    assert f"row {ROWS + 2}: {cells} columns instead of 5" in message


@pytest.mark.parametrize("text", ["\n", "\n\n\n", "n,user,when,click,buy\n", "n,user,when,click,buy", ",,,,\n"])
def test_files_without_rows(tmp_path: Path, text: str) -> None:
    assert str(tmp_path / "t.csv") in refused(tmp_path, SPEC, text)


def test_an_empty_and_a_missing_file(tmp_path: Path) -> None:
    source = make_table(tmp_path, SPEC)
    assert str(tmp_path / "t.csv") in refusal(lambda: prepare(source, tmp_path / "data"))
    (tmp_path / "t.csv").write_text("")
    assert str(tmp_path / "t.csv") in refusal(lambda: prepare(source, tmp_path / "data"))


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.csv.gz"])
@pytest.mark.parametrize("junk", [bytes(range(256)) * 30, b"\0" * 100, b"PAR1" * 10, b'n,user,when,click,buy\n"1,2\n'])
def test_binary_junk(tmp_path: Path, name: str, junk: bytes) -> None:
    assert name in refused(tmp_path, SPEC, junk, name)


def test_an_open_quote(tmp_path: Path) -> None:
    content = lines()
    content[30] = content[30].replace("u", '"u', 1)
    assert str(tmp_path / "t.csv") in refused(tmp_path, SPEC, "\n".join(content) + "\n" + "x" * 200_000)


def test_a_truncated_parquet_file(tmp_path: Path) -> None:
    pl.DataFrame({"n": [1]}).write_parquet(tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()[:-5]
    assert str(tmp_path / "t.parquet") in refused(tmp_path, SPEC, content, "t.parquet")


def changed(**changes: Any) -> dict[str, Any]:
    return SPEC | changes


def test_a_missing_column_and_its_suggestion(tmp_path: Path) -> None:
    spec = changed(fields=SPEC["fields"] | {"usre": {"kind": "id"}})
    message = refused(tmp_path, spec, "\n".join(lines()))
    for part in (str(tmp_path / "t.csv"), "usre", "fields.usre", "user"):
        assert part in message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tasks": {"click": "clik"}}, "tasks.click"),
        ({"tasks": {"click": "click == 1 and other == 2"}}, "tasks.click"),
        ({"split": {"by": "hash", "column": "member"}}, "split.column"),
        ({"ignore": ["nothing"]}, "ignore"),
        ({"fields": {"x": {"kind": "numeric", "column": "m"}}}, "fields.x"),
    ],
)
def test_a_missing_column_by_its_key(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    assert named in refused(tmp_path, changed(**{"ignore": "rest", "user": None, **changes}), "\n".join(lines()))


def test_a_column_that_nothing_names(tmp_path: Path) -> None:
    message = refused(
        tmp_path, SPEC, "\n".join(line + ",x" if n else line + ",extra" for n, line in enumerate(lines()))
    )
    for part in (str(tmp_path / "spec.yaml"), "extra", "ignore"):
        assert part in message


def test_a_second_file_with_other_columns(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("n,user,when,click\n1,u,5,0\n")
    message = refused(tmp_path, changed(files=["t.csv", "b.csv"]), "\n".join(lines()))
    assert str(tmp_path / "b.csv") in message
    assert "'buy'" in message


FIELDS, TASKS = SPEC["fields"], SPEC["tasks"]
WRONG_SPECS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": ({"feilds": {}}, ["feilds", "did you mean fields"]),
    "unknown key of a field": ({"fields": {"n": {"knid": "id"}}}, ["fields.n.knid", "kind"]),
    "unknown key of a task": ({"tasks": {"click": {"lable": "click"}}}, ["tasks.click.lable", "label"]),
    "unknown key of the split": ({"split": {"bye": "time"}}, ["split.bye", "by"]),
    "kind that is none": ({"fields": {"n": {"kind": "numerc"}}}, ["fields.n.kind", "numeric"]),
    "transform that is none": ({"fields": {"n": {"transform": "log"}}}, ["fields.n.transform"]),
    "pooling that is none": ({"fields": {"n": {"pooling": "max"}}}, ["fields.n.pooling"]),
    "unit that is none": ({"fields": {"n": {"unit": "us"}}}, ["fields.n.unit"]),
    "part that is none": ({"fields": {"n": {"kind": "time", "parts": ["year"]}}}, ["fields.n.parts"]),
    "parts of a wrong type": ({"fields": {"n": {"kind": "time", "parts": 5}}}, ["fields.n.parts"]),
    "no parts": ({"fields": {"n": {"kind": "time", "parts": None}}}, ["fields.n.parts"]),
    "text for a number": ({"fields": {"n": {"min_count": "ten"}}}, ["fields.n.min_count", "ten"]),
    "number for a text": ({"fields": {"n": {"column": 3}}}, ["fields.n.column"]),
    "text for a truth value": ({"header": "no way"}, ["header"]),
    "number for a label": ({"tasks": {"click": 1}}, ["tasks.click"]),
    "field that is no mapping": ({"fields": {"n": "numeric"}}, ["fields.n"]),
    "field of nothing": ({"fields": {"n": None}}, ["fields.n"]),
    "fields as a list": ({"fields": ["n"]}, ["fields"]),
    "no fields": ({"fields": {}}, ["fields"]),
    "no tasks": ({"tasks": {}}, ["tasks"]),
    "tasks as text": ({"tasks": "click"}, ["tasks"]),
    "split as text": ({"split": "time"}, ["split"]),
    "split as a list": ({"split": [0.1, 0.2]}, ["split"]),
    "columns as text": ({"header": False, "columns": "n"}, ["columns"]),
    "columns of a wrong type": ({"header": False, "columns": 5}, ["columns"]),
    "header false and no columns": ({"header": False}, ["columns"]),
    "separator of two": ({"separator": ";;"}, ["separator"]),
    "files of unknown splits": ({"files": {"train": "a", "valid": "b"}}, ["files"]),
    "no files": ({"files": None}, ["files"]),
    "buckets 1": ({"fields": {"n": {"buckets": 1}}}, ["fields.n", "buckets"]),
    "max_values 0": ({"fields": {"n": {"max_values": 0}}}, ["fields.n", "max_values"]),
    "min_count 0": ({"fields": {"n": {"min_count": 0}}}, ["fields.n", "min_count"]),
    "user that is no field": ({"user": "usr"}, ["user", "usr"]),
    "observed_where unknown": ({"tasks": {"buy": {"label": "buy", "observed_where": "clik"}}}, ["buy.observed_where"]),
    "observed_where of itself": (
        {"tasks": {"buy": {"label": "buy", "observed_where": "buy"}, "click": "click"}},
        ["buy", "circle"],
    ),
    "observed_where in a circle": (
        {
            "tasks": {
                "buy": {"label": "buy", "observed_where": "click"},
                "click": {"label": "click", "observed_where": "buy"},
            }
        },
        ["observed_where", "circle"],
    ),
    "train_on that is none": ({"tasks": {"click": {"label": "click", "train_on": "some"}}}, ["click.train_on"]),
    "label that is a call": ({"tasks": {"click": "int(click)"}}, ["tasks.click.label"]),
    "label that is missing": ({"tasks": {"click": {"weight": 2}}}, ["tasks.click"]),
    "split by nothing known": ({"split": {"by": "user"}}, ["split.by"]),
    "split without its column": ({"split": {"by": "hash"}}, ["split.column"]),
    "split leaves nothing": ({"split": {"validation": 0.5, "test": 0.5}}, ["split"]),
    "share above one": ({"split": {"validation": 1.5}}, ["split.validation"]),
    "share below zero": ({"split": {"test": -0.1}}, ["split.test"]),
    "share as text": ({"split": {"test": "a tenth"}}, ["split.test"]),
    "column split without values": ({"split": {"by": "column", "column": "user"}}, ["split.validation"]),
    "only one boundary": ({"split": {"by": "time", "column": "when", "test_from": 5}}, ["test_from"]),
    "boundary as text": (
        {"split": {"by": "time", "column": "when", "validation_from": "May", "test_from": "June"}},
        ["validation_from"],
    ),
    "boundary as a date": (
        {"split": {"by": "time", "column": "when", "validation_from": date(2020, 1, 1), "test_from": date(2021, 1, 1)}},
        ["validation_from"],
    ),
    "boundaries the wrong way round": (
        {"split": {"by": "time", "column": "when", "validation_from": 1_600_400_000, "test_from": 1_600_200_000}},
        ["validation_from"],
    ),
    "time parts that take another's name": (
        {"fields": FIELDS | {"when_hour": {"kind": "id", "column": "user"}}},
        ["when_hour"],
    ),
    "time format that is none": ({"fields": FIELDS | {"when": {"kind": "time", "format": "%Q"}}}, ["when"]),
}


@pytest.mark.parametrize("case", WRONG_SPECS)
def test_a_wrong_spec(tmp_path: Path, case: str) -> None:
    changes, named = WRONG_SPECS[case]
    message = refused(tmp_path, changed(**{"ignore": "rest", "user": None, **changes}), "\n".join(lines()))
    for part in named:
        assert part in message


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "just text", "fields: [", "a: b: c", "\tfields: {}", "fields: {n: {}}\n\0"]
)
def test_a_file_that_is_no_spec(tmp_path: Path, text: str) -> None:
    assert str(tmp_path / "spec.yaml") in refused(tmp_path, text, "\n".join(lines()))


def test_a_spec_that_is_no_text_and_one_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_bytes(b"fields: \xff\xfe")
    assert str(tmp_path / "spec.yaml") in refusal(lambda: Table(str(tmp_path / "spec.yaml")).table)
    assert str(tmp_path / "none.yaml") in refusal(lambda: Table(str(tmp_path / "none.yaml")).table)


@pytest.mark.parametrize(("split", "first"), [("train", 2), ("validation", 82), ("test", 102)])
@pytest.mark.parametrize(("label", "missing"), [("0", "positives"), ("1", "negatives")])
def test_a_task_with_one_class(tmp_path: Path, split: str, first: int, label: str, missing: str) -> None:
    """By time: rows 2-81 are training, 82-101 validation, 102-121 test."""
    last = {"train": 81, "validation": 101, "test": 121}[split]
    content = lines()
    for row in range(first, last + 1):
        cells = content[row - 1].split(",")
        content[row - 1] = ",".join([*cells[:3], label, cells[4]])
    times = {"by": "time", "column": "when", "validation": 1 / 6, "test": 1 / 6}
    message = refused(tmp_path, changed(split=times, tasks={"click": "click"}, ignore="rest"), "\n".join(content))
    for part in (str(tmp_path / "spec.yaml"), "click", missing, f"in {split}"):
        assert part in message


def test_one_class_may_be_allowed_outside_training(tmp_path: Path) -> None:
    content = lines()
    for row in range(82, 102):
        cells = content[row - 1].split(",")
        content[row - 1] = ",".join([*cells[:3], "0", cells[4]])
    times = {"by": "time", "column": "when", "validation": 1 / 6, "test": 1 / 6, "allow_one_class": True}
    spec = changed(split=times, tasks={"click": "click"}, ignore="rest")
    store = prepare(make_table(tmp_path, spec, text="\n".join(content)), tmp_path / "data")
    assert store.split("validation").labels.sum() == 0
    assert len(store.split("validation")) == 20


def test_a_task_that_is_never_observed(tmp_path: Path) -> None:
    spec = changed(tasks={"never": "n < -1", "buy": {"label": "buy", "observed_where": "never"}}, ignore="rest")
    assert "never" in refused(tmp_path, spec, "\n".join(lines()))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_without_rows(tmp_path: Path, split: str) -> None:
    message = refused(tmp_path, changed(split=SPEC["split"] | {split: 0}), "\n".join(lines()))
    assert split in message


def test_an_empty_time_in_a_split_by_time(tmp_path: Path) -> None:
    content = lines()
    cells = content[40].split(",")
    content[40] = ",".join([*cells[:2], "", *cells[3:]])
    message = refused(tmp_path, changed(split={"by": "time", "column": "when"}), "\n".join(content))
    assert f"{tmp_path / 't.csv'}, row 41:" in message


def test_a_time_of_another_format(tmp_path: Path) -> None:
    content = [line.rsplit(",", 1)[0] + ("," + ("2020-01-05" if n else "buy")) for n, line in enumerate(lines())]
    content[33] = content[33].replace("2020-01-05", "05.01.2020")
    fields = {"day": {"kind": "time", "column": "buy", "format": "%Y-%m-%d", "parts": ["day"]}}
    message = refused(tmp_path, {"fields": fields, "tasks": {"c": "click"}, "ignore": "rest"}, "\n".join(content))
    assert f"{tmp_path / 't.csv'}, row 34:" in message
    assert "05.01.2020" in message


@pytest.mark.parametrize("cell", ["red", "red:", "red:much", "red:nan", "red:inf", "red:1 blue"])
def test_an_id_without_its_weight(tmp_path: Path, cell: str) -> None:
    content = ["click,tags"] + [f"{n % 2},red:1 blue:0.5" for n in range(100)]
    content[50] = f"0,green:2 {cell}"
    fields = {"tags": {"kind": "ids", "separator": " ", "weight_separator": ":"}}
    message = refused(tmp_path, {"fields": fields, "tasks": {"c": "click"}}, "\n".join(content))
    assert f"{tmp_path / 't.csv'}, row 51:" in message
    assert "tags" in message


@pytest.mark.parametrize("transform", ["standardise", "quantile"])
def test_a_numeric_column_without_numbers(tmp_path: Path, transform: str) -> None:
    content = ["click,x,y"] + [f"{n % 2},,1" for n in range(100)]
    fields = {"x": {"kind": "numeric", "transform": transform}}
    assert "x" in refused(tmp_path, {"fields": fields, "tasks": {"c": "click"}, "ignore": "rest"}, "\n".join(content))


def test_bytes_that_are_no_utf8_in_a_number(tmp_path: Path) -> None:
    content = ("\n".join(lines()) + "\n").encode().replace(b"\n50,", b"\n5\xff0,")
    message = refused(tmp_path, SPEC, content)
    assert f"{tmp_path / 't.csv'}, row 52:" in message


def test_parquet_with_a_number_that_is_not_finite(tmp_path: Path) -> None:
    frame = pl.DataFrame({"n": [1.0] * 50 + [float("nan")] + [2.0] * 49, "click": [0, 1] * 50})
    frame.write_parquet(tmp_path / "t.parquet")
    source = make_table(tmp_path, {"fields": {"n": {"kind": "numeric"}}, "tasks": {"c": "click"}}, "t.parquet")
    message = refusal(lambda: prepare(source, tmp_path / "data"))
    assert f"{tmp_path / 't.parquet'}, row 51:" in message


def test_parquet_with_a_label_that_is_a_list(tmp_path: Path) -> None:
    pl.DataFrame({"n": [1.0, 2.0], "click": [[1], [0]]}).write_parquet(tmp_path / "t.parquet")
    source = make_table(tmp_path, {"fields": {"n": {"kind": "numeric"}}, "tasks": {"c": "click"}}, "t.parquet")
    assert "click" in refusal(lambda: prepare(source, tmp_path / "data"))
