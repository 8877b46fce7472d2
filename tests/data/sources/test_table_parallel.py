"""A table prepared in pieces: the same store whatever the number of processes, and the rows of a single piece."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from dlen.data import parallel
from dlen.data.prepare import Source, prepare
from dlen.data.sources import table_file, table_pieces
from dlen.data.sources.table import Table
from dlen.data.sources.table_passes import TablePasses
from dlen.data.store import Store
from dlen.progress import Stage
from tests.data.helpers import left_in, refusal, tensors_of, whole
from tests.data.pieces import FAILED, killed, squared

ROWS = 300
SPEC: dict[str, Any] = {
    "files": "log-*",
    "fields": {
        "user": {"side": "user", "min_count": 2},
        "item": {"side": "item"},
        "hashed": {"column": "item", "hash": 7},
        "last": {"share": "item", "side": "user"},
        "tags": {"kind": "ids", "max_values": 2},
        "scores": {"kind": "ids", "weight_separator": ":", "pooling": "sum"},
        "price": {"kind": "numeric"},
        "long": {"kind": "numeric", "transform": "log1p", "column": "price"},
        "bucket": {"kind": "numeric", "transform": "quantile", "buckets": 5, "column": "price"},
        "at": {"kind": "time", "column": "time", "parts": ["hour", "weekday"]},
        "liked": {"kind": "sequence", "share": "item", "side": "user", "max_values": 3},
        "how": {"kind": "sequence", "along": "liked", "side": "user"},
        "before": {"history": {"of": ["item"], "by": "user", "labels": ["click"], "length": 4}, "side": "user"},
        "ctr": {"rate": {"of": "click", "by": "item"}},
        "times": {"count": {"by": "user"}, "side": "user"},
        "face": {"kind": "vector"},
        "cover": {"kind": "vector", "side": "item"},
        "seconds": {"kind": "view", "buckets": 3, "of": "click"},
    },
    "tasks": {
        "click": "click",
        "like": {"label": "like", "observed_where": "click"},
        "watch": {"kind": "regression", "label": "watch"},
    },
    "joins": {"items": {"file": "items.csv", "key": "id", "by": "item"}},
    "weight": "weight",
    "where": "spam == 0",
    "user": "user",
    "split": {"by": "time", "column": "time", "validation": 0.2, "test": 0.2, "allow_one_class": True},
}


def rows(seed: int) -> list[dict[str, Any]]:
    """A log with everything that may be missing."""
    rng = random.Random(seed)

    def some(values: str, most: int) -> list[str]:
        return [rng.choice(values) for _ in range(rng.randrange(most))]

    found = []
    for number in range(ROWS):
        liked = some("pqrst", 5)
        face = [f"{rng.gauss(0, 1):.3f}" for _ in range(3)]
        found.append(
            {
                "user": rng.choice(["", *(f"u{n}" for n in range(number // 6 + 2))]),
                "item": rng.choice(["", *"pqrstvw"]),
                "last": rng.choice("pqrz"),
                "tags": "|".join(some("abcdef", 5)),
                "scores": "|".join(f"{tag}:{rng.random():.2f}" for tag in some("abc", 4)),
                "price": rng.choice(["", f"{rng.lognormvariate(2, 1):.2f}"]),
                "time": 1_700_000_000 + 600 * number + rng.randrange(3000),
                "liked": "|".join(liked),
                "how": "|".join(rng.choice("uv") for _ in liked),
                "face": rng.choice(["", "|".join(face)]),
                "seconds": rng.choice(["", rng.randrange(90)]),
                "click": (click := rng.randrange(2)),
                "like": click * rng.randrange(2) if rng.random() < 0.8 else "",
                "watch": rng.choice(["", f"{rng.random():.3f}"]),
                "weight": rng.choice([0.5, 1, 2.25]),
                "spam": int(rng.random() < 0.1),
            }
        )
    return found


def table(folder: Path, kind: str = "csv", **changes: Any) -> Path:
    """Write a log in two files, its items and its YAML, and return the path of the YAML."""
    folder.mkdir(parents=True)
    for seed in range(2):
        frame = pl.DataFrame({name: [str(row[name]) for row in rows(seed)] for name in rows(0)[0]})
        if kind == "csv":
            frame.write_csv(folder / f"log-{seed}.csv", quote_style="necessary")
        else:
            frame.write_parquet(folder / f"log-{seed}.parquet", row_group_size=40)
    covers = ["id,cover", *(f"{item},{place}|{place * 2}|0.5" for place, item in enumerate("pqrst"))]
    (folder / "items.csv").write_text("\n".join(covers) + "\n")
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC | changes, sort_keys=False))
    return folder / "spec.yaml"


def made(spec: Path, name: str, monkeypatch: pytest.MonkeyPatch, rows_of_a_piece: int, workers: int = 1) -> Store:
    monkeypatch.setattr(table_pieces, "ROWS", rows_of_a_piece)
    return prepare(Table(str(spec)), spec.parent / name, workers)


def bytes_of(store: Store) -> dict[str, bytes]:
    """The bytes of every file, without the time that preparing took."""
    paths = [path for path in sorted(store.folder.rglob("*")) if path.is_file() and path.name != "store.json"]
    content = {str(path.relative_to(store.folder)): path.read_bytes() for path in paths}
    kept = store.content | {"notes": {k: v for k, v in store.content["notes"].items() if k != "prepare_seconds"}}
    return content | {"store.json": json.dumps(kept).encode()}


def same_rows(store: Store, wanted: Store) -> None:
    """The same batches, up to rounding of numbers that are scaled by statistics of all rows."""
    for name in ("train", "validation", "test"):
        found, expected = (tensors_of(whole(s.split(name))) for s in (store, wanted))
        for part, values in expected.items():
            assert torch.allclose(found[part].double(), values.double(), rtol=1e-5, atol=1e-6, equal_nan=True), part
        assert store.labels_identity(name) == wanted.labels_identity(name)
    assert torch.equal(store.counts, wanted.counts)
    assert store.unknown == wanted.unknown


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_pieces_have_the_rows_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    spec = table(tmp_path / "t", kind)
    wanted = made(spec, "whole", monkeypatch, 1 << 20)
    store = made(spec, "pieces", monkeypatch, 70)
    assert (len(wanted.shards), len(store.shards)) == (1, 9)
    same_rows(store, wanted)
    notes = (s.content["notes"] | {"prepare_seconds": 0} for s in (store, wanted))
    assert next(notes) == next(notes)


@pytest.mark.slow
def test_three_processes_write_the_bytes_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = table(tmp_path / "t")
    one = bytes_of(made(spec, "one", monkeypatch, 70))
    for method in ("learn", "encode"):  # a piece that fails in a worker would be repeated here
        monkeypatch.setattr(TablePasses, method, None)
    three = bytes_of(made(spec, "three", monkeypatch, 70, 3))
    assert list(one) == list(three)
    for name, content in one.items():
        assert three[name] == content, name


@pytest.mark.parametrize(
    ("line", "broken"),
    [(200, {"price": "cheap"}), (250, {"face": "1|2"}), (120, {"time": "2023-11-14"}), (290, {"click": "7"})],
)
def test_an_error_in_a_piece_is_that_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: int, broken: dict[str, str]
) -> None:
    monkeypatch.setattr(table_file, "CHUNK", 35)  # a message names the first bad row of a chunk
    spec = table(tmp_path / "t")
    log = spec.parent / "log-0.csv"
    frame = pl.read_csv(log, infer_schema=False).with_row_index("row")
    here = pl.when(pl.col("row") == line)
    cells = (here.then(pl.lit(text)).otherwise(pl.col(name)).alias(name) for name, text in broken.items())
    frame.with_columns(cells).drop("row").write_csv(log)
    said = [refusal(partial(made, spec, f"{rows}", monkeypatch, rows)) for rows in (1 << 20, 70)]
    assert said[0] == said[1]
    assert str(log) in said[0]
    assert left_in(spec.parent / "70") == [".files.json"] * (spec.parent / "70" / ".files.json").exists()


def test_bad_rows_of_all_pieces_count_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table_file, "CHUNK", 35)
    spec = table(tmp_path / "t")
    log, said = spec.parent / "log-1.csv", []
    frame = pl.read_csv(log, infer_schema=False).with_row_index("row")
    bad = pl.when(pl.col("row").is_in([3, 80, 81, 200])).then(pl.lit("x"))
    frame.with_columns(click=bad.otherwise(pl.col("click"))).drop("row").write_csv(log)
    for rows_of_a_piece in (1 << 20, 70):
        monkeypatch.setattr(table_pieces, "ROWS", rows_of_a_piece)
        data = spec.parent / f"{rows_of_a_piece}"
        store = prepare(Table(str(spec), bad_rows=4), data)
        assert store.content["notes"]["bad_rows_left_out"] == 4
        said.append(refusal(partial(prepare, Table(str(spec), bad_rows=3), data)))
        said.append("".join(line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")))
    assert said[:2] == said[2:]
    assert "row 202: " in said[0]


def check_interruption(
    source: Source, folder: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, *, finished: int
) -> None:
    """Interrupt the preparation of a log after some shards, and check that the next one writes only the others.

    Args:
        owner: class with the method that writes a shard.
        method: its name.
        finished: number of shards before the interruption.
    """
    wanted = bytes_of(prepare(source, folder / "clean"))
    write, written, most = getattr(owner, method), list[Any](), finished

    def watched(*arguments: Any) -> Any:
        if len(written) == most:
            raise KeyboardInterrupt
        written.append(arguments[-2])
        return write(*arguments)

    monkeypatch.setattr(owner, method, watched)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, folder / "data")
    assert not list((folder / "data").rglob("store.json"))
    most = 100
    store = prepare(source, folder / "data")
    assert len(written) == len({str(piece) for piece in written}) == len(store.shards) > finished
    assert bytes_of(store) == wanted
    assert [path.name for path in store.folder.parent.iterdir() if path.is_dir()] == [store.folder.name]


def test_an_interrupted_preparing_goes_on_with_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_pieces, "ROWS", 70)
    source = Table(str(table(tmp_path / "t")))
    check_interruption(source, tmp_path, monkeypatch, TablePasses, "encode", finished=3)


@pytest.mark.slow
def test_a_killed_process_is_started_again(tmp_path: Path) -> None:
    state = tmp_path / "state"
    parallel.save_state(state, tmp_path)
    with parallel.Workers(parallel.LocalPool(2), 5) as workers, Stage("squares", 5, "numbers") as stage:
        assert list(workers.in_order(squared, state, range(5), stage)) == [0, 1, 4, FAILED, 16]
        assert "killed 3 times" in refusal(lambda: list(workers.in_order(killed, state, range(5), stage)))
