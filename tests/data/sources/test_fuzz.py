"""Thousands of damaged files: each is refused in one line, or every row equals that of another parser.

CI runs a few thousand cases; `make fuzz` runs a hundred thousand (FUZZ times as many, from other seeds).
"""

from __future__ import annotations

import csv
import io
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlen.data.bad_rows import BadRows
from dlen.data.prepare import prepare
from dlen.data.ragged import Entries
from dlen.data.sources.aliccp_grammar import MAX_ID, Reader
from dlen.data.sources.aliccp_passes import SKELETON
from dlen.data.sources.table import Table
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.schema import Kind
from tests.data.helpers import arrays, make_table
from tests.data.sources import test_table_alike as alike
from tests.data.sources.test_aliccp_errors import SKELETON_TRAIN, good

FUZZ = int(os.environ.get("FUZZ", "1"))
SEED = 1 if FUZZ == 1 else 100


def damaged(content: bytes, rng: random.Random, alphabet: bytes) -> bytes:
    """One to four small damages: a flipped bit, a byte added or removed, a piece copied, cut or moved, a truncation."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        if not content:
            return content
        a = rng.randrange(len(content))
        b = min(len(content), a + rng.choice([1, 2, 5, 30]))
        kind = rng.randrange(7)
        if kind == 0:
            content = content[:a] + bytes([content[a] ^ (1 << rng.randrange(8))]) + content[a + 1 :]
        elif kind == 1:
            content = content[:a] + bytes([rng.choice(alphabet)]) + content[a:]
        elif kind == 2:
            content = content[:a] + bytes([rng.choice(alphabet)]) + content[a + 1 :]
        elif kind == 3:
            content = content[:a] + content[b:]
        elif kind == 4:
            content = content[:b] + content[a:]
        elif kind == 5:
            place = rng.randrange(len(content))
            content = content[:place] + content[a:b] + content[place:]
        else:
            content = content[: max(a, len(content) - 40)]
    return content


def outcome(read: Callable[[], Any], path: Path) -> Any:
    """The content, or None if the file is refused properly; any other exception fails the test."""
    try:
        return read()
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    assert path.name in said
    return None


# Ali-CCP


def slow_lines(content: bytes) -> list[tuple[list[str], list[tuple[str, int, np.float32]]]]:
    """Heads and features of a skeleton in plain Python; ValueError if something is not a number."""
    text = content.replace(b"\r\n", b"\n").decode("utf-8", "replace")
    lines = []
    for line in text.split("\n")[: -1 if text.endswith("\n") else None]:
        *head, number, features = line.split(",")
        entries = []
        for entry in features.split("\x01") if features else []:
            field, rest = entry.split("\x02")
            raw_id, value = rest.split("\x03")
            if not re.fullmatch(r" *(\+?[0-9]+|-0+) *", raw_id) or int(raw_id) > MAX_ID:
                raise ValueError(raw_id)
            entries.append((field, int(raw_id), np.float32(float(value))))
        if int(number) != len(entries) or head[1] not in "01" or head[2] not in "01" or len(head) != 4:
            raise ValueError(line)
        lines.append((head, entries))
    return lines


def read_skeleton(path: Path) -> list[tuple[list[str], list[tuple[str, int, np.float32]]]]:
    """The same from the reader."""
    head = ["sample_id", "click", "conversion", "common_feature_index"]
    kept: list[Entries] = []

    def convert(entries: Entries) -> Any:
        kept.append(entries)
        return entries

    lines = []
    for block in Reader(path, head, ["click", "conversion"], SKELETON.names, convert, BadRows(0)):
        entries: Any = block.columns
        rows: list[list[tuple[str, int, np.float32]]] = [[] for _ in range(len(block.head))]
        for row, field, value, weight in zip(entries.row, entries.field, entries.ids, entries.values, strict=True):
            rows[row].append((SKELETON.names[field], int(value), weight))
        lines += list(zip(map(list, block.head.rows()), rows, strict=True))
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("seed", [SEED])
def test_ali_ccp(seed: int, tmp_path: Path) -> None:
    content = ("\n".join(good()[SKELETON_TRAIN][:4]) + "\n").encode()
    rng, path, read = random.Random(seed), tmp_path / "sample_skeleton_train.csv", 0
    for _ in range(3000 * FUZZ):
        case = damaged(content, rng, b'\x01\x02\x03,,\n\r\x00\xff019.-e"g ')
        path.write_bytes(case)
        parsed = outcome(lambda: read_skeleton(path), path)
        if parsed is not None:
            read += 1
            assert parsed == slow_lines(case), case
    assert 100 * FUZZ < read < 2900 * FUZZ


# Tables

SPEC: dict[str, Any] = {
    "fields": {
        "n": {"kind": "numeric"},
        "user": {"kind": "id"},
        "tags": {"kind": "ids", "weight_separator": ":"},
        "when": {"kind": "time", "parts": ["hour"]},
    },
    "tasks": {"click": "click"},
    "split": {"by": "fraction", "validation": 0.2, "test": 0.2},
    "user": "user",
}


def table_text(rows: int) -> str:
    cells = [f"{n * 0.5},u{n % 9},t{n % 4}:0.5|t{n % 3}:2,{1_600_000_000 + 5000 * n},{n % 2}" for n in range(rows)]
    return "\n".join(["n,user,tags,when,click", *cells]) + "\n"


def split_rows(text: str) -> list[list[str]] | None:
    """Cells; None if Python's csv ends a row at a lone carriage return, which RFC 4180 does not."""
    if '"' not in text:
        return [line.removesuffix("\r").split(",") for line in text.split("\n")]
    if "\r" in text.replace("\r\n", ""):
        return None
    return list(csv.reader(io.StringIO(text, newline="")))


def slow_table(content: bytes, store: Store) -> list[list[Any]] | None:
    """Scaled number, user, weights of tags, hour and label of each row, with csv and float."""
    rows = split_rows(content.decode("utf-8", "replace"))
    if rows is None:
        return None
    while not any(cell.strip() for cell in rows[0]):  # blank lines before the header
        del rows[0]
    names = [name.strip() for name in rows[0]]
    users = {str(v): i + 1 for i, v in enumerate(store.vocabulary("user")["value"])}
    tags = {str(v): i + 1 for i, v in enumerate(store.vocabulary("tags")["value"])}
    scale = store.content["statistics"]["n"]
    decoded = []
    for row in rows[1:]:
        if len(row) < 2:  # a blank line; a row of empty cells is a row
            continue
        cells = dict(zip(names, (cell.strip() for cell in row), strict=True))
        number = float(cells["n"]) if cells["n"] else scale["mean"]
        hour = 1 + int(float(cells["when"]) // 3600) % 24 if cells["when"] else 0
        pairs = [tag.strip().split(":", 1) for tag in cells["tags"].split("|") if tag.strip()]
        bag = sorted((tags.get(tag.strip(), 0), float(weight)) for tag, weight in pairs if tag.strip())
        scaled = (number - scale["mean"]) / scale["deviation"]
        decoded.append([scaled, users.get(cells["user"], 0), bag, hour, float(cells["click"] or -1)])
    return decoded


def read_table(source: Table, path: Path, store: Store) -> list[list[Any]]:
    """The same from the table's reader."""
    decoded, offsets = [], store.schema.offsets
    names = list(offsets)
    for chunk in source.read(path, store, labels=True):
        batch = chunk.batch(torch.arange(len(chunk)))
        start = 0
        for row in range(len(batch)):
            user, hour = (
                int(batch.ids[row, [n for n in names if n != "tags"].index(n)]) - offsets[n]
                for n in ("user", "when_hour")
            )
            end = start + int(batch.bag_lengths[0, row])
            pairs = zip(batch.bag_ids[start:end].tolist(), batch.bag_weights[start:end].tolist(), strict=True)
            bag = sorted((i - offsets["tags"], weight) for i, weight in pairs)
            label = float(batch.labels[row, 0].nan_to_num(-1))  # a missing label
            decoded.append([float(batch.numeric[row, 0]), user, bag, hour, label])
            start = end
    return decoded


@pytest.mark.slow
@pytest.mark.parametrize("seed", [SEED])
def test_a_table(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_table(tmp_path, SPEC, text=table_text(60))
    store = prepare(source, tmp_path / "data")
    content, rng, path, read = table_text(6).encode(), random.Random(seed), tmp_path / "new.csv", 0
    for _ in range(600 * FUZZ):
        case = damaged(content, rng, b',,,\n\r\x00\xff09.-+eE"u:|t ')
        path.write_bytes(case)
        decoded = outcome(lambda: read_table(source, path, store), path)
        capsys.readouterr()
        if decoded is None:
            continue
        read += 1
        wanted = slow_table(case, store)
        if wanted is None:
            continue
        assert len(decoded) == len(wanted), case
        for a, b in zip(decoded, wanted, strict=True):
            assert a[1] == b[1], case
            assert a[3:] == b[3:], case
            assert a[0] == pytest.approx(b[0], rel=1e-5, abs=1e-6), case
            assert [i for i, _ in a[2]] == [i for i, _ in b[2]], case
    assert 50 * FUZZ < read < 580 * FUZZ


def rows_of(store: Store) -> Counter[tuple[int, float]]:
    """Hour and label of every row."""
    column = [f.name for f in store.schema.of_kind(Kind.ID)].index("when_hour")
    counts: Counter[tuple[int, float]] = Counter()
    for name in ("train", "validation", "test"):
        split = store.split(name)
        batch = split.batch(torch.arange(len(split)))
        hours = (batch.ids[:, column] - store.schema.offsets["when_hour"] - 1).tolist()
        counts.update(zip(hours, batch.labels[:, 0].tolist(), strict=True))
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("seed", [SEED])
def test_no_good_row_is_left_out_with_the_bad_ones(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every undamaged line of a damaged table is a row, with the same multiplicity."""
    head, *rows = table_text(30).splitlines()
    rng, read, clean = random.Random(seed), 0, "\n".join(rows).encode()
    spec = SPEC | {"split": {"by": "hash", "column": "when", "validation": 0.2, "test": 0.2, "allow_one_class": True}}
    for case in range(60 * FUZZ):
        lines = damaged(clean, rng, b',,,\n\r\x00\xff09.-+eEu:|t ""').decode("utf-8", "replace")
        content = "\n" * rng.randrange(3) + head + "\n" + lines
        table, data = make_table(tmp_path, spec, text=content.encode()), tmp_path / "data" / str(case)
        store = outcome(lambda: prepare(Table(str(table.path), bad_rows=20), data), tmp_path / "t.csv")  # noqa: B023
        capsys.readouterr()
        if store is None:
            continue
        read += 1
        read_by_csv = csv.reader(line.replace("\r", " ") for line in io.StringIO(lines, newline="\n"))
        good = [rows.index(line) for cells in read_by_csv if (line := ",".join(cells)) in rows]
        wanted = Counter(((1_600_000_000 + 5000 * n) // 3600 % 24, n % 2.0) for n in good)
        assert not wanted - rows_of(store), content
    assert read > 40 * FUZZ


@pytest.mark.slow
@pytest.mark.parametrize("seed", [SEED])
def test_random_logs_in_random_forms(seed: int, tmp_path: Path) -> None:
    """The store is equal to the bit, whatever the file format of the log."""
    rng = random.Random(seed)
    for case in range(3 * FUZZ):
        frame, form = alike.log(1000 * seed + case, rng.randrange(200, 600)), rng.choice(list(alike.FORMS))
        stores: list[dict[str, bytes]] = []
        for name in ("csv", form):
            folder = tmp_path / f"{case}-{len(stores)}"
            folder.mkdir()
            stores.append(arrays(alike.made(folder, alike.FORMS[name](folder, frame))))
        assert stores[0] == stores[1], form
