"""Vectors of a table, in its rows and in a joined table, against a slow reading; new rows get them too."""

from __future__ import annotations

import copy
import json
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from dlen.batch import Batch
from dlen.data.prepare import prepare
from dlen.data.sources import table_file, table_vectors
from dlen.data.sources.table import Table
from dlen.data.split import tensors
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.schema import Kind
from tests.data.helpers import arrays, check_resident_copy, make_table, numbers_of, refusal, whole

N = 160
Row = dict[str, Any]
Vectors = dict[str, list[float] | None]
SPEC: dict[str, Any] = {
    "joins": {"videos": {"file": "videos*.parquet", "by": "video", "key": "id"}},
    "fields": {
        "n": {"kind": "numeric"},
        "video": {"side": "item"},
        "caption": {"kind": "vector", "side": "item"},
        "length": {"kind": "numeric", "side": "item"},
        "face": {"kind": "vector", "column": "faces", "side": "user"},
    },
    "tasks": {"click": "click"},
    "ignore": [],
}


def draw() -> tuple[list[Row], Vectors]:
    """A log with empty cells, and the vectors of its videos; one video has none, and another is not in the table."""
    rng = np.random.default_rng(0)
    vectors: Vectors = {f"v{i}": (rng.normal(size=4) * [1, 2, 3, 0.1] + 5).tolist() for i in range(30)}
    vectors["v3"] = None
    rows = []
    for n in range(N):
        face = None if n % 7 == 0 else rng.normal(size=2).round(3).tolist()
        rows.append({"n": n, "video": f"v{rng.integers(25)}", "faces": face, "click": int(rng.integers(2))})
        rows[-1]["video"] = None if n % 11 == 0 else rows[-1]["video"]
    del vectors["v5"]
    return rows, vectors


def write_videos(folder: Path, vectors: Vectors) -> None:
    """The joined table in two files."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pl.DataFrame({"id": list(vectors), "caption": list(vectors.values()), "length": range(len(vectors))})
    for number, part in enumerate((table[:11], table[11:])):
        part.write_parquet(folder / f"videos{number}.parquet")


def as_text(rows: list[Row]) -> str:
    return pl.DataFrame([r | {"faces": json.dumps(r["faces"]) if r["faces"] else ""} for r in rows]).write_csv()


def store_of(folder: Path, rows: list[Row], vectors: Vectors, spec: dict[str, Any] = SPEC) -> Store:
    write_videos(folder, vectors)
    return prepare(make_table(folder, spec, "t.csv", as_text(rows)), folder / "data")


def told(store: Store, batch: Batch) -> list[dict[str, list[float]]]:
    """The vectors of each row by name."""
    fields = store.schema.of_kind(Kind.VECTOR)
    lists = [vectors.tolist() for vectors in batch.vectors]
    return [{f.name: column[row] for f, column in zip(fields, lists, strict=True)} for row in range(len(batch))]


def features(store: Store) -> dict[int, dict[str, list[float]]]:
    """The vectors of all rows, by row number."""
    return {
        n: vectors
        for name in ("train", "validation", "test")
        for n, vectors in zip(numbers_of(store, name), told(store, whole(store.split(name))), strict=True)
    }


def slow(training: list[Row], rows: list[Row], vectors: Vectors) -> dict[int, dict[str, list[float]]]:
    """The definition: minus the mean of each dimension, divided by the root of the mean variance; 0 if missing."""
    found: dict[int, dict[str, list[float]]] = {row["n"]: {} for row in rows}
    for name, size in (("caption", 4), ("face", 2)):

        def raw(row: Row, name: str = name) -> list[float] | None:
            value: list[float] | None = vectors.get(row["video"]) if name == "caption" else row["faces"]
            return value

        known = np.array([raw(row) for row in training if raw(row) is not None])
        mean, deviation = known.mean(0), known.var(0).mean() ** 0.5
        for row in rows:
            value = raw(row)
            found[row["n"]][name] = [0.0] * size if value is None else ((np.array(value) - mean) / deviation).tolist()
    return found


def check_close(found: dict[int, dict[str, list[float]]], wanted: dict[int, dict[str, list[float]]]) -> None:
    assert found.keys() == wanted.keys()
    for n, vectors in wanted.items():
        for name, vector in vectors.items():
            assert found[n][name] == pytest.approx(vector, rel=1e-5, abs=1e-6), (n, name)


@pytest.mark.parametrize(("chunk", "piece"), [(23, 9), (1 << 17, 1 << 22)])
def test_every_row_of_every_split_has_its_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, piece: int
) -> None:
    monkeypatch.setattr(table_file, "CHUNK", chunk)
    monkeypatch.setattr(table_vectors, "_PIECE", piece)
    rows, vectors = draw()
    store = store_of(tmp_path, rows, vectors)
    training = [rows[n] for n in numbers_of(store, "train")]
    assert 0 < len(training) < N
    check_close(features(store), slow(training, rows, vectors))
    assert [(f.name, f.side, f.size) for f in store.schema.of_kind(Kind.VECTOR)] == [
        ("caption", "item", 4),
        ("face", "user", 2),
    ]
    missing = sum(vectors.get(row["video"]) is None for row in rows) / N
    assert store.content["notes"]["vectors_of_caption"] == f"4 numbers; {missing:.2%} of rows have none"


def test_a_joined_vector_is_stored_once_and_only_if_a_row_has_it(tmp_path: Path) -> None:
    rows, vectors = draw()
    store = store_of(tmp_path, rows, vectors)
    captions, faces = ({row[key] for row in rows} for key in ("video", "n"))
    used = [video for video in captions if vectors.get(video) is not None]
    written = store.content["arrays"] | store.shards[0]["arrays"]
    shapes = {name: written[f"vectors/{name}/values"]["shape"] for name in ("caption", "face")}
    assert shapes["caption"] == [1 + len(used), 4]
    assert shapes["face"] == [1 + sum(row["faces"] is not None for row in rows), 2]
    assert len(used) < len(vectors) - 1
    assert len(faces) == N


def test_new_rows_have_their_vectors_also_of_new_ids(tmp_path: Path) -> None:
    rows, vectors = draw()
    store = store_of(tmp_path, rows, vectors)
    training = [rows[n] for n in numbers_of(store, "train")]
    write_videos(tmp_path, vectors | {"new": [1.0, 2.0, 3.0, 4.0]})
    later = [{"n": N + i, "video": video, "faces": [0.5, i]} for i, video in enumerate(("new", "v1", "nowhere"))]
    (tmp_path / "new.csv").write_text(as_text([{**row, "click": 0} for row in (*rows, *later)]))
    source = Table(str(tmp_path / "spec.yaml"))
    chunks = list(source.read_keeping(tmp_path / "new.csv", store, ["n", "caption"]))
    batches = [told(store, whole(split)) for split, _ in chunks]
    numbers = [n for _, kept in chunks for n in kept["n"].cast(pl.Int64)]
    wanted = slow(training, [*rows, *later], vectors | {"new": [1.0, 2.0, 3.0, 4.0]})
    check_close(dict(zip(numbers, [row for batch in batches for row in batch], strict=True)), wanted)
    kept = [caption for _, frame in chunks for caption in frame["caption"].to_list()]
    assert kept[-3:] == [[1.0, 2.0, 3.0, 4.0], vectors["v1"], None]  # as they are, beside the rows


@pytest.mark.parametrize("form", ["array", "list of texts", "separator", "numpy", "brackets"])
def test_other_forms_of_the_same_vectors(tmp_path: Path, form: str) -> None:
    rows, vectors = draw()
    spec, frame = copy.deepcopy(SPEC), pl.DataFrame(rows)
    write_videos(tmp_path, vectors)
    if form in ("array", "list of texts"):
        other = {"array": pl.Array(pl.Float64, 2), "list of texts": pl.List(pl.String)}[form]
        frame = frame.with_columns(pl.col("faces").cast(other))
    else:
        between = {"separator": "%s;%s", "numpy": "[ %s  %s]", "brackets": "[%s, %s]"}[form]
        faces = [None if row["faces"] is None else between % tuple(row["faces"]) for row in rows]
        frame = frame.with_columns(faces=pl.Series(faces, dtype=pl.String))
    spec["fields"]["face"]["separator"] = ";"
    table = make_table(tmp_path, spec | {"files": "t.parquet"})
    frame.write_parquet(tmp_path / "t.parquet")
    store = prepare(table, tmp_path / "data")
    check_close(features(store), slow([rows[n] for n in numbers_of(store, "train")], rows, vectors))


def test_a_resident_copy_gives_the_same_vectors(tmp_path: Path) -> None:
    split = store_of(tmp_path, *draw()).split("train")
    check_resident_copy(split, index := torch.tensor([5, 0, 40, 5]))
    assert split.bytes > sum(array.nbytes for array in tensors(split.vectors)) > 0
    moved = split.batch(index).to("meta").vectors
    assert [v.shape for v in moved] == [(4, 4), (4, 2)]


def test_a_constant_vector_is_0_and_its_scale_1(tmp_path: Path) -> None:
    rows, vectors = draw()
    store = store_of(tmp_path, [r | {"faces": [0.1, 7.3]} for r in rows], vectors)
    assert store.content["statistics"]["face"]["deviation"] == 1
    assert whole(store.split("test")).vectors[1].abs().max() < 1e-6


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("[1, 2, 3]", "t.csv, row 9: column faces: has 3 numbers, but other vectors have 2"),
        ("[1, null]", "t.csv, row 9: column faces: None is not a finite number of 32 bits"),
        ("[1, nan]", "t.csv, row 9: column faces: None is not a finite number of 32 bits"),
        ("[1, inf]", "t.csv, row 9: column faces: 'inf' is not a finite number of 32 bits"),
        ("[1, 1e40]", "t.csv, row 9: column faces: '1e40' is not a finite number of 32 bits"),
        ("[1, x]", "t.csv, row 9: column faces: 'x' is not a finite number of 32 bits"),
    ],
)
def test_a_wrong_vector_is_named_by_its_row(tmp_path: Path, cell: str, said: str) -> None:
    rows, vectors = draw()
    write_videos(tmp_path, vectors)
    lines = as_text(rows).splitlines()
    assert rows[7]["faces"] is None
    lines[8] = f'7,v1,"{cell}",1'
    source = make_table(tmp_path, SPEC, "t.csv", "\n".join(lines))
    assert said in refusal(lambda: prepare(source, tmp_path / "data"))
    # A row that may be left out is, and the others are as without it.
    tolerant = Table(str(tmp_path / "spec.yaml"), bad_rows=1)
    found = features(prepare(tolerant, tmp_path / "tolerant"))
    assert found.keys() == set(range(N)) - {7}


@pytest.mark.parametrize("place", [0, 1, 50, N - 1])
@pytest.mark.parametrize("chunk", [23, 1 << 20])
def test_the_row_that_differs_from_most_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int, chunk: int
) -> None:
    """Wherever it is, the first row included, in files of one chunk and of several."""
    monkeypatch.setattr(table_file, "CHUNK", chunk)
    rows, vectors = draw()
    rows[place]["faces"] = [1, 2, 3]
    said = refusal(lambda: store_of(tmp_path, rows, vectors))
    assert said.endswith(f"t.csv, row {place + 2}: column faces: has 3 numbers, but other vectors have 2")
    found = features(prepare(Table(str(tmp_path / "spec.yaml"), bad_rows=1), tmp_path / "tolerant"))
    assert found.keys() == set(range(N)) - {place}
    rows[place]["faces"] = None
    said = refusal(lambda: store_of(tmp_path / "joined", rows, vectors | {"v0": [1.0]}))
    assert said.endswith("videos0.parquet, row 1: column caption: has 1 numbers, but other vectors have 4")


@pytest.mark.parametrize("wrong", [[1.0], [1.0, 2.0, 3.0, None], [1.0, 2.0, 3.0, float("nan")]])
def test_a_wrong_vector_of_a_joined_table_is_named_by_its_row_there(tmp_path: Path, wrong: list[float]) -> None:
    rows, vectors = draw()
    said = refusal(lambda: store_of(tmp_path, rows, vectors | {"v20": wrong}))
    row = 1 + list(vectors).index("v20") - 11  # of the second file
    assert f"videos1.parquet, row {row}: column caption: " in said


def test_a_vector_far_outside_the_training_rows_is_refused(tmp_path: Path) -> None:
    rows, vectors = draw()
    small: Vectors = {name: [1e-30 * v for v in vector or [1, 2, 3, 4]] for name, vector in vectors.items()}
    spec = SPEC | {"split": {"by": "column", "column": "video", "validation": ["v1"], "test": ["v2"]}}
    said = refusal(lambda: store_of(tmp_path, rows, small | {"v2": [1e30, 0, 0, 0]}, spec))
    assert "row 3: column caption: is too far outside the range of the training rows" in said


def test_what_is_no_vector_is_refused(tmp_path: Path) -> None:
    rows, vectors = draw()
    for name, wrong in (("dates", [date(2020, 1, 1)]), ("lists", [[1.0], [2.0]])):
        table = make_table(tmp_path / name, {"files": "t.parquet", **SPEC})
        write_videos(tmp_path / name, vectors)
        pl.DataFrame([r | {"faces": wrong} for r in rows]).write_parquet(tmp_path / name / "t.parquet")
        said = refusal(partial(prepare, table, tmp_path / name / "data"))
        assert "column faces: has type List(" in said
        assert "expected lists of numbers" in said
    none = [r | {"faces": None} for r in rows]
    said = refusal(lambda: store_of(tmp_path / "none", none, vectors))
    assert said == "field face: no training row has a vector in column faces"


def test_joined_files_that_differ_are_refused(tmp_path: Path) -> None:
    rows, vectors = draw()
    write_videos(tmp_path, vectors)
    pl.DataFrame({"id": ["w"], "length": [1]}).write_parquet(tmp_path / "videos2.parquet")
    source = make_table(tmp_path, SPEC, "t.csv", as_text(rows))
    assert "the files of joins.videos differ in their columns" in refusal(lambda: prepare(source, tmp_path / "data"))


def test_new_rows_of_another_length_are_refused(tmp_path: Path) -> None:
    rows, vectors = draw()
    store = store_of(tmp_path, rows, vectors)
    (tmp_path / "new.csv").write_text(as_text([rows[1] | {"faces": [1, 2, 3]}]))
    with pytest.raises(UserError, match=r"new\.csv, row 2: column faces: has 3 numbers, but other vectors have 2"):
        list(Table(str(tmp_path / "spec.yaml")).read(tmp_path / "new.csv", store))


def test_a_table_without_vectors_stores_none(tmp_path: Path) -> None:
    rows, vectors = draw()
    fields = {name: field for name, field in SPEC["fields"].items() if field.get("kind") != "vector"}
    store = store_of(tmp_path, rows, vectors, SPEC | {"fields": fields, "ignore": ["faces"]})
    assert not [name for name in arrays(store) if "vectors" in name]
    assert whole(store.split("train")).vectors == ()
