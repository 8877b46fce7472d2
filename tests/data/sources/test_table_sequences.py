"""Sequences and histories of a table against slow readings of the raw rows; new rows get them too."""

from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from dlen.batch import Batch
from dlen.data import partitions
from dlen.data.prepare import prepare
from dlen.data.sources import table_file
from dlen.data.sources.table import Table
from dlen.data.split import tensors
from dlen.data.store import Store
from dlen.schema import Kind
from tests.data.helpers import bags_of, check_resident_copy, make_table, numbers_of, refusal, whole

N = 160
Row = dict[str, Any]
SPEC: dict[str, Any] = {
    "fields": {
        "n": {"kind": "numeric"},
        "user": {"side": "user"},
        "item": {"side": "item"},
        "shop": {"side": "item"},
        "at": {"kind": "time", "column": "time", "parts": ["hour"]},
        "last": {"share": "item"},
        "liked": {"kind": "sequence", "share": "item", "side": "user", "max_values": 3},
        "how": {"kind": "sequence", "along": "liked", "side": "user"},
        "before": {
            "history": {
                "of": ["item", "shop"],
                "by": "user",
                "where": "click",
                "labels": ["click", "buy"],
                "length": 4,
            },
            "side": "user",
        },
        "seen": {"history": {"of": "shop", "by": ["user", "city"], "where": "seconds > 30", "gap": False}},
    },
    "tasks": {"click": "click", "buy": {"label": "buy", "observed_where": "click"}},
    "split": {"by": "time", "column": "time", "validation": 0.2, "test": 0.2, "allow_one_class": True},
    "ignore": [],
}
LISTS = ["liked", "how", "before_item", "before_shop", "before_labels", "before_gap", "seen"]


def draw(seed: int = 0) -> list[Row]:
    """A log not ordered by time, with ties, missing keys, empty lists and unknown values; n is the row number."""
    rng = random.Random(seed)
    rows = []
    for n in range(N):
        liked = [rng.choice("pqrstz") for _ in range(rng.randrange(6))]
        rows.append(
            {
                "n": n,
                "user": rng.choice(["a", "b", "c", ""]),
                "item": (item := rng.choice("pqrst")),
                "shop": {"p": "1", "q": "1", "r": "2", "s": "2", "t": ""}[item],
                "city": rng.choice(["x", "y", ""]),
                "time": 86_400 * 3 + 3_600 * rng.randrange(120),
                "last": rng.choice(["p", "z", ""]),
                "liked": "|".join(liked),
                "how": "|".join(rng.choice("uv") for _ in liked),
                "click": (click := rng.randrange(2)),
                "buy": click * rng.randrange(2),
                "seconds": rng.randrange(60),
            }
        )
    return rows


def store_of(folder: Path, rows: list[Row], spec: dict[str, Any] = SPEC) -> Store:
    return prepare(make_table(folder, spec, "t.csv", pl.DataFrame(rows).write_csv()), folder / "data")


def told(store: Store, batch: Batch) -> list[dict[str, list[Any]]]:
    """The lists of each row as raw values, and as numbers where there are none."""
    rows: list[dict[str, list[Any]]] = [{} for _ in range(len(batch))]
    for lists, sequence in zip(store.schema.sequences.values(), batch.sequences, strict=True):
        for column, field in enumerate(lists):
            codes = (sequence.ids[:, column] - store.schema.offsets[field.name]).split(sequence.lengths.tolist())
            known = field.share or field.name in store.content["vocabularies"]
            values = [None, *store.vocabulary(field.name)["value"]] if known else range(1000)
            for row, of_row in zip(rows, codes, strict=True):
                row[field.name] = [values[code] for code in of_row.tolist()]
    return rows


def features(store: Store) -> dict[int, dict[str, list[Any]]]:
    """The lists of all rows, by row number."""
    return {
        n: lists
        for name in ("train", "validation", "test")
        for n, lists in zip(numbers_of(store, name), told(store, whole(store.split(name))), strict=True)
    }


def slow_lists(rows: list[Row], row: Row, known: set[str]) -> dict[str, list[Any]]:
    """The definition, row by row: earlier rows, oldest first; rows of the same moment are not seen."""
    earlier = sorted((r for r in rows if r["time"] < row["time"]), key=lambda r: (r["time"], r["n"]))
    clicks = [r for r in earlier if row["user"] and r["user"] == row["user"] and r["click"]][-4:]
    key = (row["user"], row["city"])
    long = [r for r in earlier if all(key) and (r["user"], r["city"]) == key and r["seconds"] > 30]
    return {
        "liked": [v if v in known else None for v in row["liked"].split("|") if row["liked"]][-3:],
        "how": [v for v in row["how"].split("|") if row["how"]][-3:],
        "before_item": [r["item"] for r in clicks],
        "before_shop": [r["shop"] or None for r in clicks],
        "before_labels": [1 + 1 * r["click"] + 2 * r["buy"] for r in clicks],
        "before_gap": [1 + math.floor(math.log2(1 + row["time"] - r["time"])) for r in clicks],
        "seen": [r["shop"] or None for r in long][-50:],
    }


@pytest.mark.parametrize("pending", [30, 1 << 20])
def test_every_row_of_every_split_sees_its_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pending: int) -> None:
    """With histories in one part in memory and in several on disk, from chunks of the file."""
    monkeypatch.setattr(partitions, "PENDING", pending)
    monkeypatch.setattr(table_file, "CHUNK", 23)
    rows = draw()
    store = store_of(tmp_path, rows)
    known = set(store.vocabulary("item")["value"])
    assert features(store) == {row["n"]: slow_lists(rows, row, known) for row in rows}
    assert [f.name for lists in store.schema.sequences.values() for f in lists] == LISTS


@pytest.mark.parametrize("seed", range(3))
def test_no_label_of_a_row_or_of_a_later_one_enters_its_history(tmp_path: Path, seed: int) -> None:
    """Change what happens from some moment on: rows up to that moment see what they saw before."""
    rows = draw(seed)
    moment = sorted(r["time"] for r in rows)[N // 2]
    changed = [r | {"click": 1 - r["click"], "buy": 0, "seconds": 59} if r["time"] >= moment else r for r in rows]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    before, after = (features(store_of(tmp_path / name, log)) for name, log in (("a", rows), ("b", changed)))
    early, late = ([r["n"] for r in rows if (r["time"] <= moment) == is_early] for is_early in (True, False))
    assert [before[n] for n in early] == [after[n] for n in early]
    assert [before[n] for n in late] != [after[n] for n in late]  # it can be seen at all


def test_only_training_rows_are_seen_if_asked(tmp_path: Path) -> None:
    rows = draw()
    store = store_of(tmp_path, rows, SPEC | {"rates": {"rows": "train"}})
    training = set(numbers_of(store, "train"))
    own, known = [r for r in rows if r["n"] in training], set(store.vocabulary("item")["value"])
    assert features(store) == {row["n"]: slow_lists(own, row, known) for row in rows}


def test_new_rows_see_the_log_before_them(tmp_path: Path) -> None:
    """The rows of the log themselves, read as new rows, get what they got when the log was prepared."""
    rows = draw()
    store = store_of(tmp_path, rows)
    later = [r | {"time": 10**9, "n": N + r["n"]} for r in rows[:20]]
    path = tmp_path / "new.csv"
    inputs = ["n", "user", "item", "shop", "city", "time", "last", "liked", "how"]
    pl.DataFrame([*rows, *later]).select(inputs).write_csv(path)
    source = Table(str(tmp_path / "spec.yaml"))
    batches = [whole(split) for split in source.read(path, store)]
    lists = [row for batch in batches for row in told(store, batch)]
    known = set(store.vocabulary("item")["value"])
    assert lists == [slow_lists(rows, row, known) for row in (*rows, *later)]


def test_a_new_row_without_time_comes_after_all_others(tmp_path: Path) -> None:
    rows = draw()
    store = store_of(tmp_path, rows)
    path = tmp_path / "new.csv"
    pl.DataFrame([rows[0] | {"time": None, "user": "a"}]).write_csv(path)
    (split,) = Table(str(tmp_path / "spec.yaml")).read(path, store)
    (lists,) = told(store, whole(split))
    wanted = slow_lists(rows, rows[0] | {"user": "a", "time": 10**9}, set())
    assert lists["before_item"] == wanted["before_item"]
    assert set(lists["before_gap"]) == {32}


def test_shared_ids_have_the_rows_of_their_field(tmp_path: Path) -> None:
    rows = draw()
    store = store_of(tmp_path, rows)
    schema, batch = store.schema, whole(store.split("train"))
    assert schema.offsets["last"] == schema.offsets["liked"] == schema.offsets["item"]
    names = [f.name for f in schema.of_kind(Kind.ID)]
    by_number = {r["n"]: r for r in rows}
    values = [None, *store.vocabulary("last")["value"]]
    codes = (batch.ids[:, names.index("last")] - schema.offsets["item"]).tolist()
    last = [by_number[n]["last"] for n in numbers_of(store, "train")]
    assert [values[code] for code in codes] == [v if v in values and v else None for v in last]
    # Only the field's own values count for id dropout, and each field has its own share of unknown values.
    own = [by_number[n]["item"] for n in numbers_of(store, "train")]
    counts = store.counts[schema.rows("item")].tolist()
    assert counts == [0, *(own.count(v) for v in values[1:])]
    assert store.unknown["train"]["item"] == 0
    assert store.unknown["train"]["last"] == sum(v != "p" for v in last) / len(last)
    lists = told(store, batch)
    unknown = sum(v is None for row in lists for v in row["before_shop"])
    assert store.unknown["train"]["before_shop"] == unknown / sum(len(row["before_shop"]) for row in lists)


@pytest.mark.parametrize("kind", ["newest_first", "lists"])
def test_other_forms_of_the_same_lists(tmp_path: Path, kind: str) -> None:
    rows, spec = draw(), copy.deepcopy(SPEC)
    wanted = features(store_of(tmp_path, rows))
    folder = tmp_path / "other"
    folder.mkdir()
    if kind == "newest_first":
        spec["fields"]["liked"]["order"] = "newest_first"
        turned = [r | {c: "|".join(r[c].split("|")[::-1]) for c in ("liked", "how")} for r in rows]
        assert features(store_of(folder, turned, spec)) == wanted
        return
    as_lists = [r | {c: r[c].split("|") if r[c] else [] for c in ("liked", "how")} for r in rows]
    table = make_table(folder, spec | {"files": "t.parquet"}, "t.csv", "")
    pl.DataFrame(as_lists).write_parquet(folder / "t.parquet")
    assert features(prepare(table, folder / "data")) == wanted


def as_null(values: list[str]) -> list[str | None]:
    return [value or None for value in values]


WRITERS: dict[str, Any] = {
    "lists": list,
    "lists with nulls": as_null,
    "JSON": json.dumps,
    "JSON with nulls": lambda values: json.dumps(as_null(values)),
    "Python": str,
    "separators": "|".join,
}


@pytest.mark.parametrize("form", list(WRITERS))
def test_an_empty_text_is_an_absent_value_in_every_form(form: str, tmp_path: Path) -> None:
    """It keeps its place in a sequence and its parallel list, and is left out of ids and of keys."""
    spec = copy.deepcopy(SPEC)
    spec["fields"] |= {"tags": {"kind": "ids"}, "of_tags": {"count": {"by": "tags"}}}
    cells = [
        ([""], ["u"]),
        (["p"], [""]),
        (["", "q"], ["u", ""]),
        (["", ""], ["", "v"]),
        (["p", "", "q"], ["", "u", ""]),
    ]
    cells += [([], []), (["p", "q"], ["u", "v"])]
    cells += [] if form == "separators" else [([""], [""])]  # as text, it is an empty cell
    chosen = [cells[n % len(cells)] for n in range(N)]
    write = WRITERS[form]
    rows = [
        row | {"liked": write(liked), "how": write(how), "tags": write(liked)}
        for row, (liked, how) in zip(draw(), chosen, strict=True)
    ]
    table = make_table(tmp_path, spec | {"files": "t.parquet"})
    pl.DataFrame(rows).write_parquet(tmp_path / "t.parquet")
    found = features(store := prepare(table, tmp_path / "data"))
    assert {n: (row["liked"], row["how"]) for n, row in found.items()} == {
        n: (as_null(liked), as_null(how)) for n, (liked, how) in enumerate(chosen)
    }
    train = numbers_of(store, "train")
    values, first = [None, *store.vocabulary("tags")["value"]], store.schema.offsets["tags"]
    (tags,) = bags_of(whole(store.split("train")))
    assert [[values[code - first] for code, _ in row] for row in tags] == [
        [value for value in chosen[n][0] if value] for n in train
    ]
    keys = ["|".join(value for value in liked if value) for liked, _ in chosen]
    times = [row["time"] for row in rows]
    earlier = [sum(times[m] < times[n] and keys[m] == keys[n] for m in range(N)) if keys[n] else 0 for n in range(N)]
    column = [f.name for f in store.schema.of_kind(Kind.NUMERIC)].index("of_tags")
    scale, counts = store.content["statistics"]["of_tags"], whole(store.split("train")).numeric[:, column].tolist()
    logs = [count * scale["deviation"] + scale["mean"] for count in counts]
    assert [round(math.expm1(log)) for log in logs] == [earlier[n] for n in train]


def test_a_resident_copy_gives_the_same_sequences(tmp_path: Path) -> None:
    split = store_of(tmp_path, draw()).split("train")
    check_resident_copy(split, torch.tensor([5, 0, 40, 5]))
    assert split.bytes > sum(array.nbytes for array in tensors(split.sequences)) > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"last": {"share": "itme"}}, "fields.last.share: 'itme' is not one of user, item, shop; did you mean item?"),
        ({"last": {"share": "item", "min_count": 2}}, "fields.last.min_count: the ids are those of item"),
        ({"last": {"share": "item", "kind": "numeric"}}, "fields.last.share: is for ids"),
        ({"how": {"kind": "sequence", "along": "item"}}, "fields.how.along: 'item' is not one of liked"),
        ({"how": {"along": "liked"}}, "fields.how.along: is for kind: sequence"),
        ({"how": {"kind": "sequence", "along": "liked", "max_values": 2}}, "fields.how.max_values: is that of liked"),
        ({"seen": {"history": {"by": "user"}}}, "fields.seen.history.of: must name a field"),
        ({"seen": {"history": {"of": "item"}}}, "fields.seen.history.by: must name a field or column"),
        ({"seen": {"history": {"of": "n", "by": "user"}}}, "history.of: 'n' is not one of user, item, shop, last"),
        (
            {"seen": {"history": {"of": "item", "by": "before"}}},
            "before is computed from the log, so it cannot be a key",
        ),
        ({"seen": {"history": {"of": "item", "by": "user", "labels": ["clik"]}}}, "did you mean click?"),
        ({"seen": {"history": {"of": "item", "by": "user", "where": "click >"}}}, "neither a task nor an expression"),
        ({"seen": {"history": {"of": "item", "by": "click"}}}, "column click determines task click"),
        ({"seen": {"history": {"of": "item", "by": "user", "length": 0}}}, "history.length: 0 is not a whole number"),
        ({"seen": {"history": {"of": "item", "by": "user"}, "min_count": 2}}, "cannot be combined with history"),
        (
            {"before_item": {"column": "item"}},
            "fields.before_item: a part of a time, rate or history has the same name",
        ),
        ({"seen": {"history": {"of": "item", "by": "liked"}}}, "seen.history.by: liked is a sequence, so it cannot be"),
        ({"seen": {"rate": {"of": "click", "by": "liked"}}}, "fields.seen: by: liked is a sequence, so it cannot be"),
        ({"seen": {"history": {"of": "item", "by": "user", "labels": ["buy", "buy"]}}}, "a list of distinct texts"),
    ],
)
def test_wrong_sequences(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    assert said in refusal(lambda: store_of(tmp_path, draw(), SPEC | {"fields": SPEC["fields"] | change}))


def test_a_sequence_is_no_user(tmp_path: Path) -> None:
    """With a setting of another kind too, which has no effect."""
    fields = SPEC["fields"] | {"liked": SPEC["fields"]["liked"] | {"transform": "quantile"}}
    said = refusal(lambda: store_of(tmp_path, draw(), SPEC | {"fields": fields, "user": "liked"}))
    assert "user: liked has to have one id per row" in said


def test_preparing_tells_how_many_lists_are_cut(tmp_path: Path) -> None:
    rows = draw()
    lengths = [len(r["liked"].split("|")) if r["liked"] else 0 for r in rows]
    cut, kept = sum(n > 3 for n in lengths) / N, sum(min(n, 3) for n in lengths) / N
    told_by_store = store_of(tmp_path, rows).content["notes"]["sequence_of_liked"]
    assert told_by_store == f"{kept:.1f} values per row; {cut:.2%} have more than 3, and keep the newest"


def test_lists_of_lists_are_refused(tmp_path: Path) -> None:
    frame = pl.DataFrame(draw()).with_columns(pl.lit([["p"]]).alias("liked"))
    table = make_table(tmp_path, SPEC | {"files": "t.parquet"}, "t.csv", "")
    frame.write_parquet(tmp_path / "t.parquet")
    assert "column liked: has type List(List(String)), expected lists of ids" in refusal(
        lambda: prepare(table, tmp_path / "data")
    )


def test_a_history_needs_a_time(tmp_path: Path) -> None:
    spec = copy.deepcopy(SPEC) | {"rates": {"time": "none"}}
    assert "fields.before.history: needs a time" in refusal(lambda: store_of(tmp_path, draw(), spec))


def test_parallel_lists_of_other_lengths_are_refused(tmp_path: Path) -> None:
    rows = draw()
    for liked, how, problem in (
        ("p|q", "u", "column how: has 1 values, but liked has 2"),
        ("p|q", "", "column how: has 0 values, but liked has 2"),
        ("p", "[]", "column how: has 0 values, but liked has 1"),
        ("", "u|v", "column how: has 2 values, but liked has 0"),
    ):
        rows[7] |= {"liked": liked, "how": how}
        assert f"t.csv, row 9: {problem}" in refusal(lambda: store_of(tmp_path, rows))
