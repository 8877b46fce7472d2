"""Partitioned folders of a table, and the rows and files that ``where`` selects."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from dlen.data.bad_rows import BadRows
from dlen.data.prepare import identify, prepare
from dlen.data.sources.table import Table
from dlen.data.sources.table_file import TableFile
from dlen.data.sources.table_partitions import partition_of, partitions_of
from dlen.data.sources.table_spec import TableSpec
from dlen.data.store import Store
from tests.data.helpers import numbers_of, refusal, whole

DAYS = ("2026-11-22", "2026-11-23", "2026-11-24", "2026-11-25")
SPEC: dict[str, Any] = {
    "files": "logs",
    "fields": {"n": {"kind": "numeric"}, "user": {}, "country": {}},
    "tasks": {"click": "click"},
    "split": {"by": "time", "column": "day", "validation_from": DAYS[2], "test_from": DAYS[3]},
}
WITH_RATES = {"fields": {**SPEC["fields"], "u": {"rate": {"of": "click", "by": "user"}}}}


def log(seed: int = 0) -> pl.DataFrame:
    rng = random.Random(seed)
    rows = [
        {
            "n": n,
            "user": rng.choice("abc"),
            "day": DAYS[n * len(DAYS) // 80],
            "country": rng.choice(["nl", "be"]),
            "click": n % 2,
        }
        for n in range(80)
    ]
    return pl.DataFrame(rows).sort("day", "country", maintain_order=True).with_columns(n=pl.int_range(80))


def write(folder: Path, spec: dict[str, Any], frame: pl.DataFrame, ending: str = "parquet") -> Table:
    """The log as ``logs/day=.../country=.../part-0.parquet``, or as one file if the spec names one."""
    for (day, country), rows in frame.group_by("day", "country", maintain_order=True):
        place = folder / "logs" / f"day={day}" / f"country={country}"
        place.mkdir(parents=True, exist_ok=True)
        rows = rows.drop("day", "country")
        rows.write_parquet(place / "part-0.parquet") if ending == "parquet" else rows.write_csv(place / "part-0.csv")
    frame.write_parquet(folder / "log.parquet")
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return Table(str(folder / "spec.yaml"), "t")


def content(store: Store) -> dict[str, tuple[list[int], Any, Any, Any]]:
    """Row numbers, ids, numbers and labels of each split."""
    found = {}
    for name in ("train", "validation", "test"):
        batch = whole(store.split(name))
        found[name] = (numbers_of(store, name), batch.ids.tolist(), batch.numeric.tolist(), batch.labels.tolist())
    return found


@pytest.mark.parametrize("ending", ["parquet", "csv"])
@pytest.mark.parametrize("files", ["logs", "logs/**/part-*", "logs/day=*/country=*/*"])
@pytest.mark.parametrize("changes", [{}, WITH_RATES], ids=["plain", "rates"])
def test_folders_are_columns(tmp_path: Path, ending: str, files: str, changes: dict[str, Any]) -> None:
    """A partitioned log makes the store of the same log in one file with these columns."""
    spec = SPEC | changes
    parts = prepare(write(tmp_path, spec | {"files": files}, log(), ending), tmp_path / "data")
    one = prepare(write(tmp_path, spec | {"files": "log.parquet"}, log()), tmp_path / "data")
    assert content(parts) == content(one)


def test_a_where_on_folders_leaves_files_out(tmp_path: Path) -> None:
    """As if they were not there, so a new day outside of it changes nothing."""
    spec = SPEC | {"where": f"day >= '{DAYS[1]}' and country in ['nl']"}
    table = write(tmp_path, spec, log())
    store = prepare(table, tmp_path / "data")
    kept = log().filter((pl.col("day") >= DAYS[1]) & (pl.col("country") == "nl"))
    assert [len(paths) for paths in table.sources.values()] == [3]
    assert sum(len(store.split(name)) for name in ("train", "validation", "test")) == len(kept)
    assert "rows_left_out_by_where" not in store.content["notes"]
    before = identify(table, tmp_path / "data")["fingerprint"]
    (tmp_path / "logs/day=2026-11-26/country=be").mkdir(parents=True)
    log().drop("day", "country").write_parquet(tmp_path / "logs/day=2026-11-26/country=be/part-0.parquet")
    assert identify(Table(str(tmp_path / "spec.yaml"), "t"), tmp_path / "data")["fingerprint"] == before


@pytest.mark.parametrize("where", ["n >= 13", "n >= 13 and country == 'nl'", "not user in ['a', 'c']"])
def test_a_where_on_rows(tmp_path: Path, where: str) -> None:
    """The store of a table without the other rows; statistics and rates do not see them either."""
    keep = {
        "n >= 13": pl.col("n") >= 13,
        "n >= 13 and country == 'nl'": (pl.col("n") >= 13) & (pl.col("country") == "nl"),
        "not user in ['a', 'c']": pl.col("user") == "b",
    }[where]
    spec = SPEC | WITH_RATES
    found = prepare(write(tmp_path / "a", spec | {"where": where}, log()), tmp_path / "data")
    expected = prepare(write(tmp_path / "b", spec | {"files": "log.parquet"}, log().filter(keep)), tmp_path / "data")
    assert content(found) == content(expected)
    assert found.content["notes"]["rows_left_out_by_where"] == str(80 - len(log().filter(keep)))


def test_new_rows_are_all_scored(tmp_path: Path) -> None:
    """A ``where`` chooses what is learned from; and a new day is a column too."""
    spec = SPEC | {"where": "n >= 13"}
    store = prepare(write(tmp_path, spec, log()), tmp_path / "data")
    new = tmp_path / "day=2026-11-26/country=be"
    new.mkdir(parents=True)
    log().drop("day", "country").write_parquet(new / "new.parquet")
    (split,) = list(Table(str(tmp_path / "spec.yaml"), "t").read(new / "new.parquet", store))
    assert len(split) == 80
    offset = store.schema.offsets["country"]
    codes = whole(split).ids[:, 1] - offset
    assert store.vocabulary("country")["value"][int(codes[0]) - 1] == "be"
    assert codes.unique().numel() == 1


def test_names_of_folders() -> None:
    assert partition_of("day=2026-11-24") == ("day", "2026-11-24")
    assert partition_of("path=a%2Fb%3D1") == ("path", "a/b=1")
    assert partition_of("day=__HIVE_DEFAULT_PARTITION__") == ("day", None)
    assert partition_of("logs") is None
    assert partition_of("=3") is None
    assert partitions_of(Path("x=1/logs/x=2/y=3/part=4.csv")) == {"x": "2", "y": "3"}


def test_a_column_of_the_file_itself_counts(tmp_path: Path) -> None:
    place = tmp_path / "day=1999-01-01"
    write(place, SPEC | {"files": "log.parquet"}, log())
    store = prepare(Table(str(place / "spec.yaml"), "t"), tmp_path / "data")
    assert [len(store.split(name)) for name in ("train", "validation", "test")] == [40, 20, 20]


def test_a_column_of_the_file_has_to_be_named_though_a_folder_has_its_name(tmp_path: Path) -> None:
    place = tmp_path / "click_2=7"
    frame = log().with_columns(click_2=pl.lit(1))
    said = refusal(lambda: prepare(write(place, SPEC | {"files": "log.parquet"}, frame), tmp_path / "data"))
    assert "does not name these columns of log.parquet: click_2" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"where": "day > '2027'"}, "where: day > '2027' leaves none of the 8 files"),
        ({"where": "day >"}, "where: "),
        ({"where": "dya == '2026'"}, "no column 'dya', named by where"),
        ({"where": "user == 1"}, "column user"),
        ({"where": "n"}, "where: the label is neither 0 nor 1 (n = 2"),
        ({"where": "n > 1000"}, "where: n > 1000 holds in none of the 80 rows"),
    ],
)
def test_wrong_settings(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    assert said in refusal(lambda: prepare(write(tmp_path, SPEC | change, log()), tmp_path / "data"))


def test_a_file_outside_of_the_folders_lacks_their_column(tmp_path: Path) -> None:
    table = write(tmp_path, SPEC, log())
    log().drop("day", "country").write_parquet(tmp_path / "logs/stray.parquet")
    assert "stray.parquet: no column 'country', named by fields.country" in refusal(
        lambda: prepare(table, tmp_path / "data")
    )


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_progress_is_counted_within_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """Half of a file is half of its bytes, also where a chunk does not tell how many it took."""
    monkeypatch.setattr("dlen.data.sources.table_file.CHUNK", 400)
    frame = pl.DataFrame({"a": range(1000, 2000), "b": ["x"] * 1000})
    path = tmp_path / f"t.{ending}"
    frame.write_parquet(path) if ending == "parquet" else frame.write_csv(path)
    file = TableFile(path, TableSpec(), BadRows(0), tmp_path)
    taken = [file.bytes_of(chunk) for chunk in file.chunks()]
    assert len(taken) > 1
    assert sum(taken) == pytest.approx(path.stat().st_size, rel=0.01)
