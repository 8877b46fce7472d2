"""Small stores, raw files and slow reference readers shared by the tests of dlen.data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dlen.batch import Batch
from dlen.data.columns import Columns
from dlen.data.prepare import prepare
from dlen.data.sources.table import Table
from dlen.data.split import ResidentSplit, Split
from dlen.data.store import Store
from dlen.data.writer import StoreWriter
from dlen.errors import UserError
from dlen.schema import Field, Kind, Schema, Task

Row = dict[str, Any]  # field -> raw id or None, or list of (raw id or None, weight); task -> label


def no_bags(ids: Sequence[int]) -> Columns:
    """Columns with only one id field."""
    return Columns.of_ids(np.reshape(ids, (len(ids), 1)))


class TinySource:
    """A source with one field and consecutive ids; ``fail`` raises while writing."""

    def __init__(self, path: Path | None = None, *, rows: int = 10, fail: bool = False, name: str = "tiny") -> None:
        self.name, self.path, self.rows, self.fail = name, path, rows, fail
        self.written = 0

    def settings(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def files(self) -> list[Path]:
        return [] if self.path is None else [self.path]

    def write(self, writer: StoreWriter) -> Schema:
        self.written += 1
        counts, shard = {Kind.ID: 1, Kind.IDS: 0, Kind.NUMERIC: 0}, writer.shard()
        for name in ("train", "validation", "test"):
            split = shard.split(name, counts, 1)
            split.append(no_bags(range(self.rows)), np.arange(self.rows)[:, None] % 2)
        if self.fail:
            raise RuntimeError("on purpose")
        return Schema((Field("f", Kind.ID, vocab_size=self.rows),), (Task("click", 0.5),))


def tiny_split(folder: Path, rows: int) -> Split:
    """A split whose row i has id i."""
    return prepare(TinySource(rows=rows), folder).split("train")


def whole(split: Split) -> Batch:
    """All rows in stored order as one batch."""
    return split.batch(torch.arange(len(split)))


def tensors_of(batch: Batch) -> dict[str, torch.Tensor]:
    """All tensors of a batch by name, those of its sequences and vectors too."""
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name not in ("sequences", "vectors")}
    tensors |= {f"vectors[{place}]": vectors for place, vectors in enumerate(batch.vectors)}
    for place, sequence in enumerate(batch.sequences):
        tensors |= {f"sequences[{place}].{f.name}": getattr(sequence, f.name) for f in fields(sequence)}
    return tensors


def check_resident_copy(split: Split, index: torch.Tensor) -> None:
    """A copy on a device gives the same tensors; and on one with shapes but no values, it asks for no value."""
    on_host = tensors_of(split.batch(index))
    copy = ResidentSplit(split, torch.device("cpu"))
    assert len(copy) == len(split)
    copies, shapes = (tensors_of(s.batch(index)) for s in (copy, ResidentSplit(split, torch.device("meta"))))
    for name, wanted in on_host.items():
        assert torch.equal(copies[name], wanted), name
        made = shapes[name]
        assert (made.device.type, made.shape, made.dtype) == ("meta", wanted.shape, wanted.dtype), name


def bags_of(batch: Batch) -> list[list[list[tuple[int, float]]]]:
    """(id, weight) by field and row, from the ragged field-major tensors."""
    values = list(zip(batch.bag_ids.tolist(), batch.bag_weights.tolist(), strict=True))
    result, start = [], 0
    for lengths in batch.bag_lengths.tolist():
        rows = []
        for length in lengths:
            rows.append(values[start : start + length])
            start += length
        result.append(rows)
    assert start == len(values)
    return result


def decode(store: Store, name: str) -> list[Row]:
    """Every row of a split with its raw ids, read back through the store's vocabularies; None is id 0."""
    batch = whole(store.split(name))
    fields = store.schema.fields
    starts = dict(zip([f.name for f in fields], np.cumsum([0, *(f.vocab_size for f in fields)]), strict=False))
    raw = {f.name: [None, *_vocabulary(store, f)] for f in fields if f.vocab_size}
    rows: list[Row] = [{} for _ in range(len(batch))]
    for column, f in enumerate(f for f in fields if f.kind is Kind.ID):
        for row, code in zip(rows, (batch.ids[:, column] - starts[f.name]).tolist(), strict=True):
            assert 0 <= code < f.vocab_size
            row[f.name] = raw[f.name][code]
    for f, bags in zip([f for f in fields if f.kind is Kind.IDS], bags_of(batch), strict=True):
        for row, bag in zip(rows, bags, strict=True):
            assert all(0 <= i - starts[f.name] < f.vocab_size for i, _ in bag)
            row[f.name] = [(raw[f.name][i - starts[f.name]], w) for i, w in bag]
    for column, task in enumerate(store.schema.tasks):
        for row, label in zip(rows, batch.labels[:, column].tolist(), strict=True):
            row[task.name] = label
    return rows


def _vocabulary(store: Store, f: Field) -> list[Any]:
    path = store.folder / "vocabulary" / f"{f.name}.parquet"
    values = store.vocabulary(f.name)["value"].to_list() if path.exists() else list(range(1, f.vocab_size))
    assert len(values) == f.vocab_size - 1
    return values


def arrays(store: Store) -> dict[str, bytes]:
    """The bytes of every array with content in a store of one shard."""
    paths = sorted(store.folder.rglob("*.bin"))
    return {str(p.relative_to(store.folder)).removeprefix("shards/00000/"): p.read_bytes() for p in paths}


def left_in(data_dir: Path) -> list[str]:
    """Everything below a data folder except locks."""
    files = [p for p in data_dir.rglob("*") if p.is_file() and p.name != ".lock"]
    files += [p for p in data_dir.glob("*/*") if p.is_dir()]
    return sorted(str(p.relative_to(data_dir)) for p in files)


def refusal(work: Callable[[], Any]) -> str:
    """The message of the UserError that ``work`` must raise, checked to be one line."""
    with pytest.raises(UserError) as caught:
        work()
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


# Ali-CCP, line by line

SKELETON_SINGLE = ("205", "206", "207", "216", "301")
SKELETON_BAGS = ("210", "508", "509", "702", "853")
COMMON_SINGLE = ("101", "121", "122", "124", "125", "126", "127", "128", "129")
COMMON_BAGS = ("109_14", "110_14", "127_14", "150_14")
Features = list[tuple[str, int, float]]


def features_text(features: Iterable[tuple[Any, Any, Any]]) -> str:
    """A feature list in the raw grammar."""
    return "\x01".join(f"{name}\x02{number}\x03{value}" for name, number, value in features)


def common_line(index: str, features: Sequence[tuple[Any, Any, Any]]) -> str:
    """One line of common features."""
    return f"{index},{len(features)},{features_text(features)}"


def skeleton_line(
    sample: int, click: Any, conversion: Any, index: str, features: Sequence[tuple[Any, Any, Any]]
) -> str:
    """One line of a sample skeleton."""
    return f"{sample},{click},{conversion},{index},{len(features)},{features_text(features)}"


def write_raw(folder: Path, lines: Mapping[str, Sequence[str]], end: str = "\n", last: str = "\n") -> Path:
    """Write the four raw files. ``lines`` is by file name without ``.csv``, and ``last`` ends the last line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in lines.items():
        (folder / f"{name}.csv").write_bytes((end.join(content) + last).encode())
    return folder


@dataclass
class SlowPair:
    """A pair of raw files read line by line.

    Attributes:
        groups: (index, features) of each line of common features.
        rows: (click, conversion, group number, features) of each possible impression.
        impossible: number of impressions left out.
    """

    groups: list[tuple[str, Features]] = field(default_factory=list)
    rows: list[tuple[int, int, int, Features]] = field(default_factory=list)
    impossible: int = 0

    def user(self, group: int) -> int | None:
        """The user of a group."""
        return first_of(self.groups[group][1], "101")


def read_pair(folder: Path, split: str) -> SlowPair:
    """Read a pair of raw files line by line."""
    pair = SlowPair()
    for line in _lines(folder / f"common_features_{split}.csv"):
        index, number, text = line.split(",")
        pair.groups.append((index, _features(text)))
        assert int(number) == len(pair.groups[-1][1])
    where = {index: number for number, (index, _) in enumerate(pair.groups)}
    for line in _lines(folder / f"sample_skeleton_{split}.csv"):
        _, click, conversion, index, number, text = line.split(",")
        if conversion == "1" and click == "0":
            pair.impossible += 1
        else:
            pair.rows.append((int(click), int(conversion), where[index], _features(text)))
    return pair


def _lines(path: Path) -> list[str]:
    return [line.removesuffix("\r") for line in path.read_bytes().decode().split("\n") if line]


def _features(text: str) -> Features:
    result = []
    for entry in text.split("\x01") if text else []:
        name, rest = entry.split("\x02")
        number, value = rest.split("\x03")
        result.append((name, int(number), float(value)))
    return result


def first_of(features: Features, name: str) -> int | None:
    """The first id of a single-valued field."""
    return next((number for f, number, _ in features if f == name), None)


def capped(features: Features, name: str, cap: int) -> list[tuple[int, float]]:
    """The values of a multi-valued field: if there are too many, the heaviest, ties in file order."""
    values = [(number, value) for f, number, value in features if f == name]
    return values if len(values) <= cap else sorted(values, key=lambda v: -v[1])[:cap]


def slow_row(pair: SlowPair, row: tuple[int, int, int, Features], cap: int) -> Row:
    """One impression joined with its common features, with raw ids in every field."""
    click, conversion, group, own = row
    common = pair.groups[group][1]
    result: Row = {"ctr": click, "cvr": conversion}
    result |= {name: first_of(own, name) for name in SKELETON_SINGLE}
    result |= {name: first_of(common, name) for name in COMMON_SINGLE}
    result |= {name: capped(own, name, cap) for name in SKELETON_BAGS}
    return result | {name: capped(common, name, cap) for name in COMMON_BAGS}


def impressions_with(rows: Sequence[Row]) -> dict[str, Counter[int]]:
    """How often each raw id occurs, by field."""
    counts: dict[str, Counter[int]] = {name: Counter() for name in rows[0] if name not in ("ctr", "cvr")}
    for row in rows:
        for name, counter in counts.items():
            value = row[name]
            counter.update([v for v, _ in value] if isinstance(value, list) else {value} - {None})
    return counts


def only_known(row: Row, counts: Mapping[str, Mapping[int, int]], min_count: int) -> Row:
    """The row with None for every id that is too rare."""

    def known(name: str, value: int | None) -> int | None:
        return value if value is not None and counts[name].get(value, 0) >= min_count else None

    result = dict(row)
    for name in counts:
        value = row[name]
        many = isinstance(value, list)
        result[name] = [(known(name, v), w) for v, w in value] if many else known(name, value)
    return result


# Tables


def make_table(folder: Path, spec: Mapping[str, Any] | str, name: str = "t.csv", text: str | bytes = "") -> Table:
    """Make a table source: write the YAML and, unless ``text`` is empty, the file ``name``."""
    folder.mkdir(parents=True, exist_ok=True)
    if text:
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    path = folder / "spec.yaml"
    path.write_text(spec if isinstance(spec, str) else yaml.safe_dump({"files": name, **spec}, sort_keys=False))
    source = Table(str(path))
    _ = source.table  # errors of the YAML are raised here
    return source


def numbers_of(store: Store, split: str, name: str = "n") -> list[int]:
    """The raw integers of a standardised field, which number the rows of a test table."""
    column = [f.name for f in store.schema.of_kind(Kind.NUMERIC)].index(name)
    scale = store.content["statistics"][name]
    values = whole(store.split(split)).numeric[:, column].double().numpy()
    return [int(v) for v in np.round(values * scale["deviation"] + scale["mean"])]
