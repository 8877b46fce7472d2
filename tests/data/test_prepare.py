"""prepare(): one store per cause, written once and atomically."""

from __future__ import annotations

import fcntl
import multiprocessing
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from dlen.data.prepare import prepare, summary
from dlen.data.sources.aliccp_demo import AliCCPDemo
from dlen.data.sources.feed import Feed
from tests.data.helpers import TinySource, arrays, left_in, refusal, whole


def test_second_call_reads_the_same_store(tmp_path: Path) -> None:
    source = TinySource()
    first = prepare(source, tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in first.folder.rglob("*")}
    second = prepare(source, tmp_path)
    assert source.written == 1
    assert second.folder == first.folder
    assert {p: p.stat().st_mtime_ns for p in first.folder.rglob("*")} == stamps
    assert left_in(tmp_path)[0].startswith(f"tiny/{first.fingerprint}")


def test_other_settings_make_another_store(tmp_path: Path) -> None:
    first = prepare(TinySource(rows=10), tmp_path)
    before = arrays(first)
    second = prepare(TinySource(rows=11), tmp_path)
    assert first.fingerprint != second.fingerprint
    assert (len(first.split("train")), len(second.split("train"))) == (10, 11)
    assert arrays(first) == before


def test_another_name_makes_another_store(tmp_path: Path) -> None:
    stores = [prepare(TinySource(name=name), tmp_path) for name in ("a", "b")]
    assert [s.folder.parent.name for s in stores] == ["a", "b"]


@pytest.mark.parametrize("change", [b"abd", b"abcd", b""])
def test_a_changed_file_makes_another_store(tmp_path: Path, change: bytes) -> None:
    path = tmp_path / "raw.csv"
    path.write_bytes(b"abc")
    source = TinySource(path)
    first = prepare(source, tmp_path / "data")
    path.write_bytes(change)
    assert prepare(source, tmp_path / "data").fingerprint != first.fingerprint
    assert source.written == 2


def test_a_moved_folder_of_files_is_the_same_data(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "raw.csv").write_bytes(b"abc")
    first = prepare(TinySource(tmp_path / "a" / "raw.csv"), tmp_path / "data")
    (tmp_path / "a").rename(tmp_path / "b")
    source = TinySource(tmp_path / "b" / "raw.csv")
    assert prepare(source, tmp_path / "data").folder == first.folder
    assert source.written == 0


def test_a_torn_array_is_refused(tmp_path: Path) -> None:
    source = TinySource()
    torn = prepare(source, tmp_path).folder / "shards" / "00000" / "train" / "ids.bin"
    torn.write_bytes(torn.read_bytes()[:-3])
    assert str(torn) in refusal(lambda: prepare(source, tmp_path))


def test_a_wrong_version_is_refused(tmp_path: Path) -> None:
    source = TinySource()
    path = prepare(source, tmp_path).folder / "store.json"
    path.write_text(path.read_text().replace('"format": ', '"format": 9'))
    assert str(path) in refusal(lambda: prepare(source, tmp_path))


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        prepare(TinySource(fail=True), tmp_path)
    assert left_in(tmp_path) == []
    assert len(prepare(TinySource(), tmp_path).split("test")) == 10


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    folder = prepare(TinySource(), tmp_path).folder
    folder.rename(folder.with_name(f".{folder.name}.writing"))
    source = TinySource()
    assert len(prepare(source, tmp_path).split("train")) == 10
    assert source.written == 1
    assert [p.name for p in (tmp_path / "tiny").iterdir() if p.is_dir()] == [folder.name]


@pytest.mark.parametrize("below", ["file", "file/below"])
def test_a_data_dir_that_is_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    message = refusal(lambda: prepare(TinySource(), tmp_path / below))
    assert str(tmp_path / "file") in message
    assert "data_dir" in message


def test_a_demo_below_a_file_is_refused(tmp_path: Path) -> None:
    """As with ``python train.py data=aliccp_demo data_dir=FILE``: the raw files are in the data folder too."""
    (tmp_path / "file").write_text("")
    demo = AliCCPDemo(raw_dir=str(tmp_path / "file" / "raw"), rows=100)
    assert str(tmp_path / "file") in refusal(lambda: prepare(demo, tmp_path / "file"))


def test_a_demo_leaves_a_folder_it_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "mine.txt").write_text("mine")
    demo = AliCCPDemo(raw_dir=str(tmp_path / "raw"), rows=100)
    assert str(tmp_path / "raw") in refusal(lambda: prepare(demo, tmp_path / "data"))
    assert (tmp_path / "raw" / "mine.txt").read_text() == "mine"


def test_waits_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the store appears while another process holds the lock, it is read and not written again."""
    source, other = TinySource(), TinySource()
    real = fcntl.flock

    def busy_once(file: Any, operation: int) -> None:
        if operation & fcntl.LOCK_NB:
            raise BlockingIOError
        monkeypatch.setattr(fcntl, "flock", real)
        folder = prepare(other, tmp_path / "elsewhere").folder
        folder.rename(tmp_path / "tiny" / folder.name)

    monkeypatch.setattr(fcntl, "flock", busy_once)
    store = prepare(source, tmp_path)
    assert (source.written, other.written) == (0, 1)
    assert len(store.split("train")) == 10
    assert "waiting" in capsys.readouterr().err


def test_summary_tells_rows_rates_and_folder(tmp_path: Path) -> None:
    store = prepare(TinySource(), tmp_path)
    text = summary(store)
    for part in ("tiny", "train 10", "test 10", "click: 50.0000%", str(store.folder)):
        assert part in text


def feed(folder: Path) -> Feed:
    return Feed(rows=60_000, users=100, items=50)


def demo(folder: Path) -> AliCCPDemo:
    return AliCCPDemo(raw_dir=str(folder / "raw"), rows=600, min_count=1)


def _prepare_at_once(make: Callable[[Path], Any], folder: Path, barrier: Barrier, results: Any) -> None:
    source = make(folder)
    barrier.wait(600)
    try:
        store = prepare(source, folder / "data")
        results.put((store.fingerprint, whole(store.split("train")).ids.sum().item()))
    except BaseException as error:
        results.put(repr(error))


@pytest.mark.slow
@pytest.mark.parametrize("make", [feed, demo])
def test_two_processes_at_once_make_one_store(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (make, tmp_path, barrier, results)
    processes = [context.Process(target=_prepare_at_once, args=arguments, daemon=True) for _ in range(2)]
    for process in processes:
        process.start()
    first, second = results.get(timeout=600), results.get(timeout=600)
    for process in processes:
        process.join(60)
    assert not isinstance(first, str), first
    assert first == second
    store = prepare(make(tmp_path), tmp_path / "data")
    assert (store.fingerprint, whole(store.split("train")).ids.sum().item()) == first
    assert [p.name for p in store.folder.parent.iterdir() if p.is_dir()] == [store.folder.name]
