"""Tables and specs that cannot be intended are refused with one line; odd but valid ones are read."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from dlen.data.prepare import prepare
from dlen.data.sources.table import Table
from dlen.data.store import Store
from tests.data.helpers import refusal

SPEC: dict[str, Any] = {
    "fields": {"u": {"side": "user"}, "n": {"kind": "numeric"}},
    "tasks": {"click": "click"},
    "split": {"by": "column", "column": "day", "validation": ["3"], "test": ["4"]},
    "ignore": "rest",
}


LATE = {"by": "time", "column": "n", "validation_from": "2023-11-16", "test_from": "2023-11-15T00:00:00Z"}


def rows(count: int = 200) -> list[str]:
    """Lines of a CSV file; the first is the header."""
    return ["u,n,day,click", *(f"u{i % 9},{i},{i % 5},{i // 5 % 2}" for i in range(count))]


def source(folder: Path, content: str | bytes | list[str], name: str = "t.csv", **more: Any) -> Table:
    if isinstance(content, list):
        content = "\n".join(content) + "\n"
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "s.yaml").write_text(yaml.safe_dump({"files": name, **SPEC, **more}, sort_keys=False))
    return Table(str(folder / "s.yaml"))


def made(folder: Path, content: Any, **more: Any) -> Store:
    return prepare(source(folder, content, **more), folder / "data")


def told(folder: Path, content: Any, **more: Any) -> str:
    return refusal(lambda: made(folder, content, **more))


def total(store: Store) -> int:
    return sum(len(store.split(s)) for s in ("train", "validation", "test"))


# The text of the file


def swallowed() -> list[str]:
    """A quote opens in one row and closes five rows later; each row has the right number of cells."""
    lines = rows()
    lines[21] = '"' + lines[21]
    name, rest = lines[26].split(",", 1)
    lines[26] = f'{name}",{rest}'
    return lines


def test_a_quote_that_swallows_rows(tmp_path: Path) -> None:
    message = told(tmp_path, swallowed())
    assert "row 22" in message
    assert "quote: ''" in message
    store = made(tmp_path, swallowed(), quote="")
    assert total(store) == 200
    assert {v for v in store.vocabulary("u")["value"] if '"' in v}


def test_cells_with_line_breaks_are_read(tmp_path: Path) -> None:
    lines = rows()
    lines[7] = '"a\nb",7,2,1'
    assert total(made(tmp_path, lines)) == 200


def test_a_quote_that_is_said_is_meant(tmp_path: Path) -> None:
    assert total(made(tmp_path, swallowed(), quote='"')) == 195


@pytest.mark.parametrize("allowed", [1, 2])
def test_lines_that_are_no_utf8_are_bad_rows(tmp_path: Path, allowed: int) -> None:
    content = (
        ("\n".join(rows()) + "\n").encode().replace(b"\nu3,30,", b"\nu\xff3,30,").replace(b"\nu5,50,", b"\n\xfe,50,")
    )
    table = source(tmp_path, content)
    table = Table(str(tmp_path / "s.yaml"), bad_rows=allowed)
    if allowed == 1:
        assert "row 52" in refusal(lambda: prepare(table, tmp_path / "data"))
    else:
        assert total(prepare(table, tmp_path / "data")) == 198


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"PK\x03\x04" + b"x" * 100, "zip"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 100, "Zstandard"),
        (b"ARROW1\0\0" + b"x" * 100, "Arrow"),
        (b"\x80\x04\x95" + b"x" * 100, "pickle"),
        ("\n".join(rows()).encode("utf-16"), "encoding: utf-16"),
        ("\n".join(rows()).encode("utf-16-le"), "utf-16-le"),
        (b"BZh91AY&SY broken", "decompressed"),
    ],
)
def test_what_is_no_csv_is_named(tmp_path: Path, content: bytes, named: str) -> None:
    assert named in told(tmp_path, content)


def test_an_encoding_that_is_wrong_or_unknown(tmp_path: Path) -> None:
    assert "klingon" in told(tmp_path, rows(), encoding="klingon")
    assert "encoding" in told(tmp_path, rows(), encoding="base64")
    lines = rows()
    lines[50] = lines[50].replace("u", "é")
    assert "ascii" in told(tmp_path, lines, encoding="ascii")


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    lines = rows()
    lines[0] = "u,n,day,u"
    assert "two columns are called 'u'" in told(tmp_path, lines)
    assert "columns: 'u'" in told(tmp_path, rows()[1:], header=False, columns=["u", "n", "u", "click"])


def test_texts_that_mean_an_empty_cell(tmp_path: Path) -> None:
    lines = [line.replace(",7,", ",\\N,") for line in rows()]
    assert "null_values" in told(tmp_path, lines)
    assert total(made(tmp_path, lines, null_values=["\\N"])) == 200


def test_a_row_of_empty_cells_is_a_row_and_a_blank_line_is_none(tmp_path: Path) -> None:
    store = made(tmp_path, rows())
    content = ["u,n,day,click", "u1,3,0,1", "", ",,,", "u2,4,0,0"]
    (tmp_path / "new.csv").write_text("\n".join(content) + "\n")
    (chunk,) = Table(str(tmp_path / "s.yaml")).read(tmp_path / "new.csv", store)
    assert len(chunk) == 3
    assert chunk.batch(torch.arange(3)).ids[1, 0] == 0


# Paths


@pytest.mark.parametrize("name", ["a[1].csv", "a{b}.csv", "a?.csv", "a b.csv", "a*.csv", "~.csv", "a%20.csv"])
def test_a_path_is_the_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "a1.csv").write_text("something else\n")
    assert total(prepare(source(tmp_path, rows(), name), tmp_path / "data")) == 200


def test_patterns_and_folders(tmp_path: Path) -> None:
    for place, part in (("x/y", rows()[:101]), ("x/z[0]", [rows()[0], *rows()[101:]])):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "part-0.csv.gz").write_bytes(gzip.compress("\n".join(part).encode()))
    (tmp_path / "x/y/_SUCCESS").touch()
    for pattern in ("x/**/*.csv.gz", "x/*/part-*.csv.gz", ["x/y", "x/z[0]"]):
        (tmp_path / "s.yaml").write_text(yaml.safe_dump({"files": pattern, **SPEC}, sort_keys=False))
        assert total(prepare(Table(str(tmp_path / "s.yaml")), tmp_path / "data")) == 200
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"files": ["x/y", "x/y/part-0.csv.gz"], **SPEC}))
    assert "twice" in refusal(lambda: prepare(Table(str(tmp_path / "s.yaml")), tmp_path / "data"))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"files": "x", **SPEC}))
    assert "x" in refusal(lambda: prepare(Table(str(tmp_path / "s.yaml")), tmp_path / "data"))


# The spec


def test_a_key_that_occurs_twice(tmp_path: Path) -> None:
    source(tmp_path, rows())
    text = (tmp_path / "s.yaml").read_text()
    (tmp_path / "s.yaml").write_text(text + "ignore: []\n")
    assert "'ignore' occurs twice" in refusal(lambda: Table(str(tmp_path / "s.yaml")).table)


@pytest.mark.parametrize("label", ["n", "n > 3", "n == 1 or click == 1", "col('n') in [1, 2]"])
def test_a_field_of_what_a_label_is_made_of(tmp_path: Path, label: str) -> None:
    assert "fields.n" in told(tmp_path, rows(), tasks={"click": "click", "more": label})


@pytest.mark.parametrize(
    ("tasks", "named"),
    [
        ({"mean": "click"}, "task mean"),
        ({"weighted": "click"}, "task weighted"),
        ({"labels": "click"}, "task labels"),
        ({"up_any": "click"}, "task up_any"),
        ({"hate": {"label": "click", "dislike": True}, "up_hate": "click"}, "task up_hate"),
        ({"a": "click", "b": {"label": "click", "observed_where": "a", "joint": "a"}}, "joint event a"),
        ({"a": "click", "b": {"label": "click", "observed_where": "a", "joint": "mean"}}, "joint event mean"),
    ],
)
def test_names_of_other_figures(tmp_path: Path, tasks: dict[str, Any], named: str) -> None:
    assert named in told(tmp_path, rows(), tasks=tasks)


def test_values_of_a_split_that_are_in_no_row(tmp_path: Path) -> None:
    split = {"by": "column", "column": "day", "validation": ["3"], "test": ["4", "D4"]}
    assert "split.test: 'D4'" in told(tmp_path, rows(), split=split)
    made(tmp_path, rows(), split={"by": "column", "column": "day", "validation": [3.0], "test": "4"})


def test_a_join_that_matches_nothing(tmp_path: Path) -> None:
    pl.DataFrame({"u": ["x1", "x2"], "age": [1, 2]}).write_csv(tmp_path / "users.csv")
    joins = {"users": {"file": "users.csv", "by": "u"}}
    message = told(tmp_path, rows(), joins=joins, fields=SPEC["fields"] | {"age": {}})
    assert "joins.users" in message


@pytest.mark.parametrize(
    ("column", "spec", "named"),
    [
        ([1_700_000_000 + i for i in range(200)], {"unit": "ms"}, "unit: s"),
        ([1_700_000_000_000 + i for i in range(200)], {}, "check unit"),
        (["14.11.2023"] * 200, {}, "set format"),
        (["2023-11-14 10:00"] * 200, {"format": "%d.%m.%Y"}, "format %d.%m.%Y"),
    ],
)
def test_times_that_cannot_be_meant(tmp_path: Path, column: list[Any], spec: dict[str, Any], named: str) -> None:
    lines = [f"{line},{cell}" for line, cell in zip(rows(), ["ts", *column], strict=True)]
    assert named in told(tmp_path, lines, fields={"u": {}, "ts": {"kind": "time", **spec}})


def test_times_of_1970_are_told(tmp_path: Path) -> None:
    lines = [f"{line},{cell}" for line, cell in zip(rows(), ["ts", *range(200)], strict=True)]
    store = made(tmp_path, lines, fields={"u": {}, "ts": {"kind": "time"}})
    assert "is the unit right?" in store.content["notes"]["training_times_of_ts"]


@pytest.mark.parametrize("parquet", [True, False])
@pytest.mark.parametrize(
    ("start", "named"), [("2023-11-05", ""), ("2023-11-05T00:00:00", ""), (1_700_000_000, "holds times")]
)
def test_a_split_by_dates(tmp_path: Path, parquet: bool, start: Any, named: str) -> None:
    frame = pl.DataFrame({"u": [f"u{i % 7}" for i in range(200)], "click": [i % 2 for i in range(200)]})
    frame = frame.with_columns(dt=pl.Series([f"2023-11-{1 + i % 9:02d}" for i in range(200)]))
    name = "t.parquet" if parquet else "t.csv"
    if parquet:
        frame.with_columns(pl.col("dt").str.to_date()).write_parquet(tmp_path / name)
    else:
        frame.write_csv(tmp_path / name)
    split = {"by": "time", "column": "dt", "validation_from": start, "test_from": start if named else "2023-11-08"}
    spec = {"files": name, **SPEC, "fields": {"u": {}}, "split": split}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(spec))

    def work() -> Store:
        return prepare(Table(str(tmp_path / "s.yaml")), tmp_path / "data")

    if named:
        assert named in refusal(work)
    else:
        days = [i % 9 for i in range(200)]
        sizes = [len(work().split(s)) for s in ("train", "validation", "test")]
        assert sizes == [sum(d < 4 for d in days), sum(4 <= d < 7 for d in days), sum(d >= 7 for d in days)]


# Numbers


@pytest.mark.parametrize("cell", ["1e300", "1e150", "-1e39", "3.5e38"])
@pytest.mark.parametrize("transform", ["standardise", "log1p", "quantile"])
def test_a_number_that_32_bits_do_not_hold(tmp_path: Path, cell: str, transform: str) -> None:
    lines = [line.replace(",77,", f",{cell},") for line in rows()]
    message = told(tmp_path, lines, fields={"u": {}, "n": {"kind": "numeric", "transform": transform}})
    assert "row 79: column n" in message


@pytest.mark.parametrize("value", [0.7, 1e-30, 123456.789, -3e37])
def test_a_constant_has_no_scale(tmp_path: Path, value: float) -> None:
    """Regardless of rounding and of the values of other rows."""
    lines = [line.replace(f",{i - 1},", f",{value},", 1) if i else line for i, line in enumerate(rows())]
    assert made(tmp_path, lines).content["statistics"]["n"]["deviation"] == 1.0


def test_anonymous_rows_are_split_each_by_itself(tmp_path: Path) -> None:
    lines = ["u,n,day,click", *(f",{i},{i % 5},{i // 5 % 2}" for i in range(2000))]
    lines += [f"u{i % 400},{i},{i % 5},{i // 5 % 2}" for i in range(2000)]
    store = made(tmp_path, lines, split={"by": "hash", "column": "u"}, user="u")
    sizes = [len(store.split(s)) / 4000 for s in ("train", "validation", "test")]
    assert sizes == pytest.approx([0.8, 0.1, 0.1], abs=0.03)


def test_a_zip_in_a_gz_is_still_no_table(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as file:
        file.writestr("a.csv", "\n".join(rows()))
    assert "zip" in refusal(lambda: prepare(source(tmp_path, (tmp_path / "z.zip").read_bytes()), tmp_path / "data"))


# Found by an attack


def test_a_bad_row_behind_a_cell_with_a_line_break(tmp_path: Path) -> None:
    """The check that finds bad rows and the reader that skips them count rows alike."""
    lines = ("\n".join(rows()) + "\n").encode().split(b"\n")
    lines[3] = b'"x\ny",2,2,0'
    lines[31] = lines[31].replace(b"u", b"\xff")
    source(tmp_path, b"\n".join(lines), fields={"u": {}, "n": {"kind": "numeric"}})
    store = prepare(Table(str(tmp_path / "s.yaml"), bad_rows=1), tmp_path / "data")
    assert total(store) == 199
    assert not [v for v in store.vocabulary("u")["value"] if "\ufffd" in v]


def test_times_and_numbers_are_not_put_in_one_order(tmp_path: Path) -> None:
    early = ["u,ts,click", *(f"u{i % 9},2023-01-01T00:{i % 60:02d}:00,{i % 2}" for i in range(100))]
    late = ["u,ts,click", *(f"u{i % 9},{1_700_000_000 + i},{i % 2}" for i in range(100))]
    (tmp_path / "b.csv").write_text("\n".join(late))
    split = {"by": "time", "column": "ts", "validation": 0.2, "test": 0.2}
    spec = {"files": ["t.csv", "b.csv"], "fields": {"u": {}}, "split": split}
    message = told(tmp_path, early, **spec)
    for part in (f"{tmp_path / 'b.csv'}: column ts", "numbers", "times", str(tmp_path / "t.csv")):
        assert part in message
    rates = {"u": {}, "r": {"rate": {"of": "click", "by": "u"}}}
    store = made(tmp_path, late, files="b.csv", fields=rates, split=split)
    new = pl.DataFrame({"u": ["u1"], "ts": ["2023-11-14T22:13:21"]})
    new.write_csv(tmp_path / "new.csv")
    message = refusal(lambda: list(Table(str(tmp_path / "s.yaml")).read(tmp_path / "new.csv", store)))
    assert "holds times, but other rows of the log hold numbers" in message


def test_a_join_of_several_files(tmp_path: Path) -> None:
    (tmp_path / "users").mkdir()
    for part in range(2):
        names = [f"u{i}" for i in range(9) if i % 2 == part]
        pl.DataFrame({"u": names, "city": [f"c{n}" for n in names]}).write_csv(tmp_path / "users" / f"users_{part}.csv")
    for file in ("users", "users/users_*.csv"):
        joins = {"users": {"file": file, "by": "u"}}
        store = made(tmp_path, rows(), joins=joins, fields={"u": {}, "city": {}})
        assert len(store.vocabulary("city")) == 9
        assert "rows_without_users" not in store.content["notes"]


def test_files_that_are_one_file(tmp_path: Path) -> None:
    source(tmp_path, rows())
    (tmp_path / "latest.csv").symlink_to(tmp_path / "t.csv")
    for files in ("*.csv", ["t.csv", str(tmp_path / "t.csv")], ["t.csv", "./t.csv"]):
        (tmp_path / "s.yaml").write_text(yaml.safe_dump({"files": files, **SPEC}))
        assert "twice" in refusal(lambda: prepare(Table(str(tmp_path / "s.yaml")), tmp_path / "data"))


def test_reading_new_rows_leaves_the_source_as_it_was(tmp_path: Path) -> None:
    table = source(tmp_path, rows())
    store = prepare(table, tmp_path / "data")
    (tmp_path / "new.csv").write_text("\n".join(rows(50)))
    assert [len(chunk) for chunk in table.read(tmp_path / "new.csv", store)] == [50]
    assert prepare(table, tmp_path / "data").folder == store.folder


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tasks": {"click": "click == 9007199254740993"}}, "9007199254740993 is too large"),
        ({"tasks": {"click": {"label": "click", "weight": float("nan")}}}, "weight"),
        ({"tasks": {"click": {"label": "click", "weight": -1.0}}}, "weight"),
        ({"split": {"by": "column", "column": "day", "validation": [2, 3], "test": [3, 4]}}, "'3' is listed for"),
        ({"split": {"by": "column", "column": "day", "validation": [""], "test": [4]}}, "empty value"),
        ({"split": {"by": "fraction", "seed": -1}}, "split.seed"),
        ({"fields": {"ts": {"kind": "time", "column": "n", "utc_offset": float("inf")}}}, "utc_offset"),
        ({"fields": {"u" * 300: {"column": "u"}}}, "cannot be a name"),
        ({"files": "part**.csv"}, "whole folders"),
        (
            {
                "split": {
                    "by": "time",
                    "column": "n",
                    "validation_from": "2023-11-16",
                    "test_from": "2023-11-15T00:00:00Z",
                }
            },
            "later than test_from",
        ),
    ],
)
def test_what_no_spec_can_mean(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    assert named in told(tmp_path, rows(), **change)


@pytest.mark.parametrize(
    "text", ["files: {{path}}", "? [a]\n: 1", "split: {validation_from: 2023-02-30}", "x: !!int y"]
)
def test_yaml_that_python_cannot_hold(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    assert "not valid YAML" in refusal(lambda: Table(str(tmp_path / "s.yaml")).table)


def test_no_joins_at_all(tmp_path: Path) -> None:
    assert total(made(tmp_path, rows(), joins=None)) == 200


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("['Sci Fi']", ["Sci Fi"]),
        ("['Sci Fi', 'A']", ["Sci Fi", "A"]),
        ("[1, None, nan]", ["1"]),
        ("[1 2]", ["1", "2"]),
        ("[]", []),
        ("[a]|[b]", ["[a]", "[b]"]),
        ('["a"]', ["a"]),
    ],
)
def test_lists_as_they_are_written(tmp_path: Path, cell: str, wanted: list[str]) -> None:
    frame = pl.DataFrame(
        {"t": [cell] * 60 + ["other"] * 60, "click": [i // 5 % 2 for i in range(120)], "day": [0, 1, 2, 3, 4] * 24}
    )
    frame.write_csv(tmp_path / "t.csv")
    spec = {"files": "t.csv", **SPEC, "fields": {"t": {"kind": "ids"}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(spec))
    store = prepare(Table(str(tmp_path / "s.yaml")), tmp_path / "data")
    assert set(store.vocabulary("t")["value"]) - {"other"} == set(wanted)


def test_everyday_files_are_read(tmp_path: Path) -> None:
    lines = [line.replace(",", ", ") for line in rows()]
    assert total(made(tmp_path, lines)) == 200  # blanks after the separator, also in the header
    content = "\n".join(rows()).replace(",", "\t").encode()
    assert total(prepare(source(tmp_path, content, "P.TSV"), tmp_path / "data")) == 200
    long = [line + "," if i else line + ",note" for i, line in enumerate(rows())]
    long[5] += "x" * 200_000
    assert total(made(tmp_path, long)) == 200
    stamps = ["2023-11-14 10:00:00+08", "2023-11-14 10:00:00,123", "9999-12-31 23:59:59", "0001-01-01"]
    timed = [f'{line},"{stamps[i % 4]}"' if i else f"{line},ts" for i, line in enumerate(rows())]
    fields = {"u": {}, "ts": {"kind": "time", "utc_offset": 8}}
    assert total(made(tmp_path, timed, fields=fields)) == 200
    quoted = rows()
    quoted[9] = '1,5" tv,3,1'
    assert "quote: ''" in told(tmp_path, quoted)


def test_a_long_expression(tmp_path: Path) -> None:
    label = " or ".join(f"n == {i}" for i in range(0, 1500, 2))
    store = made(tmp_path, rows(), fields={"u": {}}, tasks={"even": label})
    assert store.schema.tasks[0].rate == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"fields": {"u": {"side": "usr"}}}, "fields.u.side"),
        ({"fields": {"u": {}, "n": {"kind": "numeric"}}, "user": "n"}, "user: n"),
        ({"fields": {"u": {"kind": "ids"}}, "position": "u"}, "position: u"),
        ({"tasks": {"y": {"label": "y", "joint": "both"}}}, "tasks.y.joint"),
    ],
)
def test_settings_that_nothing_would_read(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    assert key in told(tmp_path, rows(), ignore="rest", **changes)
