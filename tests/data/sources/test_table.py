"""Any table: values, vocabularies, statistics and splits against slow reference implementations."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlen.data.buckets import bucket_edges
from dlen.data.prepare import prepare
from dlen.data.sources import table_file
from dlen.data.sources.table import Table
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.schema import Kind, Pooling
from tests.data.helpers import arrays, decode, make_table, numbers_of, whole

SPLITS = ("train", "validation", "test")
N = 400


def draw(rows: int = N, seed: int = 0) -> list[dict[str, Any]]:
    """A log with every awkward kind of cell; n is the row number."""
    rng = random.Random(seed)
    return [
        {
            "n": n,
            "user": f"u{rng.randrange(60)}",
            "city": rng.choice(["Paris", "Köln, DE", 'the "Hague"', "", "Oslo"]),
            "price": rng.choice(["", f"{rng.gauss(100, 30):.3f}", "1e2", "-7"]),
            "tags": "|".join(rng.choice("abcdefgh") for _ in range(rng.choice([0, 1, 2, 5]))),
            "scores": " ".join(f"{rng.choice('pqr')}:{rng.randrange(9) / 2}" for _ in range(rng.choice([0, 1, 3]))),
            "stamp": 1_600_000_000 + rng.randrange(40_000_000),
            "day": rng.choice(["mon", "tue", "wed", "thu"]),
            "label": rng.choice([0, 0, 1]),
            "kind": rng.choice(["buy", "look", "skip"]),
        }
        for n in range(rows)
    ]


SPEC: dict[str, Any] = {
    "fields": {
        "n": {"kind": "numeric"},
        "user": {"kind": "id", "side": "user", "min_count": 4},
        "town": {"kind": "id", "column": "city"},
        "price": {"kind": "numeric"},
        "bucket": {"kind": "numeric", "column": "price", "transform": "quantile", "buckets": 7},
        "amount": {"kind": "numeric", "column": "price", "transform": "log1p"},
        "tags": {"kind": "ids", "min_count": 2, "max_values": 3},
        "scores": {
            "kind": "ids",
            "separator": " ",
            "weight_separator": ":",
            "max_values": 2,
            "pooling": "sum",
        },
        "when": {"kind": "time", "column": "stamp", "parts": ["hour", "weekday", "day", "month"], "utc_offset": 5.5},
    },
    "tasks": {
        "click": "label",
        "buy": {"label": "kind == 'buy'", "observed_where": "click", "joint": "click_buy"},
        "not_skip": "kind in ['buy', 'look']",
    },
    "split": {"by": "fraction", "validation": 0.2, "test": 0.2},
    "ignore": ["day"],
    "user": "user",
}


def csv_text(rows: Sequence[dict[str, Any]], delimiter: str = ",", header: bool = True) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def prepared(folder: Path, spec: dict[str, Any], rows: Sequence[dict[str, Any]], name: str = "t.csv") -> Store:
    return prepare(make_table(folder, spec, name, csv_text(rows)), folder / "data")


def rows_of_splits(store: Store) -> dict[str, list[int]]:
    return {name: numbers_of(store, name) for name in SPLITS}


def check(store: Store, rows: Sequence[dict[str, Any]]) -> None:
    """Check every field of every row against slow readings; the split itself is taken as given."""
    numbers = rows_of_splits(store)
    assert sorted(n for part in numbers.values() for n in part) == [r["n"] for r in rows]
    training = [rows[n] for n in numbers["train"]]
    references: list[dict[str, Any]] = [references_of(training, row) for row in rows]
    for split, places in numbers.items():
        assert places == sorted(places)  # file order is preserved
        decoded = decode(store, split)
        batch = whole(store.split(split))
        scaled = {f.name: batch.numeric[:, i].tolist() for i, f in enumerate(store.schema.of_kind(Kind.NUMERIC))}
        for i, n in enumerate(places):
            expected = dict(references[n])
            for name in ("price", "amount"):
                assert scaled[name][i] == pytest.approx(expected.pop(name), abs=1e-5)
            assert decoded[i] == expected, f"{split}, row {n}"


def references_of(training: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    users = Counter(r["user"] for r in training)
    tags = Counter(tag for r in training for tag in r["tags"].split("|"))
    local = datetime.fromtimestamp(row["stamp"], UTC) + timedelta(hours=5.5)
    prices = [float(r["price"]) for r in training if r["price"]]
    logs = [math.copysign(math.log1p(abs(p)), p) for p in prices]
    log_price = math.copysign(math.log1p(abs(float(row["price"]))), float(row["price"])) if row["price"] else 0.0
    listed = [t for t in row["tags"].split("|") if t]
    weighed = [(s.split(":")[0], float(s.split(":")[1])) for s in row["scores"].split()]
    heavy = weighed if len(weighed) <= 2 else sorted(weighed, key=lambda v: -v[1])[:2]
    known = {r["city"] for r in training} - {""}
    return {
        "user": row["user"] if users[row["user"]] >= 4 else None,
        "town": row["city"] if row["city"] in known else None,
        "price": (float(row["price"]) - np.mean(prices)) / np.std(prices) if row["price"] else 0.0,
        "amount": (log_price - np.mean(logs)) / np.std(logs) if row["price"] else 0.0,
        "bucket": slow_bucket(prices, row["price"], 7),
        "tags": [(t if tags[t] >= 2 else None, 1.0) for t in listed][:3],
        "scores": heavy,
        "when_hour": local.hour + 1,
        "when_weekday": local.isoweekday(),
        "when_day": local.day,
        "when_month": local.month,
        "click": row["label"],
        "buy": float(row["kind"] == "buy"),
        "not_skip": float(row["kind"] != "skip"),
    }


def slow_bucket(prices: list[float], cell: str, buckets: int) -> int:
    """The id, counted edge by edge: buckets follow unknown and absent. test_buckets.py tests the edges."""
    edges = bucket_edges(np.sort(prices), buckets).tolist()
    return 2 + sum(edge <= float(cell) for edge in edges) if cell else 1


def test_every_field_of_every_row(tmp_path: Path) -> None:
    rows = draw()
    store = prepared(tmp_path, SPEC, rows)
    check(store, rows)
    assert store.schema.user == "user"
    assert {f.name: f.pooling for f in store.schema.of_kind(Kind.IDS)} == {"tags": Pooling.MEAN, "scores": Pooling.SUM}


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_small_chunks_give_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    rows = draw(150)
    expected = prepared(tmp_path / "whole", SPEC, rows)
    monkeypatch.setattr(table_file, "CHUNK", chunk)
    store = prepared(tmp_path / "small", SPEC, rows)
    check(store, rows)
    assert store.schema == expected.schema
    ids = {name: content for name, content in arrays(expected).items() if not name.endswith("numeric.bin")}
    assert {name: content for name, content in arrays(store).items() if name in ids} == ids


@pytest.mark.parametrize(("name", "delimiter"), [("t.tsv", "\t"), ("t.csv", ";"), ("t.txt", ",")])
def test_other_separators(tmp_path: Path, name: str, delimiter: str) -> None:
    rows = draw(200)
    spec = SPEC | ({"separator": ";"} if delimiter == ";" else {})
    check(prepare(make_table(tmp_path, spec, name, csv_text(rows, delimiter)), tmp_path / "data"), rows)


def test_gzipped_csv(tmp_path: Path) -> None:
    rows = draw(200)
    content = gzip.compress(csv_text(rows).encode())
    check(prepare(make_table(tmp_path, SPEC, "t.csv.gz", content), tmp_path / "data"), rows)


def test_gzipped_csv_whose_last_cell_is_empty(tmp_path: Path) -> None:
    text = "n,label,c\n" + "".join(f"{n},{n % 2},{'x' if n % 3 else ''}\n" for n in range(600))
    spec = {"fields": {"n": {"kind": "numeric"}, "c": {"kind": "id"}}, "tasks": {"t": "label"}}
    store = prepare(make_table(tmp_path, spec, "t.csv.gz", gzip.compress(text.encode())), tmp_path / "data")
    assert [row["c"] for row in decode(store, "test")] == ["x" if n % 3 else None for n in numbers_of(store, "test")]


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("finished", [True, False])
def test_line_ends_byte_order_marks_and_the_last_line(tmp_path: Path, bom: str, end: str, finished: bool) -> None:
    rows = draw(100)
    text = bom + csv_text(rows).replace("\n", end)
    source = make_table(tmp_path, SPEC, "t.csv", text if finished else text.removesuffix(end))
    check(prepare(source, tmp_path / "data"), rows)


def test_header_false_comments_blanks_and_blank_lines(tmp_path: Path) -> None:
    rows = draw(100)
    lines = csv_text(rows, header=False).splitlines()
    lines[0:0] = ["# made by hand"]
    lines[40:40] = ["", "# n,user"]
    text = "\n".join(lines).replace(",u", ", u") + "\n"
    spec = SPEC | {"header": False, "comment": "#", "columns": list(rows[0])}
    check(prepare(make_table(tmp_path, spec, "t.csv", text), tmp_path / "data"), rows)


def test_several_files_are_one_table(tmp_path: Path) -> None:
    rows = draw(300)
    tmp_path.joinpath("a.csv").write_text(csv_text(rows[:100]))
    tmp_path.joinpath("b.tsv").write_text(csv_text(rows[100:], "\t"))
    check(prepare(make_table(tmp_path, SPEC | {"files": ["a.csv", "b.tsv"]}), tmp_path / "data"), rows)


def parquet_rows(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    frame = pl.DataFrame(rows)
    return frame.with_columns(
        pl.col("price").replace("", None).cast(pl.Float64),
        pl.col("tags").str.split("|"),
        pl.from_epoch("stamp"),
        pl.col("city").cast(pl.Categorical),
        pl.col("label").cast(pl.Boolean),
    )


def test_parquet_with_lists_times_and_booleans(tmp_path: Path) -> None:
    rows = draw()
    parquet_rows(rows).write_parquet(tmp_path / "t.parquet", row_group_size=90)
    check(prepare(make_table(tmp_path, SPEC, "t.parquet"), tmp_path / "data"), rows)


def test_parquet_list_of_numbers_and_dates(tmp_path: Path) -> None:
    frame = pl.DataFrame({"n": range(60), "ids": [[n % 3, 7] if n % 4 else None for n in range(60)]})
    frame = frame.with_columns(label=pl.col("n") % 2, date=pl.date(2024, 2, 1) + pl.duration(days=pl.col("n")))
    frame.write_parquet(tmp_path / "t.parquet")
    fields = {
        "n": {"kind": "numeric"},
        "ids": {"kind": "ids"},
        "date": {"kind": "time", "parts": ["month", "day", "weekday"]},
    }
    spec = {"fields": fields, "tasks": {"t": "label"}, "split": {"by": "time", "column": "date"}}
    store = prepare(make_table(tmp_path, spec, "t.parquet"), tmp_path / "data")
    assert {k: len(v) for k, v in rows_of_splits(store).items()} == {"train": 48, "validation": 6, "test": 6}
    for n, row in zip(numbers_of(store, "train"), decode(store, "train"), strict=True):
        assert row["ids"] == ([(str(n % 3), 1.0), ("7", 1.0)] if n % 4 else [])
        day = datetime(2024, 2, 1) + timedelta(days=n)
        assert (row["date_month"], row["date_day"], row["date_weekday"]) == (day.month, day.day, day.isoweekday())


def test_time_stamps_as_text_and_in_milliseconds(tmp_path: Path) -> None:
    rows = draw(120)
    lines = ["n,label,text,ms"]
    for row in rows:
        moment = datetime.fromtimestamp(row["stamp"], UTC)
        text = "" if row["n"] % 5 == 0 else moment.strftime("%d/%m/%Y %H-%M")
        lines.append(f"{row['n']},{row['label']},{text},{'' if row['n'] % 7 == 0 else row['stamp'] * 1000 + 999}")
    fields = {
        "n": {"kind": "numeric"},
        "text": {"kind": "time", "format": "%d/%m/%Y %H-%M", "parts": ["hour", "day"]},
        "ms": {"kind": "time", "unit": "ms"},
    }
    source = make_table(tmp_path, {"fields": fields, "tasks": {"t": "label"}}, text="\n".join(lines))
    store = prepare(source, tmp_path / "data")
    for n, decoded in zip(numbers_of(store, "train"), decode(store, "train"), strict=True):
        moment = datetime.fromtimestamp(rows[n]["stamp"], UTC)
        assert (decoded["text_hour"], decoded["text_day"]) == ((moment.hour + 1, moment.day) if n % 5 else (None, None))
        expected = (moment.hour + 1, moment.isoweekday()) if n % 7 else (None, None)
        assert (decoded["ms_hour"], decoded["ms_weekday"]) == expected


# Splits


def splitting(folder: Path, split: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, set[int]]:
    store = prepared(folder, SPEC | {"split": split | {"allow_one_class": True}}, rows)
    check(store, rows)
    return {name: set(part) for name, part in rows_of_splits(store).items()}


def test_fraction_has_its_shares_and_follows_the_seed(tmp_path: Path) -> None:
    rows = draw(1000)
    settings: dict[str, Any] = {"by": "fraction", "validation": 0.2, "test": 0.3}
    first = splitting(tmp_path / "a", settings, rows)
    assert len(first["validation"]) == pytest.approx(200, abs=50)
    assert len(first["test"]) == pytest.approx(300, abs=60)
    assert splitting(tmp_path / "b", settings, rows) == first
    assert splitting(tmp_path / "c", settings | {"seed": 1}, rows)["test"] != first["test"]


def test_hash_keeps_a_user_in_one_split(tmp_path: Path) -> None:
    rows = draw(1000)
    settings = {"by": "hash", "column": "user", "validation": 0.25, "test": 0.25}
    parts = splitting(tmp_path, settings, rows)
    users = {name: {rows[n]["user"] for n in part} for name, part in parts.items()}
    assert all(users.values())
    assert sum(len(u) for u in users.values()) == len({r["user"] for r in rows})
    assert len(users["train"]) == pytest.approx(30, abs=15)


def test_hash_sees_no_chunk_and_no_file_boundary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = draw(200)
    split = {"by": "hash", "column": "user", "validation": 0.25, "test": 0.25}
    expected = splitting(tmp_path / "a", split, rows)
    monkeypatch.setattr(table_file, "CHUNK", 13)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.csv").write_text(csv_text(rows[:77]))
    (tmp_path / "b" / "2.csv").write_text(csv_text(rows[77:]))
    spec = SPEC | {"split": split, "files": ["1.csv", "2.csv"]}
    store = prepare(make_table(tmp_path / "b", spec), tmp_path / "b" / "data")
    assert {name: set(part) for name, part in rows_of_splits(store).items()} == expected


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.2), (0.25, 0.25)])
def test_time_cuts_at_the_quantiles(tmp_path: Path, validation: float, test: float) -> None:
    rows = draw(300)
    parts = splitting(tmp_path, {"by": "time", "column": "stamp", "validation": validation, "test": test}, rows)
    ordered = sorted(rows, key=lambda r: r["stamp"])
    assert len({r["stamp"] for r in rows}) == 300
    first, second = round(300 * (1 - validation - test)), round(300 * (1 - test))
    assert parts["train"] == {r["n"] for r in ordered[:first]}
    assert parts["validation"] == {r["n"] for r in ordered[first:second]}
    assert parts["test"] == {r["n"] for r in ordered[second:]}


def test_equal_times_stay_together(tmp_path: Path) -> None:
    rows = draw(300)
    for row in rows:
        row["stamp"] = 1_600_000_000 + 1000 * (row["n"] // 30)
    parts = splitting(tmp_path, {"by": "time", "column": "stamp", "validation": 0.15, "test": 0.15}, rows)
    times = [{rows[n]["stamp"] for n in parts[name]} for name in SPLITS]
    assert max(times[0]) < min(times[1])
    assert max(times[1]) < min(times[2])


def test_time_cuts_where_told(tmp_path: Path) -> None:
    rows = draw(300)
    first, second = 1_620_000_000, 1_630_000_000
    rows[5]["stamp"], rows[6]["stamp"] = first, second
    split = {"by": "time", "column": "stamp", "validation_from": first, "test_from": second}
    parts = splitting(tmp_path, split, rows)
    assert parts["train"] == {r["n"] for r in rows if r["stamp"] < first}
    assert parts["validation"] == {r["n"] for r in rows if first <= r["stamp"] < second}
    assert parts["test"] == {r["n"] for r in rows if r["stamp"] >= second}


def test_column_names_the_values_of_each_split(tmp_path: Path) -> None:
    rows = draw(300)
    parts = splitting(tmp_path, {"by": "column", "column": "day", "validation": "wed", "test": ["thu"]}, rows)
    days = {"train": {"mon", "tue"}, "validation": {"wed"}, "test": {"thu"}}
    for name, part in parts.items():
        assert part == {r["n"] for r in rows if r["day"] in days[name]}


def files_of(folder: Path, parts: Mapping[str, Sequence[dict[str, Any]]], split: dict[str, Any]) -> Store:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        (folder / f"{name}.csv").write_text(csv_text(rows))
    spec = SPEC | {"files": {name: f"{name}.csv" for name in parts}, "split": split | {"allow_one_class": True}}
    return prepare(make_table(folder, spec), folder / "data")


@pytest.mark.parametrize("by", ["fraction", "hash", "time"])
def test_separate_test_file(tmp_path: Path, by: str) -> None:
    """Validation is a share of train only; the test file is the whole test split."""
    rows = draw(500)
    rows.sort(key=lambda r: r["stamp"])
    for n, row in enumerate(rows):
        row["n"] = n
    column = {"hash": "user", "time": "stamp", "fraction": ""}[by]
    store = files_of(
        tmp_path, {"train": rows[:300], "test": rows[300:]}, {"by": by, "column": column, "validation": 0.2}
    )
    check(store, rows)
    parts = rows_of_splits(store)
    assert parts["test"] == list(range(300, 500))
    assert len(parts["validation"]) == pytest.approx(60, abs=0 if by == "time" else 40)
    if by == "time":
        assert parts["validation"] == list(range(240, 300))


def test_three_files_are_the_three_splits(tmp_path: Path) -> None:
    rows = draw(300)
    parts = {"train": rows[:200], "validation": rows[200:250], "test": rows[250:]}
    store = files_of(tmp_path, parts, {"by": "fraction"})
    check(store, rows)
    assert [len(part) for part in rows_of_splits(store).values()] == [200, 50, 50]


def test_files_setting_overrides_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = draw(150)
    make_table(tmp_path / "spec", SPEC, "absent.csv")
    (tmp_path / "here.csv").write_text(csv_text(rows))
    monkeypatch.chdir(tmp_path)
    source = Table("spec/spec.yaml", "mine", "here.csv")
    store = prepare(source, tmp_path / "data")
    assert store.folder.parent.name == "mine"
    check(store, rows)


# Statistics, vocabularies and tasks


def test_vocabulary_is_ordered_by_frequency(tmp_path: Path) -> None:
    rows = draw()
    store = prepared(tmp_path, SPEC, rows)
    users = Counter(rows[n]["user"] for n in numbers_of(store, "train"))
    expected = sorted(((u, c) for u, c in users.items() if c >= 4), key=lambda p: (-p[1], p[0]))
    frame = store.vocabulary("user")
    assert list(zip(frame["value"], frame["count"], strict=True)) == expected


def test_statistics_are_those_of_training_rows(tmp_path: Path) -> None:
    rows = draw()
    store = prepared(tmp_path, SPEC, rows)
    prices = [float(rows[n]["price"]) for n in numbers_of(store, "train") if rows[n]["price"]]
    statistics = store.content["statistics"]["price"]
    assert statistics["mean"] == pytest.approx(np.mean(prices), rel=1e-9)
    assert statistics["deviation"] == pytest.approx(np.std(prices), rel=1e-9)


def test_large_offsets_keep_their_deviation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_file, "CHUNK", 10)
    text = "n,big,same,label\n" + "".join(f"{n},{1e12 + n},5,{n % 2}\n" for n in range(200))
    fields = {name: {"kind": "numeric"} for name in ("n", "big", "same")}
    store = prepare(make_table(tmp_path, {"fields": fields, "tasks": {"t": "label"}}, text=text), tmp_path / "data")
    trained = [1e12 + n for n in numbers_of(store, "train")]
    assert store.content["statistics"]["big"]["deviation"] == pytest.approx(np.std(trained), rel=1e-6)
    assert whole(store.split("test")).numeric[:, 2].abs().max() == 0  # a constant column is 0, not nan


def test_tasks_rates_and_joint(tmp_path: Path) -> None:
    rows = draw()
    spec = SPEC | {"tasks": SPEC["tasks"] | {"all": {"label": "kind == 'buy'", "observed_where": "click"}}}
    spec["tasks"]["all"] |= {"train_on": "all", "weight": 0.5}
    store = prepared(tmp_path, spec, rows)
    train = [rows[n] for n in numbers_of(store, "train")]
    clicked = [r for r in train if r["label"]]
    buys = [r["kind"] == "buy" for r in clicked]
    tasks = {t.name: t for t in store.schema.tasks}
    assert tasks["click"].rate == pytest.approx(len(clicked) / len(train))
    assert tasks["buy"].rate == pytest.approx(np.mean(buys))
    assert (tasks["buy"].observed_where, tasks["buy"].joint, tasks["buy"].train_on) == (
        "click",
        "click_buy",
        "observed",
    )
    assert (tasks["all"].train_on, tasks["all"].weight) == ("all", 0.5)
    assert tasks["all"].rate == pytest.approx(sum(buys) / len(train))  # learns click and buy jointly, on every row


def test_one_column_read_as_number_and_as_text(tmp_path: Path) -> None:
    rows = draw(200)
    tasks = {"number": "label == 1", "text": "label == '1'", "mixed": "label == 0 or label == '7'"}
    store = prepared(tmp_path, SPEC | {"tasks": tasks, "ignore": "rest"}, rows)
    for n, row in zip(numbers_of(store, "train"), decode(store, "train"), strict=True):
        one = float(rows[n]["label"])
        assert (row["number"], row["text"], row["mixed"]) == (one, one, 1 - one)


@pytest.mark.parametrize("ignore", ["rest", ["rest"], ["day", "city"]])
def test_ignored_columns(tmp_path: Path, ignore: Any) -> None:
    fields = {k: v for k, v in SPEC["fields"].items() if k != "town"}
    store = prepared(tmp_path, SPEC | {"fields": fields, "ignore": ignore}, draw(200))
    assert "town" not in [f.name for f in store.schema.fields]


def test_a_field_whose_name_has_a_slash(tmp_path: Path) -> None:
    text = "n,label,a/b\n" + "".join(f"{n},{n % 2},x{n % 3}\n" for n in range(600))
    spec = {"fields": {"n": {"kind": "numeric"}, "a/b": {"kind": "id"}}, "tasks": {"t": "label"}}
    with pytest.raises(UserError, match=r"fields.a/b: 'a/b' cannot be a name"):
        make_table(tmp_path, spec, text=text)
    spec["fields"] = {"n": {"kind": "numeric"}, "ab": {"kind": "id", "column": "a/b"}}
    store = prepare(make_table(tmp_path, spec, text=text), tmp_path / "data")
    assert set(store.vocabulary("ab")["value"]) == {"x0", "x1", "x2"}


def test_a_changed_spec_makes_another_store(tmp_path: Path) -> None:
    rows = draw(200)
    first = prepared(tmp_path, SPEC, rows)
    again = prepare(Table(str(tmp_path / "spec.yaml"), "table"), tmp_path / "data")
    split = SPEC["split"] | {"seed": 5}
    other = prepare(make_table(tmp_path, SPEC | {"split": split}), tmp_path / "data")
    assert first.folder == again.folder != other.folder


@pytest.mark.parametrize(("encoding", "letters"), [("latin-1", "éèü"), ("gb18030", "京海汉"), ("utf-16", "é京ж")])
@pytest.mark.parametrize("packed", [lambda b: b, gzip.compress, bz2.compress, lzma.compress])
def test_another_encoding_is_told_and_read(tmp_path: Path, encoding: str, letters: str, packed: Any) -> None:
    lines = "".join(f"{n},{n % 2},caf{letters[n % 3]}\n" for n in range(600))
    text = packed(f"n,label,c\n{lines}".encode(encoding))
    spec = {"fields": {"n": {"kind": "numeric"}, "c": {"kind": "id"}}, "tasks": {"t": "label"}}
    with pytest.raises(UserError, match="encoding"):
        prepare(make_table(tmp_path, spec, text=text), tmp_path / "data")
    store = prepare(make_table(tmp_path, spec | {"encoding": encoding}, text=text), tmp_path / "data")
    assert sorted(store.vocabulary("c")["value"]) == sorted(f"caf{letter}" for letter in letters)


def test_labels_are_those_of_their_rows_in_every_split(tmp_path: Path) -> None:
    rows = draw()
    store = prepared(tmp_path, SPEC, rows)
    for name in SPLITS:
        labels = whole(store.split(name)).labels
        expected = [
            [r["label"], r["kind"] == "buy", r["kind"] != "skip"] for r in (rows[n] for n in numbers_of(store, name))
        ]
        np.testing.assert_array_equal(labels.numpy(), np.array(expected, np.float32))


@pytest.mark.parametrize("transform", ["standardise", "log1p"])
@pytest.mark.parametrize("value", ["0.1", "3.3", "1000000000.1", "3"])
def test_a_constant_in_training_is_not_scaled_by_its_rounding(tmp_path: Path, transform: str, value: str) -> None:
    """Another value in test keeps its distance instead of becoming 1e16 deviations."""
    parts = ["a"] * 300 + ["b"] * 5 + ["c"] * 5
    lines = [f"{value if part == 'a' else float(value) + 1},{part},{i % 2}" for i, part in enumerate(parts)]
    spec = {
        "fields": {"x": {"kind": "numeric", "transform": transform}},
        "tasks": {"click": "y"},
        "split": {"by": "column", "column": "part", "validation": ["b"], "test": ["c"]},
    }
    store = prepare(make_table(tmp_path, spec, "t.csv", "x,part,y\n" + "\n".join(lines) + "\n"), tmp_path / "data")
    assert store.content["statistics"]["x"]["deviation"] == 1.0
    assert whole(store.split("test")).numeric.abs().max() <= 1.0 + 1e-6
