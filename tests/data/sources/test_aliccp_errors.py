"""Invalid Ali-CCP files: one line that names the file and the line, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlen.data.prepare import prepare
from dlen.data.sources import aliccp_grammar
from dlen.data.sources.aliccp import AliCCP
from dlen.data.sources.aliccp_demo import AliCCPDemo
from tests.data.helpers import common_line, left_in, refusal, skeleton_line, write_raw

COUNT = 12
COMMON_TRAIN, SKELETON_TRAIN = "common_features_train", "sample_skeleton_train"
COMMON_TEST, SKELETON_TEST = "common_features_test", "sample_skeleton_test"


def good() -> dict[str, list[str]]:
    commons = [common_line(f"g{n}", [("101", n, "1.0"), ("109_14", 50 + n, "2.5")]) for n in range(COUNT)]
    skeletons = [
        skeleton_line(n, n % 2, 0, f"g{n}", [("205", n, "1.0"), ("210", 9, "1.0"), ("853", 4, "0.5")])
        for n in range(COUNT)
    ]
    pairs = {"common_features": commons, "sample_skeleton": skeletons}
    return {f"{kind}_{split}": list(lines) for kind, lines in pairs.items() for split in ("train", "test")}


def refused(folder: Path, lines: dict[str, list[str]]) -> str:
    raw = write_raw(folder / "raw", lines)
    message = refusal(lambda: prepare(AliCCP(str(raw), validation=0.3, min_count=1), folder / "data"))
    assert left_in(folder / "data") == []
    return message


def test_the_good_files_are_read(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", good())
    assert len(prepare(AliCCP(str(raw), validation=0.3), tmp_path / "data").split("test")) == COUNT


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(line: str) -> str:
        assert old in line
        return line.replace(old, new, 1)

    return change


def cut(size: int) -> Callable[[str], str]:
    return lambda line: line[:-size]


SKELETON_DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "truncated in a value": (cut(3), "853"),
    "truncated in an entry": (cut(5), ""),
    "truncated between entries": (lambda line: line[: line.rindex("\x01")], "feature_num"),
    "truncated in the head": (lambda line: line[:4], "columns"),
    "blank": (lambda line: "", "columns"),
    "tabs for commas": (lambda line: line.replace(",", "\t"), "columns"),
    "commas between entries": (lambda line: line.replace("\x01", ","), "columns"),
    "spaces in entries": (lambda line: line.replace("\x02", " "), ""),
    "colons in entries": (lambda line: line.replace("\x03", ":"), ""),
    "id and value separators swapped": (
        lambda line: line.replace("\x02", "?").replace("\x03", "\x02").replace("?", "\x03"),
        "",
    ),
    "a part too many in an entry": (replaced("\x031.0", "\x031.0\x032.0"), "205"),
    "an empty entry": (replaced("\x01", "\x01\x01"), ""),
    "an extra column": (lambda line: line + ",1", "columns"),
    "unknown field": (replaced("210\x02", "999\x02"), "999"),
    "field with a blank": (replaced("210\x02", " 210\x02"), "210"),
    "field of the other file": (replaced("205\x02", "101\x02"), "101"),
    "click 2": (lambda line: ",".join([line.split(",")[0], "2", *line.split(",")[2:]]), "click"),
    "click text": (lambda line: ",".join([line.split(",")[0], "yes", *line.split(",")[2:]]), "click"),
    "click 1.0": (lambda line: ",".join([line.split(",")[0], "1.0", *line.split(",")[2:]]), "click"),
    "conversion empty": (lambda line: ",".join([*line.split(",")[:2], "", *line.split(",")[3:]]), "conversion"),
    "negative id": (replaced("210\x029", "210\x02-9"), "210"),
    "huge id": (replaced("210\x029", "210\x022147483647"), "210"),
    "id beyond 64 bits": (replaced("210\x029", "210\x0299999999999999999999"), "210"),
    "text id": (replaced("210\x029", "210\x02x9"), "210"),
    "fractional id": (replaced("210\x029", "210\x029.0"), "210"),
    "no id": (replaced("210\x029", "210\x02"), "210"),
    "value nan": (replaced("\x030.5", "\x03nan"), "853"),
    "value inf": (replaced("\x030.5", "\x03inf"), "853"),
    "value -inf": (replaced("\x030.5", "\x03-inf"), "853"),
    "value beyond float32": (replaced("\x030.5", "\x031e39"), "853"),
    "value text": (replaced("\x030.5", "\x03much"), "853"),
    "no value": (replaced("\x030.5", "\x03"), "853"),
    "feature_num too large": (replaced(",3,", ",4,"), "feature_num"),
    "feature_num too small": (replaced(",3,", ",2,"), "feature_num"),
    "feature_num text": (replaced(",3,", ",three,"), "feature_num"),
    "feature_num empty": (replaced(",3,", ",,"), "feature_num"),
    "list missing": (lambda line: line.rsplit(",", 1)[0] + ",", "feature_num"),
    "common index missing": (lambda line: ",".join([*line.split(",")[:3], "nobody", *line.split(",")[4:]]), "nobody"),
    "common index empty": (lambda line: ",".join([*line.split(",")[:3], "", *line.split(",")[4:]]), "index"),
    "bytes that are no text": (replaced("210\x02", "\udcff\udcfe\x02"), ""),
}


def damaged(folder: Path, file: str, line: int, change: Callable[[str], str]) -> str:
    lines = good()
    lines[file][line - 1] = change(lines[file][line - 1])
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name, content in lines.items():
        (raw / f"{name}.csv").write_bytes(("\n".join(content) + "\n").encode("utf-8", "surrogateescape"))
    message = refusal(lambda: prepare(AliCCP(str(raw), validation=0.3, min_count=1), folder / "data"))
    assert left_in(folder / "data") == []
    return message


@pytest.mark.parametrize("block", [150, 1 << 20])
@pytest.mark.parametrize("damage", SKELETON_DAMAGE)
def test_a_wrong_skeleton_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, block: int) -> None:
    monkeypatch.setattr(aliccp_grammar, "BLOCK", block)
    change, named = SKELETON_DAMAGE[damage]
    message = damaged(tmp_path, SKELETON_TRAIN, 8, change)
    assert f"{tmp_path / 'raw' / SKELETON_TRAIN}.csv, line 8:" in message
    assert named in message


COMMON_DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "truncated": (lambda line: line[: line.rindex("\x01")], "feature_num"),
    "field of the other file": (replaced("109_14", "205"), "205"),
    "unknown field": (replaced("109_14", "109"), "109"),
    "value nan": (replaced("2.5", "NaN"), "109_14"),
    "negative id": (replaced("109_14\x02", "109_14\x02-"), "109_14"),
    "a skeleton line": (lambda line: skeleton_line(1, 0, 0, "g1", [("205", 1, "1.0")]), "columns"),
    "repeated index": (lambda line: "g0," + line.split(",", 1)[1], "g0"),
}


@pytest.mark.parametrize("file", [COMMON_TRAIN, COMMON_TEST])
@pytest.mark.parametrize("block", [100, 1 << 20])
@pytest.mark.parametrize("damage", COMMON_DAMAGE)
def test_a_wrong_common_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, block: int, file: str
) -> None:
    monkeypatch.setattr(aliccp_grammar, "BLOCK", block)
    change, named = COMMON_DAMAGE[damage]
    message = damaged(tmp_path, file, 9, change)
    assert f"{tmp_path / 'raw' / file}.csv, line 9:" in message
    assert named in message


@pytest.mark.parametrize("line", [1, COUNT])
def test_first_and_last_line_are_named(tmp_path: Path, line: int) -> None:
    assert f"{SKELETON_TEST}.csv, line {line}:" in damaged(tmp_path, SKELETON_TEST, line, replaced("205", "204"))


def test_the_first_of_several_wrong_lines_is_named(tmp_path: Path) -> None:
    lines = good()
    for number in (3, 5):
        lines[SKELETON_TRAIN][number] += "x"
    assert "line 4:" in refused(tmp_path, lines)


def test_two_lines_whose_commas_make_up_for_each_other(tmp_path: Path) -> None:
    lines = good()
    lines[SKELETON_TRAIN][3] = lines[SKELETON_TRAIN][3].replace(",", "", 1)
    lines[SKELETON_TRAIN][4] = "," + lines[SKELETON_TRAIN][4]
    assert "line 4:" in refused(tmp_path, lines)


def test_a_blank_line_at_the_end(tmp_path: Path) -> None:
    lines = good()
    lines[SKELETON_TRAIN].append("")
    assert f"{SKELETON_TRAIN}.csv, line {COUNT + 1}:" in refused(tmp_path, lines)


@pytest.mark.parametrize("file", [COMMON_TRAIN, SKELETON_TRAIN, COMMON_TEST, SKELETON_TEST])
def test_empty_and_missing_files(tmp_path: Path, file: str) -> None:
    path = tmp_path / "raw" / f"{file}.csv"
    message = refused(tmp_path, good() | {file: []})  # only a newline
    assert str(path) in message
    path.write_bytes(b"")
    source = AliCCP(str(tmp_path / "raw"))
    assert str(path) in refusal(lambda: prepare(source, tmp_path / "data"))
    path.unlink()
    message = refusal(lambda: prepare(source, tmp_path / "data"))
    assert str(path) in message
    assert "raw_dir" in message
    assert left_in(tmp_path / "data") == []


def test_a_missing_folder(tmp_path: Path) -> None:
    message = refusal(lambda: prepare(AliCCP(str(tmp_path / "no")), tmp_path / "data"))
    assert str(tmp_path / "no") in message


@pytest.mark.parametrize("file", [COMMON_TRAIN, SKELETON_TRAIN, SKELETON_TEST])
@pytest.mark.parametrize("junk", [bytes(range(256)) * 20, b"\x1f\x8b\x08\x00" + b"\xff\x00" * 500, b"\0", b"\r\n"])
def test_binary_junk(tmp_path: Path, file: str, junk: bytes) -> None:
    raw = write_raw(tmp_path / "raw", good())
    (raw / f"{file}.csv").write_bytes(junk)
    message = refusal(lambda: prepare(AliCCP(str(raw)), tmp_path / "data"))
    assert f"{raw / file}.csv, line 1:" in message
    assert left_in(tmp_path / "data") == []


def test_the_files_of_other_archives(tmp_path: Path) -> None:
    lines = good()
    lines[COMMON_TEST] = [line.replace("g", "h", 1) for line in lines[COMMON_TEST]]
    message = refused(tmp_path, lines)
    assert f"{SKELETON_TEST}.csv, line 1:" in message
    assert "g0" in message


@pytest.mark.parametrize("validation", [1e-9, 1 - 1e-9])
def test_no_rows_for_a_split(tmp_path: Path, validation: float) -> None:
    """A split without rows cannot be trained on or measured; the user is warned before training starts."""
    raw = write_raw(tmp_path / "raw", good())
    assert "validation" in refusal(lambda: prepare(AliCCP(str(raw), validation=validation), tmp_path / "data"))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"cvr_rows": "click"}, "cvr_rows"),
        ({"validation": 0.0}, "validation"),
        ({"validation": 1.0}, "validation"),
        ({"max_values": 0}, "max_values"),
        ({"max_values": 2**15}, "max_values"),
        ({"min_count": 0}, "min_count"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], named: str) -> None:
    assert named in refusal(lambda: AliCCP("raw", **settings))


def test_a_demo_too_small(tmp_path: Path) -> None:
    assert "rows" in refusal(lambda: AliCCPDemo(raw_dir=str(tmp_path), rows=10))
