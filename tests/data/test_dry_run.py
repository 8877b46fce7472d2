"""A dry run against the store that is then prepared: exact where it says so, near where it estimates."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from dlen.data import dry_run as module
from dlen.data.dry_run import Forecast, dry_run
from dlen.data.prepare import Source, prepare
from dlen.data.sources import raw_pieces
from dlen.data.sources.aliccp import AliCCP
from dlen.data.sources.aliccp_demo import AliCCPDemo
from dlen.data.sources.feed import Feed
from dlen.data.sources.table import Table
from dlen.data.sources.table_spec import TableSpec
from dlen.data.store import Store
from dlen.nn.embedding import EmbeddingTable
from tests.conftest import ROOT
from tests.data.helpers import TinySource, make_table, refusal

ROWS = 12_000
SPEC: dict[str, Any] = {
    "fields": {
        "user": {"kind": "id", "side": "user", "min_count": 2},
        "item": {"kind": "id", "side": "item"},
        "city": {"kind": "id", "hash": 50},
        "tags": {"kind": "ids", "side": "item", "max_values": 2},
        "seen": {"kind": "sequence", "share": "item"},
        "how": {"kind": "sequence", "along": "seen"},
        "price": {"kind": "numeric"},
        "bucket": {"kind": "numeric", "column": "price", "transform": "quantile", "buckets": 5},
        "caption": {"kind": "vector"},
        "time": {"kind": "time"},
        "item_rate": {"rate": {"of": "click", "by": "item"}},
        "last": {"history": {"of": "item", "by": "user", "length": 3}},
    },
    "tasks": {"click": {"label": "click"}},
    "user": "user",
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Pieces of a few rows, so that a small log is sampled; returns the folder of temporary files."""
    monkeypatch.setattr(raw_pieces, "PIECE", 1 << 13)
    monkeypatch.setattr(raw_pieces, "_ROWS", (16, 128))
    monkeypatch.setattr(module, "_PIECES", (4, 16))
    monkeypatch.setattr("dlen.data.sources.feed._ROWS_PER_PIECE", 128)
    monkeypatch.setattr("dlen.data.sources.aliccp_demo._ROWS_PER_PIECE", 290)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def log(rows: int = ROWS, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    values = {name: rng.integers(0, most, rows) for name, most in {"a": 40, "b": 40, "s": 500, "h": 9}.items()}
    frame = pl.DataFrame(
        {
            "user": np.repeat(rng.integers(0, 900, rows // 4 + 1), 4)[:rows],
            "item": (700 * rng.random(rows) ** 2).astype(int),
            "city": rng.integers(0, 30, rows),
            "price": rng.gamma(2.0, 10.0, rows).round(2),
            "time": 1_700_000_000 + 60 * np.arange(rows),
            "click": rng.integers(0, 2, rows),
            **values,
        }
    )
    return frame.with_columns(
        tags=pl.format("t{}|t{}", "a", "b"),
        seen=pl.format("{}|{}", "s", "item"),
        how=pl.format("{}|{}", "h", "a"),
        caption=pl.format("{}|0.5|{}", "price", "h"),
    ).drop("a", "b", "s", "h")


def ids_of(store: Store) -> dict[str, int]:
    """Rows of the table by field."""
    return {field.name: field.vocab_size for field in store.schema.owners}


def size_of(store: Store) -> int:
    return sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file())


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_near(forecast: Forecast, store: Store) -> None:
    """Rows, bytes and ids within a third; and estimates are called that."""
    assert not forecast.whole
    assert "about" in forecast.described(Path())
    for split, rows in forecast.rows.items():
        assert rows == pytest.approx(len(store.split(split)), rel=0.3), split
    assert sum(forecast.rows.values()) == pytest.approx(ROWS, rel=0.1)
    assert forecast.store == pytest.approx(size_of(store), rel=0.15)
    for name, size in ids_of(store).items():
        assert forecast.sizes[name] == pytest.approx(size, rel=0.3), name
    assert forecast.seconds > 0
    assert forecast.memory > 1 << 20


def written(frame: pl.DataFrame, path: Path) -> None:
    packed: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".xz": lzma.compress}
    if path.suffix == ".parquet":
        frame.write_parquet(path, row_group_size=1000)
    else:
        path.write_bytes(packed.get(path.suffix, bytes)(frame.write_csv().encode()))


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.csv.gz", "t.csv.xz"])
def test_a_table_is_told_from_pieces_of_it(name: str, tmp_path: Path, small_pieces: Path) -> None:
    source = make_table(tmp_path / "raw", SPEC, name)
    written(log(), tmp_path / "raw" / name)
    before = files_in(tmp_path / "raw")
    forecast = dry_run(source)
    assert files_in(tmp_path / "raw") == before
    assert not list(small_pieces.iterdir())
    assert not (tmp_path / "data").exists()
    assert forecast.sampled < ROWS / 2
    if name == "t.parquet":
        assert sum(forecast.rows.values()) == pytest.approx(ROWS, abs=3)
    check_near(forecast, prepare(Table(str(source.path)), tmp_path / "data"))


def test_the_beginning_of_an_archive_ends_after_a_row(tmp_path: Path) -> None:
    text = log().write_csv().encode()
    (tmp_path / "t.csv.bz2").write_bytes(bz2.compress(text))
    (measured,) = raw_pieces.measure([tmp_path / "t.csv.bz2"])
    taken = raw_pieces.take(measured, tmp_path / "sample" / "t.csv.bz2", 5, TableSpec(quote=""))
    sampled = taken.path.read_bytes()
    assert text.startswith(sampled)
    assert sampled.endswith(b"\n")
    assert len(sampled) == pytest.approx(5 * raw_pieces.PIECE, abs=100)
    assert [sampled.split(b"\n")[start - 1] for start in taken.starts] == [
        text.split(b"\n")[start - 1] for start in taken.starts
    ]
    assert len(taken.starts) == 5


FORMS: dict[str, tuple[dict[str, Any], Callable[[str], bytes]]] = {
    "no header": (
        {"header": False, "columns": log(1).columns},
        lambda text: text.partition("\n")[2].encode(),
    ),
    "comments": ({"comment": "#"}, lambda text: b"# made today\n" + text.replace("\n", "\n# a row\n").encode()),
    "a mark, and blank lines": ({}, lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\n\n").encode()),
    "windows lines": ({}, lambda text: text.replace("\n", "\r\n").encode()),
    "utf-16": ({"encoding": "utf-16"}, lambda text: text.encode("utf-16")),
    "latin-1": ({"encoding": "latin-1"}, lambda text: text.replace("t1", "\xe91").encode("latin-1")),
    "quotes": ({}, lambda text: _quoted(text, "t1|", '"a ""b"", c|')),
    "line breaks in cells": ({}, lambda text: _quoted(text, "t1|", '"a\nb,c|')),
}


def _quoted(text: str, old: str, new: str) -> bytes:
    """Rows with another beginning of their tags, whose cell is quoted."""
    lines = text.splitlines()
    cells = (line.split(",") for line in lines)
    return "".join(
        ",".join(new + cell.removeprefix(old) + '"' if cell.startswith(old) else cell for cell in row) + "\n"
        for row in cells
    ).encode()


@pytest.mark.parametrize("name", FORMS)
def test_text_is_cut_between_rows(name: str, tmp_path: Path) -> None:
    settings, form = FORMS[name]
    source = make_table(tmp_path / "raw", SPEC | settings, text=form(log().write_csv()))
    check_near(dry_run(source), prepare(Table(str(source.path)), tmp_path / "data"))


def test_files_for_splits_and_joins(tmp_path: Path) -> None:
    """Each split has its own share; a joined table is read as a whole, and has each vector once."""
    raw, frame = tmp_path / "raw", log().drop("caption")
    raw.mkdir()
    for number in range(8):
        frame[number * 1200 : (number + 1) * 1200].write_csv(raw / f"day-{number}.csv")
    frame[9600:].write_parquet(raw / "test.parquet")
    items = pl.DataFrame({"item": np.arange(700), "brand": np.arange(700) % 50})
    items.with_columns(caption=pl.concat_list(pl.col("item") % 7, "brand", "item")).write_parquet(raw / "items.parquet")
    spec = SPEC | {
        "fields": SPEC["fields"] | {"brand": {"kind": "id"}},
        "files": {"train": "day-*.csv", "test": "test.parquet"},
        "joins": {"items": {"file": "items.parquet", "by": "item"}},
        "split": {"validation": 0.2},
    }
    source = make_table(raw, spec)
    check_near(dry_run(source), prepare(Table(str(source.path)), tmp_path / "data"))


def test_partitions_and_where_hold_in_the_sample(tmp_path: Path) -> None:
    """Folders are columns of the sampled files as well; half of the days are read, and of them half of the rows."""
    frame, raw = log(2 * ROWS), tmp_path / "raw"
    for day in range(16):
        (raw / "log" / f"day={day}").mkdir(parents=True)
        frame[day * ROWS // 8 : (day + 1) * ROWS // 8].write_csv(raw / "log" / f"day={day}" / "part.csv")
    fields = SPEC["fields"] | {"day": {"kind": "id"}}
    fields.pop("item_rate")
    spec = SPEC | {"files": "log", "fields": fields, "where": "day < 8 and city < 15"}
    source = make_table(raw, spec)
    forecast, store = dry_run(source), prepare(source, tmp_path / "data")
    assert sum(forecast.rows.values()) == pytest.approx(ROWS / 2, rel=0.1)
    assert forecast.sizes["day"] == ids_of(store)["day"] == 1 + 8
    assert forecast.store == pytest.approx(size_of(store), rel=0.15)


def test_what_the_sample_lacks_is_no_fault(tmp_path: Path) -> None:
    """A value of the split, and the positives of a task, that are in one row in a thousand."""
    day = pl.Series(["later"] * 6 + ["last"] * 6 + ["first"] * (ROWS - 12))
    frame = log().with_columns(day=day, rare=(pl.int_range(ROWS) % 1000 < 12).cast(pl.Int8))
    split = {"by": "column", "column": "day", "validation": ["later"], "test": ["last"], "allow_one_class": True}
    spec = {"fields": {"item": {}}, "tasks": {"rare": {"label": "rare"}}, "split": split, "ignore": "rest"}
    source = make_table(tmp_path, spec)
    frame.write_csv(tmp_path / "t.csv")
    assert dry_run(source).rows["train"] == pytest.approx(ROWS, rel=0.1)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.csv.gz"])
def test_a_small_table_is_known(name: str, tmp_path: Path) -> None:
    source = make_table(tmp_path / "raw", SPEC, name)
    written(log(300), tmp_path / "raw" / name)
    forecast, store = dry_run(source), prepare(Table(str(source.path)), tmp_path / "data")
    check_known(forecast, store)
    assert forecast.whole
    users = [store.schema.rows("user").stop - store.schema.rows("user").start]
    for least in (2, 5, 10):
        spec = yaml.safe_load((tmp_path / "raw" / "spec.yaml").read_text())
        spec["fields"]["user"]["min_count"] = least
        store = prepare(make_table(tmp_path / "raw", spec, name), tmp_path / "data")
        users.append(ids_of(store)["user"])
        assert forecast.ids["user"].left(least) == users[-1] - 1
    assert f"with min_count 2, 5, 10: {users[1] - 1}, {users[2] - 1}, {users[3] - 1}" in forecast.described(tmp_path)


def check_known(forecast: Forecast, store: Store) -> None:
    """Everything but time and memory is that of the store; its own file of settings is a little longer."""
    assert forecast.rows == store.rows
    assert forecast.sizes == ids_of(store)
    assert forecast.exact
    assert forecast.store == pytest.approx(size_of(store), abs=4096)


def test_the_simulator_is_known(tmp_path: Path) -> None:
    source = Feed(rows=20_000, users=300, items=200, positions=5, play_time=1.0)
    forecast, store = dry_run(source), prepare(source, tmp_path)
    assert forecast.sampled == 16 * 128
    assert forecast.sizes == ids_of(store)
    assert forecast.exact
    assert sum(forecast.rows.values()) == pytest.approx(20_000, abs=2)
    assert forecast.store == pytest.approx(size_of(store), abs=2048)
    check_known(dry_run(Feed(rows=1000)), prepare(Feed(rows=1000), tmp_path))


def test_ali_ccp_is_told_from_pieces_of_its_files(
    tmp_path: Path, small_pieces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AliCCPDemo(str(tmp_path / "raw"), rows=9600).files()
    monkeypatch.setattr("dlen.data.sources.aliccp_sample.PIECE", 1 << 17)
    source, before = AliCCP(str(tmp_path / "raw"), min_count=3), files_in(tmp_path / "raw")
    forecast = dry_run(source)
    assert files_in(tmp_path / "raw") == before
    assert not list(small_pieces.iterdir())
    assert forecast.sampled < ROWS / 2
    store = prepare(source, tmp_path / "data")
    assert sum(forecast.rows.values()) == pytest.approx(ROWS, rel=0.05)
    assert forecast.store == pytest.approx(size_of(store), rel=0.15)
    for name, size in ids_of(store).items():
        assert forecast.sizes[name] == pytest.approx(size, rel=0.4, abs=20), name


def test_small_files_of_ali_ccp_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AliCCPDemo(str(tmp_path / "raw"), rows=600).files()
    monkeypatch.setattr("dlen.data.sources.aliccp_sample.PIECE", 1 << 20)
    source = AliCCP(str(tmp_path / "raw"), min_count=3)
    check_known(dry_run(source), prepare(source, tmp_path / "data"))


def test_the_demo_draws_nothing_into_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlen.data.sources.aliccp_sample.PIECE", 1 << 20)
    forecast = dry_run(AliCCPDemo(str(tmp_path / "raw"), rows=11_600))
    assert not (tmp_path / "raw").exists()
    assert sum(forecast.rows.values()) == pytest.approx(11_600 * 1.25, rel=0.05)
    assert not forecast.exact


def test_the_table_takes_what_a_table_takes(tmp_path: Path) -> None:
    source = make_table(tmp_path, {**SPEC, "fields": SPEC["fields"] | {"user": {"kind": "id", "dim": 4}}})
    log(300).write_csv(tmp_path / "t.csv")
    dim = yaml.safe_load((ROOT / "conf/model/embedding/table.yaml").read_text())["dim"]
    schema = prepare(source, tmp_path / "data").schema
    tables = [EmbeddingTable(own, own_dim or dim, first_order=True).weight for own_dim, own in schema.by_dim.items()]
    size = sum(table.nbytes for table in tables)
    assert list(dry_run(source).tables.values()) == [size, 3 * size, size + 4 * schema.num_embeddings]


@pytest.mark.parametrize("rows", [300, ROWS])
def test_a_bad_cell_is_named_in_the_file_of_the_log(rows: int, tmp_path: Path) -> None:
    frame = log(rows).with_columns(price=pl.when(pl.int_range(rows) % 100 == 0).then(pl.lit("x")).otherwise("price"))
    source = make_table(tmp_path, SPEC, text=frame.write_csv())
    message = refusal(lambda: dry_run(source))
    assert message.startswith(f"{tmp_path / 't.csv'}, row ")
    assert (" of a sample: column price" in message) == (rows == ROWS)
    assert "'x'" in message


CASES = [
    *("a missing file", "a missing folder", "an archive", "a torn archive"),
    *("a torn Parquet file", "a Parquet file without rows", "wrong widths", "a source of one's own"),
]


def bad_sources(folder: Path) -> dict[str, tuple[Source, str]]:
    folder.mkdir(exist_ok=True)
    (folder / "zip.csv").write_bytes(b"PK\x03\x04" + bytes(1 << 20))
    (folder / "torn.csv.gz").write_bytes(b"\x1f\x8b" + bytes(1 << 20))
    (folder / "torn.parquet").write_bytes(b"PAR1" + bytes(1 << 20))
    (folder / "wide.csv").write_text(log().write_csv().replace(",1,", ",1,2,"))
    log().clear().write_parquet(folder / "empty.parquet")
    names = ("zip.csv", "wide.csv", "torn.csv.gz", "torn.parquet", "empty.parquet")
    paths = {name: make_table(folder / f"of {name}", SPEC | {"files": f"../{name}"}) for name in names}
    return {
        "a missing file": (make_table(folder / "none", SPEC | {"files": "none.csv"}), "none.csv: no such file"),
        "a missing folder": (AliCCP(str(folder / "none")), "no such file"),
        "an archive": (paths["zip.csv"], "is a zip archive"),
        "a torn archive": (paths["torn.csv.gz"], "cannot be decompressed"),
        "a torn Parquet file": (paths["torn.parquet"], "cannot be read"),
        "a Parquet file without rows": (paths["empty.parquet"], "empty.parquet: has no rows"),
        "wrong widths": (paths["wide.csv"], "columns instead of"),
        "a source of one's own": (TinySource(), "config dry_run: TinySource has no method sample()"),
    }


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line(case: str, tmp_path: Path, small_pieces: Path) -> None:
    source, said = bad_sources(tmp_path / "raw")[case]
    message = refusal(lambda: dry_run(source))
    assert said in message
    assert str(small_pieces) not in message
    assert not list(small_pieces.iterdir())
