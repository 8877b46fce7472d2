"""data.bad_rows: unreadable rows are skipped, counted and shown, up to the tolerated number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dlen.data.bad_rows import BadRowError, BadRows
from dlen.data.prepare import prepare
from dlen.data.sources import aliccp_grammar, table_file
from dlen.data.sources.aliccp import AliCCP
from dlen.data.sources.table import Table
from dlen.data.store import Store
from dlen.errors import UserError
from tests.data.helpers import left_in, make_table, refusal, write_raw
from tests.data.sources.test_aliccp_errors import SKELETON_TRAIN, good
from tests.data.sources.test_table_errors import SPEC, lines

# Row of the file (the header is row 1) to its replacement.
DAMAGE = {
    5: "4,u4,1600020000,7,0",  # a label of 7
    9: "x,u8,1600040000,0,0",  # not a number
    20: "19,u1,yesterday,1,1",  # not a time
    33: "32,u5",  # too short
    34: "33,u6,1600165000,1,0,1",  # too long
    60: "inf,u4,1600295000,0,0",
}


def damaged_table(folder: Path, name: str, blanks: int = 0) -> Path:
    """The good table with bad rows, and without them, after some blank lines."""
    content = lines()
    if name == "bad":
        content = [DAMAGE.get(number, line) for number, line in enumerate(content, 1)]
    else:
        content = [line for number, line in enumerate(content, 1) if number not in DAMAGE]
    spec = {**SPEC, "split": {"by": "hash", "column": "when", "validation": 0.2, "test": 0.2}}
    return make_table(folder / name, spec, text="\n" * blanks + "\n".join(content) + "\n").path


def rows(store: Store) -> list[bytes]:
    return [p.read_bytes() for p in sorted(store.folder.rglob("*.bin"))]


@pytest.mark.parametrize(("chunk", "blanks"), [(7, 0), (1 << 17, 2)])
def test_a_table_without_its_bad_rows(
    chunk: int, blanks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table_file, "CHUNK", chunk)
    for name in ("bad", "clean"):
        (tmp_path / name).mkdir()
    bad, clean = (damaged_table(tmp_path, name, blanks) for name in ("bad", "clean"))
    store = prepare(Table(str(bad), bad_rows=len(DAMAGE)), tmp_path / "data")
    assert store.content["notes"]["bad_rows_left_out"] == len(DAMAGE)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")]
    assert len(said) == 6  # five, and a line that there are more
    assert sum(f", row {33 + blanks}: 2 columns instead of 5" in line for line in said) == 1
    assert said[-1] == "left out: further rows are counted but not shown"
    assert rows(store) == rows(prepare(Table(str(clean)), tmp_path / "data"))
    message = refusal(lambda: prepare(Table(str(bad), bad_rows=len(DAMAGE) - 1), tmp_path / "data"))
    assert message.endswith("data.bad_rows=5 is exceeded")


def test_a_wrong_width_behind_a_cell_of_two_lines(tmp_path: Path) -> None:
    """Only the wrong row is skipped: a row of two lines counts as one."""
    content = lines()
    content[10] = '9,"u\n9",1600045000,1,0'
    clean = [line for number, line in enumerate(content) if number != 30]
    content[30] += ",9"
    stores = []
    for name, text in (("bad", content), ("clean", clean)):
        spec = {**SPEC, "split": {"by": "hash", "column": "when", "validation": 0.2, "test": 0.2}}
        path = make_table(tmp_path / name, spec, text="\n".join(text) + "\n").path
        stores.append(prepare(Table(str(path), bad_rows=1), tmp_path / "data"))
    assert rows(stores[0]) == rows(stores[1])


@pytest.mark.parametrize("block", [300, 1 << 20])
def test_ali_ccp_without_its_bad_lines(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aliccp_grammar, "BLOCK", block)
    whole = good()
    bad = {name: list(content) for name, content in whole.items()}
    bad[SKELETON_TRAIN][2] = bad[SKELETON_TRAIN][2][:-9]
    bad[SKELETON_TRAIN][7] = "nonsense"
    bad[SKELETON_TRAIN][8] = bad[SKELETON_TRAIN][8].replace("g8", "g88")  # of no user
    clean = {**whole, SKELETON_TRAIN: [x for i, x in enumerate(whole[SKELETON_TRAIN]) if i not in (2, 7, 8)]}
    raw = {name: write_raw(tmp_path / name, files) for name, files in (("bad", bad), ("clean", clean))}
    settings: dict[str, Any] = {"validation": 0.3, "min_count": 1}
    store = prepare(AliCCP(str(raw["bad"]), **settings, bad_rows=3), tmp_path / "data")
    assert store.content["notes"]["bad_rows_left_out"] == 3
    said = capsys.readouterr().err
    for line in (3, 8, 9):
        assert f"left out: {raw['bad']}/sample_skeleton_train.csv, line {line}: " in said
    assert rows(store) == rows(prepare(AliCCP(str(raw["clean"]), **settings), tmp_path / "data"))
    source = AliCCP(str(raw["bad"]), **settings, bad_rows=3)
    new = raw["bad"] / f"{SKELETON_TRAIN}.csv"
    assert f"{new}, line 3: " in refusal(lambda: list(source.read(new, store)))  # each input row has an output row
    assert source.bad.allowed == 3
    for allowed in (0, 1, 2):
        source = AliCCP(str(raw["bad"]), **settings, bad_rows=allowed)
        message = refusal(lambda source=source: prepare(source, tmp_path / "other"))  # type: ignore[misc]
        assert (f"data.bad_rows={allowed}" in message) == (allowed > 0)
        assert left_in(tmp_path / "other") == []


def test_a_row_counts_once_however_often_it_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    bad, path = BadRows(2), Path("log.csv")
    for _ in range(3):
        bad.add(BadRowError(path, [4, 7], "no number", "line"))
    assert len(bad) == 2
    first, second = "left out: log.csv, line 4: no number", "left out: log.csv, line 7: same problem as line 4"
    assert capsys.readouterr().err == f"{first}\n{second}\n"
    with pytest.raises(UserError, match=r"log\.csv, line 9: same problem as line 4; .*data\.bad_rows=2"):
        bad.add(BadRowError(path, [4, 7, 9], "no number", "line"))
    with pytest.raises(UserError, match=r"log\.csv, row 9: no number; .*data\.bad_rows=2"):
        bad.add(BadRowError(path, [9], "no number"))
    for wrong in (-1, 1.5, True):
        with pytest.raises(UserError, match=r"config data\.bad_rows"):
            BadRows(wrong)  # type: ignore[arg-type]


def test_predicting_tolerates_none(tmp_path: Path) -> None:
    """Each input row has an output row."""
    (tmp_path / "clean").mkdir()
    source = Table(str(damaged_table(tmp_path, "clean")), bad_rows=9)
    store = prepare(source, tmp_path / "data")
    new = tmp_path / "new.csv"
    pl.DataFrame({"n": ["1", "x"], "user": ["u1", "u2"], "when": ["1600000000"] * 2}).write_csv(new)
    assert f"{new}, row 3: column n: 'x' is not a number" in refusal(lambda: list(source.read(new, store)))
