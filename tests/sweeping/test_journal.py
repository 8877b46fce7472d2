"""The journal of a study: however its end is truncated, the study continues, and nothing else is lost."""

from __future__ import annotations

import threading
from pathlib import Path

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from dlen.errors import UserError
from dlen.sweeping.study import connect

TORN = {
    "half a record": b'{"op_code": 5, "worker_id": "x", "tri',
    "a record without its newline": b'{"op_code":5,"worker_id":"x","trial_id":0}',
    "one character": b"{",
    "zeros, as a file system leaves them": bytes(4096),
    "zeros and a newline": bytes(100) + b"\n",
    "no UTF-8": b'{"op_code":5,"worker_id":"\xff\xfe\n',
    "several lines of junk": b"\x00\xff\n\x80junk\n\n{\n12\n[]\nnull",
    "a blank line": b"\n",
    "a number": b"12\n",
    "deep": b"[" * 100_000 + b"\n",
    "nothing": b"",
}


def begun(path: Path, trials: int = 2) -> bytes:
    """Start a study with some trials and return its file."""
    study = optuna.create_study(study_name="s", storage=connect(str(path)))
    add(study, trials)
    return path.read_bytes()


def add(study: optuna.Study, trials: int) -> None:
    for _ in range(trials):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        study.tell(trial, trial.number / 2)


def reopened(path: Path) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=connect(str(path)))


def values(study: optuna.Study) -> list[float]:
    return [t.value for t in study.get_trials() if t.value is not None]


@pytest.mark.parametrize("torn", list(TORN))
def test_a_study_goes_on_without_a_torn_end(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    whole = begun(path)
    for more in range(1, 4):  # truncated again and again
        with path.open("ab") as file:
            file.write(TORN[torn])
        study = reopened(path)
        assert values(study) == [n / 2 for n in range(1 + more)]
        add(study, 1)
        assert path.read_bytes().startswith(whole)
        whole = path.read_bytes()
    JournalStorage(JournalFileBackend(str(path)))  # Optuna's own class can read it, as the dashboard does


@pytest.mark.parametrize("torn", ["half a record", "zeros and a newline", "several lines of junk"])
def test_a_writer_that_has_it_open_goes_on_too(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    begun(path)
    first, second = reopened(path), reopened(path)
    with path.open("ab") as file:
        file.write(TORN[torn])
    add(first, 1)
    add(second, 1)
    assert values(first) == values(second) == values(reopened(path)) == [0, 0.5, 1, 1.5]


def test_whatever_the_place_at_which_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    content = begun(path, 1)
    for length in [*range(0, len(content), 11), len(content) - 1]:
        path.write_bytes(content[:length])
        storage = connect(str(path))
        study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
        add(study, 1)
        assert len(values(reopened(path))) == 1
        assert path.read_bytes().startswith(content[: content.rfind(b"\n", 0, length) + 1])


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=60))
def test_any_bytes_at_its_end(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "journal.log"
    path.unlink(missing_ok=True)
    whole = begun(path, 1)
    with path.open("ab") as file:
        file.write(junk)
    add(reopened(path), 1)
    assert path.read_bytes().startswith(whole)
    assert values(reopened(path)) == [0, 0.5]


def test_a_record_that_another_program_wrote_behind_a_torn_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    begun(path)
    with path.open("ab") as file:
        file.write(TORN["half a record"])
    before = path.read_bytes()
    other = JournalFileBackend(str(path))
    other.append_logs([{"op_code": 2, "worker_id": "other", "study_id": 0, "user_attr": {"said": "yes"}}])
    study = reopened(path)
    assert study.user_attrs == {"said": "yes"}
    add(study, 1)
    assert values(reopened(path)) == [0, 0.5, 1]
    assert path.read_bytes().startswith(before)


def test_what_is_no_journal_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for content in (b"not a journal", b"not\na journal\n", b"SQLite format 3\0\n", b"{}\n", b"\n", bytes(10)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"notes\.txt is not a journal file; .*sqlite:///"):
            connect(str(path))
        assert path.read_bytes() == content


def test_a_line_within_it_that_is_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    lines = begun(path).splitlines(keepends=True)
    content = b"".join([*lines[:2], b"junk\n", *lines[2:]])
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"journal\.log is damaged: line 3 is not a record"):
        connect(str(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize("taken", [False, True])
def test_writers_at_once_lose_nothing(taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Optuna's lock is taken from each, as it is from a writer that is stopped for half a minute."""
    if taken:
        monkeypatch.setattr(JournalFileSymlinkLock, "acquire", lambda _: True)
    path = tmp_path / "journal.log"
    begun(path, 0)
    threads = [threading.Thread(target=lambda: add(reopened(path), 8)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    study = reopened(path)
    assert sorted(t.number for t in study.get_trials()) == list(range(32))
    assert len(values(study)) == 32
