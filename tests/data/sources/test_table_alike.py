"""The same log in other formats is the same store: CSV, TSV, Parquet and frames; integers, floats and text."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from dlen.data.prepare import prepare
from dlen.data.sources.frame import frame_source
from dlen.data.sources.table import Table
from dlen.data.split import Split
from dlen.data.store import Store
from tests.data.helpers import arrays

SPEC: dict[str, Any] = {
    "fields": {
        "user_id": {"side": "user"},
        "item": {"side": "item"},
        "flag": {},
        "tags": {"kind": "ids", "side": "item", "max_values": 2},
        "price": {"kind": "numeric"},
        "level": {"kind": "numeric", "transform": "quantile", "buckets": 3},
        "shown": {"kind": "time", "column": "ts"},
        "user_click": {"rate": {"of": "click", "by": "user_id"}},
        "pairs": {"count": {"by": ["user_id", "item"]}},
        "tags_click": {"rate": {"of": "click", "by": "tags"}},
    },
    "tasks": {"click": "click", "like": {"label": "like", "observed": "asked"}, "kind": "kind in ['a', '7']"},
    "split": {"by": "column", "column": "day", "validation": ["3"], "test": ["4"]},
    "user": "user_id",
}


def log(seed: int, rows: int = 300) -> pl.DataFrame:
    """A log as in Parquet, with empty cells in every column that may have them."""
    r = np.random.default_rng(seed)

    def some(values: list[Any], share: float = 0.1) -> list[Any]:
        return [None if r.random() < share else v for v in values]

    return pl.DataFrame(
        {
            "user_id": some(r.integers(0, 40, rows).tolist()),
            "item": some([f"i{x}" for x in r.integers(0, 20, rows)]),
            "flag": some((r.random(rows) < 0.5).tolist()),
            "tags": [[int(x) for x in r.integers(0, 9, r.integers(0, 5))] for _ in range(rows)],
            "price": some(np.round(r.normal(size=rows), 3).tolist()),
            "level": some(r.integers(0, 9, rows).tolist()),
            "ts": (1_700_000_000 + r.integers(0, 400_000, rows)).tolist(),
            "click": r.integers(0, 2, rows).tolist(),
            "like": some(r.integers(0, 2, rows).tolist(), 0.3),
            "asked": r.integers(0, 4, rows).clip(0, 1).tolist(),
            "kind": some(r.choice(["a", "b", "7"], rows).tolist()),
            "day": r.integers(0, 5, rows).tolist(),
        }
    )


def flat(frame: pl.DataFrame) -> pl.DataFrame:
    """Lists as in CSV."""
    return frame.with_columns(pl.col("tags").cast(pl.List(pl.String)).list.join("|"))


def by_pandas(frame: pl.DataFrame) -> pl.DataFrame:
    """Integers in columns with empty cells become floats, booleans are capitalised, and text is padded."""
    floats = [pl.col(c).cast(pl.Float64) for c in ("user_id", "level", "like")]
    flag = pl.col("flag").cast(pl.String).str.to_titlecase()
    return flat(frame).with_columns(*floats, flag, (pl.lit("  ") + pl.col("item") + " ").alias("item"))


def csv(change: Callable[[pl.DataFrame], pl.DataFrame], encoding: str = "utf-8", **how: Any) -> Callable[..., Path]:
    def write(folder: Path, frame: pl.DataFrame) -> Path:
        path = folder / ("t.tsv" if how.get("separator") == "\t" else "t.csv")
        path.write_bytes(change(frame).write_csv(**how).encode(encoding))
        return path

    return write


def parquet(change: Callable[[pl.DataFrame], pl.DataFrame], name: str = "t.parquet") -> Callable[..., Path]:
    def write(folder: Path, frame: pl.DataFrame) -> Path:
        change(frame).write_parquet(folder / name)
        return folder / name

    return write


def packed(folder: Path, frame: pl.DataFrame) -> Path:
    (folder / "t.csv").write_bytes(gzip.compress(flat(frame).write_csv().encode()))  # named as if it were uncompressed
    return folder / "t.csv"


def parts(folder: Path, frame: pl.DataFrame) -> Path:
    """A folder of parts; the second has floats where the first has integers."""
    (folder / "parts").mkdir()
    frame.head(100).write_parquet(folder / "parts" / "part-0.parquet")
    typed(frame.tail(-100)).write_parquet(folder / "parts" / "part-1.parquet")
    (folder / "parts" / "_SUCCESS").touch()
    return folder / "parts"


def typed(frame: pl.DataFrame) -> pl.DataFrame:
    """The same values in other Parquet types."""
    stamps = pl.from_epoch("ts").dt.replace_time_zone("UTC")
    return frame.with_columns(
        pl.col("user_id").cast(pl.Float64),
        pl.col("item").cast(pl.Categorical),
        pl.col("price", "click").cast(pl.Decimal(20, 3)),
        pl.col("like", "asked").cast(pl.Boolean),
        pl.col("day").cast(pl.String).cast(pl.Enum(["0", "1", "2", "3", "4"])),
        pl.col("tags").cast(pl.List(pl.Float64)),
        stamps,
    )


def iso(zone: str) -> Callable[[pl.DataFrame], pl.DataFrame]:
    text = f"%Y-%m-%dT%H:%M:%S{zone}"
    shift = 8 * 3600 if zone == "+08:00" else 0
    return lambda frame: flat(frame).with_columns(pl.from_epoch(pl.col("ts") + shift).dt.strftime(text))


def written_lists(frame: pl.DataFrame) -> pl.DataFrame:
    """Lists as written by Python and numpy."""
    texts = [str(t) if n % 2 else "[" + " ".join(map(str, t)) + "]" for n, t in enumerate(frame["tags"].to_list())]
    return frame.with_columns(tags=pl.Series(texts, dtype=pl.String))


FORMS: dict[str, Callable[[Path, pl.DataFrame], Path]] = {
    "csv": csv(flat),
    "tsv": csv(flat, separator="\t"),
    "byte order mark": csv(flat, "utf-8-sig"),
    "CRLF": csv(flat, line_terminator="\r\n"),
    "all quoted": csv(flat, quote_style="always"),
    "columns in another order": csv(lambda f: flat(f).select(reversed(f.columns))),
    "as pandas writes it": csv(by_pandas),
    "gzip": packed,
    "times in ISO 8601": csv(iso("")),
    "times in UTC": csv(iso("Z")),
    "times with a zone": csv(iso("+08:00")),
    "lists as Python writes them": csv(written_lists),
    "parquet": parquet(lambda f: f),
    "parquet by another name": parquet(lambda f: f, "t.pq"),
    "parquet with other types": parquet(typed),
    "parquet of text": parquet(lambda f: flat(f).cast(pl.String)),
    "a folder of parts": parts,
}


def made(folder: Path, path: Path, **more: Any) -> Store:
    spec = SPEC | more
    (folder / "s.yaml").write_text(yaml.safe_dump({"files": str(path), **spec}, sort_keys=False))
    return prepare(Table(str(folder / "s.yaml")), folder / "data")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Split]:
    folder = tmp_path_factory.mktemp("base")
    store = made(folder, FORMS["csv"](folder, log(0)))
    return store, new_rows(folder, store, "csv")


def new_rows(folder: Path, store: Store, form: str) -> Split:
    """Rows of another log, as predict.py reads them."""
    below = folder / "new"
    below.mkdir()
    path = FORMS[form](below, log(1, 120))
    (chunk,) = Table(str(folder / "s.yaml")).read(path, store, labels=True)
    return chunk


@pytest.mark.slow
@pytest.mark.parametrize("form", list(FORMS))
def test_the_same_store_and_the_same_new_rows(tmp_path: Path, base: tuple[Store, Split], form: str) -> None:
    store = made(tmp_path, FORMS[form](tmp_path, log(0)))
    assert arrays(store) == arrays(base[0])
    assert store.schema == base[0].schema
    if form == "a folder of parts":
        return
    actual, wanted = new_rows(tmp_path, store, form), base[1]
    every = torch.arange(len(wanted))
    for one, other in zip(vars_of(actual.batch(every)), vars_of(wanted.batch(every)), strict=True):
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))


def vars_of(batch: Any) -> list[torch.Tensor]:
    return [getattr(batch, name) for name in ("ids", "numeric", "bag_lengths", "bag_ids", "bag_weights", "labels")]


def test_a_frame_is_the_same_store(tmp_path: Path, base: tuple[Store, Split]) -> None:
    for number, frame in enumerate((log(0), typed(log(0)))):
        store = prepare(frame_source(frame, SPEC, tmp_path / f"{number}", "t"), tmp_path / "data")
        assert arrays(store) == arrays(base[0])


def test_the_order_of_keys_of_the_yaml_says_nothing(tmp_path: Path, base: tuple[Store, Split]) -> None:
    spec = {key: SPEC[key] for key in reversed(SPEC)}
    spec["fields"] = {n: {k: f[k] for k in reversed(f)} for n, f in SPEC["fields"].items()}
    path = FORMS["csv"](tmp_path, log(0))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**spec, "files": str(path)}, sort_keys=False))
    assert arrays(prepare(Table(str(tmp_path / "s.yaml")), tmp_path / "data")) == arrays(base[0])


def test_missing_labels_and_new_users_are_as_in_a_slow_loop(tmp_path: Path, base: tuple[Store, Split]) -> None:
    store, frame = base[0], log(0)
    known = set(frame.filter(pl.col("day") < 3)["user_id"].drop_nulls())
    numbers: dict[int, int] = {}
    for name, days in (("train", (0, 1, 2)), ("validation", (3,)), ("test", (4,))):
        rows = [row for row in frame.iter_rows(named=True) if row["day"] in days]
        split = store.split(name)
        batch = split.batch(torch.arange(len(split)))
        for place, row in enumerate(rows):
            like = row["like"] if row["asked"] == 1 else None
            kind = None if row["kind"] is None else float(row["kind"] in ("a", "7"))
            wanted = [float(row["click"]), like, kind]
            assert [None if np.isnan(v) else v for v in batch.labels[place].tolist()] == wanted
            user = int(batch.users[place])
            if row["user_id"] is None:
                assert user == 0
            else:
                assert numbers.setdefault(row["user_id"], user) == user > 0
                assert (user >= store.schema.fields[0].vocab_size) == (row["user_id"] not in known)
    assert len(set(numbers.values())) == len(numbers)


@pytest.mark.parametrize(("keep", "wanted"), [("heaviest", [0, 1, 2]), ("first", [0, 1, 2]), ("last", [27, 28, 29])])
def test_what_stays_of_a_list_that_is_cut(tmp_path: Path, keep: str, wanted: list[int]) -> None:
    frame = pl.DataFrame({"h": [list(range(30))] * 60, "click": [0, 1] * 30, "day": ([1] * 4 + [3] * 4 + [4] * 4) * 5})
    frame.write_parquet(tmp_path / "t.parquet")
    store = made(
        tmp_path,
        tmp_path / "t.parquet",
        fields={"h": {"kind": "ids", "max_values": 3, "keep": keep}},
        tasks={"click": "click"},
        user=None,
    )
    batch = store.split("train").batch(torch.tensor([0]))
    values = store.vocabulary("h")["value"].to_list()
    assert [int(values[int(i) - 1]) for i in batch.bag_ids] == wanted
    assert "keep" in str(store.content["notes"]["lists_of_h"])


def test_ids_that_merge_as_floats_are_refused(tmp_path: Path) -> None:
    from dlen.errors import UserError

    frame = log(0).with_columns(user_id=pl.col("user_id").cast(pl.Float64) + 2.0**60)
    frame.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"user_id: .*Float64"):
        made(tmp_path, tmp_path / "t.parquet")


def test_times_are_instants(base: tuple[Store, Split]) -> None:
    """The hour of a row is the hour of its timestamp in UTC."""
    store, first = base[0], next(r for r in log(0).iter_rows(named=True) if r["day"] < 3)
    batch = store.split("train").batch(torch.tensor([0]))
    hour = [f.name for f in store.schema.fields if f.kind == "id"].index("shown_hour")
    wanted = datetime.fromtimestamp(first["ts"], UTC).hour + 1
    assert int(batch.ids[0, hour]) - store.schema.offsets["shown_hour"] == wanted
