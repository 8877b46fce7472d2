"""The grammar of Ali-CCP lines: how a line is read, or rejected, does not depend on its block or on other lines."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlen.data.bad_rows import BadRows
from dlen.data.prepare import prepare
from dlen.data.ragged import Entries
from dlen.data.sources import aliccp_grammar
from dlen.data.sources.aliccp import AliCCP
from dlen.data.sources.aliccp_grammar import Reader
from dlen.data.sources.aliccp_passes import SKELETON
from dlen.errors import UserError
from tests.data.helpers import decode, refusal, write_raw
from tests.data.sources.test_aliccp_errors import COMMON_TRAIN, SKELETON_TRAIN, good

HEAD = ["sample_id", "click", "conversion", "common_feature_index"]
GOOD = "7,1,0,g1,2,205\x0212\x031.0\x01210\x023\x03-0.5"
ODD_LINES = [
    GOOD,
    "7,0,0,g2,0,",
    "7,0,0,g2,1,205\x02+9\x031",
    "7,0,0,g2,1,205\x02 9\x031",
    "7,0,0,g2,1,205\x029\x03 1",
    "7,0,0,g2,1,205\x029\x031_0",
    "7,0,0,g2,1,205\x029_0\x031",
    "7,0,0,g2,1,205\x02-0\x031",
    "7,0,0,g2,1,205\x02007\x03.5",
    "7,0,0,g2,1,205\x029\x033.4028235e38",
    "7,0,0,g2,1,205\x029\x033.40282355e38",
    "7,0,0,g2,1,205\x029\x03infinity",
    "7,0,0,g2,1,205\x029\x03\uff11",
    "7,0,0,g2,1,205\x02\uff11\x031",
    "7,0,0,g2,+1,205\x029\x031",
    "7,0,0,g2,01,205\x029\x031",
    "7,0,0,g2, 1,205\x029\x031",
    "7,0,0,\u00e9,1,205\x029\x031",
    "7,0,0,g\x01,1,205\x029\x031",
    "7,0,0,a\x02b\x03c\x01,2,205\x029\x031",
    "\ufeff7,0,0,g2,1,205\x029\x031",
    "7,0,0,\ufeffg2,1,205\x029\x031",
    "7,0,0,g2,1,\ufeff205\x029\x031",
    '7,0,0,"g2,1,205\x029\x031',
    '"7",0,0,g2,1,205\x029\x031',
    "7,0,0,g2,1,205\x029\x031\x00",
    "7\r,0,0,g2,1,205\x029\x031",
    "",
    " ",
    "#7,0,0,g2,1,205\x029\x031",
    "NA,0,0,null,1,205\x029\x031",
]
PIECES = [
    b"\x01",
    b"\x02",
    b"\x03",
    b",",
    b"\r",
    b"\x00",
    b"\xff",
    b"\xc3",
    b"\xef\xbb\xbf",
    b'"',
    b" ",
    b"+",
    b"-",
    b".",
]
PIECES += [b"-", b".", b"_", b"e", b"9", b"0", b"\t", b"#", b"\xe2\x80\xa8"]


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A line of the grammar, or one with pieces inserted, overwritten or removed."""
    line = draw(st.sampled_from(ODD_LINES)).encode()
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        at, gone = draw(st.integers(0, len(line))), draw(st.integers(0, 2))
        line = line[:at] + draw(st.sampled_from([b"", *PIECES])) + line[at + gone :]
    return line


def read(path: Path, block: int, allowed: int) -> tuple[list[Any], list[int]]:
    """The content of each line, to the bit, and the numbers of the skipped lines."""
    parsed: list[Any] = []
    bad = BadRows(allowed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aliccp_grammar, "BLOCK", block)
        reader = Reader(path, HEAD, ["click", "conversion"], SKELETON.names, lambda entries: entries, bad)  # type: ignore
        for part in reader:
            entries: Any = part.columns
            assert isinstance(entries, Entries)
            assert len(part.lines) == len(part.head) == entries.rows
            rows: list[list[Any]] = [[] for _ in range(entries.rows)]
            values = zip(entries.row, entries.field, entries.ids, entries.values.view("i4"), strict=True)
            for row, *value in values:
                rows[row].append([int(v) for v in value])
            parsed += list(zip(part.lines.tolist(), part.head.rows(), rows, strict=True))
    return parsed, sorted(line for _, line in bad._seen)


def alone(path: Path, line: bytes) -> Any:
    """The content of a line between two good ones; None if it is rejected."""
    path.write_bytes(b"\n".join([GOOD.encode(), line, GOOD.encode()]) + b"\n")
    parsed, bad = read(path, 1, 1)
    assert bad in ([], [2])
    assert len(parsed) == 3 - len(bad)
    return None if bad else parsed[1][1:]


@pytest.mark.slow
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(lines(), min_size=1, max_size=12), st.booleans())
def test_a_line_is_the_same_in_any_block(tmp_path: Path, content: list[bytes], finished: bool) -> None:
    path = tmp_path / "sample_skeleton_train.csv"
    content = [GOOD.encode(), *content]
    each = [alone(path, line) for line in content]
    wanted = [(n, *line) for n, line in enumerate(each, 1) if line is not None]
    bad = [n for n, line in enumerate(each, 1) if line is None]
    path.write_bytes(b"\n".join([*content, GOOD.encode()]) + b"\n" * finished)
    wanted.append((len(content) + 1, *each[0]))
    for block in (1, 40, 200, 1 << 20):
        assert read(path, block, len(bad)) == (wanted, bad)
        if bad:
            with pytest.raises(UserError, match=rf"sample_skeleton_train\.csv, line {bad[-1]}: "):
                read(path, block, len(bad) - 1)


@pytest.mark.parametrize("line", ODD_LINES)
def test_what_is_odd_is_read_or_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "sample_skeleton_train.csv"
    if alone(path, line.encode()) is None:
        with pytest.raises(UserError, match=r"line 2: \S+"):
            read(path, 1 << 20, 0)


def test_a_mark_of_byte_order_begins_a_file_and_no_line(tmp_path: Path) -> None:
    path, mark = tmp_path / "sample_skeleton_train.csv", "\ufeff".encode()
    for end in (b"\n", b""):
        path.write_bytes(mark + GOOD.encode() + end)
        for block in (1, 7, 1 << 20):
            parsed, bad = read(path, block, 0)
            assert parsed[0][1][0] == "7"
            assert not bad
    assert alone(path, mark + GOOD.encode()) is None


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 150, 1 << 20])
@pytest.mark.parametrize("file", [SKELETON_TRAIN, COMMON_TRAIN])
@pytest.mark.parametrize("damage", [b"\xff", "\ufeff".encode(), b"\r", b"\x01"])
def test_a_damaged_line_is_left_out_and_the_others_stay(
    damage: bytes, file: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliccp_grammar, "BLOCK", block)
    raw = write_raw(tmp_path / "raw", good())
    path = raw / f"{file}.csv"
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*content[:5], content[5][:3] + damage + content[5][3:], *content[6:]]))
    source = partial(AliCCP, str(raw), validation=0.3, min_count=1)
    assert f"{file}.csv, line 6: " in refusal(lambda: prepare(source(), tmp_path / "data"))
    lost = 1 if file == SKELETON_TRAIN else 2  # also the impression of the lost group
    store = prepare(source(bad_rows=lost), tmp_path / "data")
    assert store.content["notes"]["bad_rows_left_out"] == lost
    assert sum(len(store.split(name)) for name in ("train", "validation")) == len(content) - 1


def test_a_group_that_is_there_twice_is_named_and_the_first_counts(tmp_path: Path) -> None:
    lines = good()
    lines[COMMON_TRAIN][3:3] = ["no line", "g1,0,"]
    raw = write_raw(tmp_path / "raw", lines)
    source = partial(AliCCP, str(raw), validation=0.3, min_count=1)
    said = refusal(lambda: prepare(source(bad_rows=1), tmp_path / "data"))
    assert "common_features_train.csv, line 5: common_feature_index 'g1' repeats" in said
    store = prepare(source(bad_rows=2), tmp_path / "data")
    assert store.content["notes"]["bad_rows_left_out"] == 2
    rows = [*decode(store, "train"), *decode(store, "validation")]
    assert [len(row["109_14"]) for row in rows] == [1] * len(rows)
