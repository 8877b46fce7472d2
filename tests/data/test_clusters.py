"""Pieces prepared on a cluster: the bytes of a single process, also if processes are killed."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlen.data import clusters
from dlen.data.clusters import RayPool, SubmititPool
from dlen.data.parallel import Pool, Workers, save_state
from dlen.data.prepare import Source, prepare
from dlen.data.sources import aliccp_passes, feed, table_pieces
from dlen.data.sources.aliccp import AliCCP
from dlen.data.sources.aliccp_demo import AliCCPDemo
from dlen.data.sources.feed import Feed
from dlen.data.sources.table import Table
from dlen.errors import UserError
from dlen.progress import Stage
from tests.conftest import Command
from tests.data.helpers import refusal
from tests.data.pieces import FAILED, killed, once_killed, squared
from tests.data.sources.test_table_parallel import bytes_of, table

POOLS = ("ray", "submitit")
FEW = 6  # pieces


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    """One Ray cluster for all tests, as each takes ten seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        pool = RayPool()
        for attempt in range(3):
            try:
                pool.size(2)
                break
            except UserError:  # Ray gives up after 30 s, which a busy machine may need
                pool.close()
                if attempt == 2:
                    raise
        yield
        pool.close()


def make(name: str) -> Pool:
    if name == "ray":
        return RayPool(2, cpus=0.5)
    return SubmititPool(2, cluster="local", parameters={"timeout_min": 10})


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "_BEAT", 0.5)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Source]]:
    """Small logs in several pieces."""
    folder = tmp_path_factory.mktemp("logs")
    AliCCPDemo(raw_dir=str(folder / "raw"), rows=1000).files()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_pieces, "ROWS", 200)
        patch.setattr(aliccp_passes, "PIECE", 100_000)
        patch.setattr(feed, "_CHUNK", 300)
        patch.setattr(feed, "PIECE", 1)
        yield {
            "table": Table(str(table(folder / "table"))),
            "aliccp": AliCCP(str(folder / "raw"), min_count=2, validation=0.3),
            # A worker has chunks of its own size, so there is one chunk
            "feed": Feed(rows=200, users=40, items=30),
        }


@pytest.mark.slow
@pytest.mark.usefixtures("_cluster")
@pytest.mark.parametrize("pool", POOLS)
def test_a_cluster_writes_the_bytes_of_one_process(
    pool: str, sources: dict[str, Source], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, source in sources.items():
        one, other = (prepare(source, tmp_path / folder, by) for folder, by in (("one", 1), (pool, make(pool))))
        assert bytes_of(one) == bytes_of(other), name
    assert "repeated here" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("_cluster")
@pytest.mark.parametrize("pool", POOLS)
def test_the_piece_of_a_killed_process_is_given_to_another(pool: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    save_state(state, tmp_path)
    with Workers(make(pool), FEW) as workers, Stage("squares", FEW, "numbers") as stage:
        found = list(workers.in_order(squared, state, range(FEW), stage))
        assert found == [0, 1, 4, FAILED, 16, 25]
        assert workers.pool.done == FEW - 1


@pytest.mark.slow
def test_a_cluster_of_the_command_line(tmp_path: Path, command: Command) -> None:
    log = ("data.rows=1100000", "data.users=100", "data.items=50")  # two pieces
    ran = command("prepare.py", *log, "cluster=submitit", "cluster.cluster=local", "prepare_workers=1")
    assert ran.returncode == 0, ran.stderr
    assert "repeated here" not in ran.stderr
    again = command("prepare.py", *log)
    assert again.stdout == ran.stdout


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["cluster=submitit"], "config prepare_workers: "),
        (["cluster=ray", "cluster.cpus=-1"], "config cluster.cpus: -1"),
        (["cluster=ray", "cluster.cpus=many"], "config cluster.cpus: 'many'"),
        (["cluster=ray", "+cluster.gpus=1"], "config cluster: "),
        (["+cluster={_target_: pathlib.Path}"], "config cluster: "),
        (["+cluster={a: 1}"], "config cluster: "),
        (
            ["cluster=submitit", "prepare_workers=2", "cluster.parameters={nodes: 2}"],
            "config cluster.parameters.nodes: ",
        ),
    ],
)
def test_wrong_settings_are_one_line(refused: Command, changes: list[str], named: str) -> None:
    ran = refused("prepare.py", "data.rows=1000", *changes)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1), ran.stderr
    assert named in ran.stderr


@pytest.mark.parametrize(("pool", "module"), [("ray", "ray"), ("submitit", "submitit")])
def test_a_missing_package_is_one_line(
    pool: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: dict[str, Source]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert f"dlen[{module}]" in refusal(lambda: prepare(sources["table"], tmp_path / "data", make(pool)))


class FakeJob:
    """A job that ends at once."""

    job_id, state = "7", "FAILED"

    def done(self) -> bool:
        return True

    def cancel(self) -> None:
        pass

    def stdout(self) -> str:
        return ""

    def stderr(self) -> str:
        return "no such partition\n"


def test_parameters_that_submitit_does_not_know_are_told(tmp_path: Path) -> None:
    pool = SubmititPool(2, cluster="local", parameters={"no_such": 1})
    save_state(tmp_path / "state", tmp_path)
    with Workers(pool, FEW) as workers, Stage("squares", FEW, "numbers") as stage:
        said = refusal(lambda: list(workers.in_order(squared, tmp_path / "state", range(FEW), stage)))
    assert said.startswith("config cluster: ")
    assert "no_such" in said


def test_jobs_that_end_at_once_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("submitit.AutoExecutor.submit", lambda *_: FakeJob())
    save_state(tmp_path / "state", tmp_path)
    with Workers(make("submitit"), FEW) as workers, Stage("squares", FEW, "numbers") as stage:
        said = refusal(lambda: list(workers.in_order(squared, tmp_path / "state", range(FEW), stage)))
    assert "no such partition" in said


def test_a_piece_is_taken_once(tmp_path: Path) -> None:
    queue = clusters._Queue(tmp_path / "queue")
    queue.create()
    for number in range(200):
        queue.put(queue.todo, f"{number:09d}", b"")
    taken: list[str] = []

    def take(job: str) -> None:
        while (path := queue.take(job)) is not None:
            taken.append(path.name.partition("@")[0])

    threads = [threading.Thread(target=take, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [f"{number:09d}" for number in range(200)]


class Environment:
    """Of a job."""

    job_id = "1"


def test_a_job_ends_with_whoever_gives_it_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("submitit.JobEnvironment", Environment)
    monkeypatch.setattr(clusters, "_ORPHANED", 0.3)
    queue = clusters._Queue(tmp_path / "queue")
    clusters.serve(str(queue.folder))  # it is gone
    queue.create()
    clusters.serve(str(queue.folder))  # no sign of life


def test_a_job_that_is_started_again_gives_back_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("submitit.JobEnvironment", Environment)
    monkeypatch.setattr(clusters, "_ORPHANED", 0.0)
    queue = clusters._Queue(tmp_path / "queue")
    queue.create()
    queue.put(queue.taken, "000000003@1", b"")
    queue.put(queue.taken, "000000004@11", b"")  # of another job
    clusters.serve(str(queue.folder))
    (answer,) = queue.done.iterdir()
    assert (answer.name, pickle.loads(answer.read_bytes()).error) == ("000000003", clusters._LOST)
    assert [path.name for path in queue.taken.iterdir()] == ["000000004@11"]


@pytest.mark.slow
def test_a_pool_is_used_again_whatever_happened_before(tmp_path: Path) -> None:
    pool, state = make("submitit"), tmp_path / "state"
    save_state(state, tmp_path)
    (tmp_path / "killed").touch()
    for work in (squared, killed, squared):
        with Workers(pool, FEW) as workers, Stage("squares", FEW, "numbers") as stage:
            if work is killed:
                assert "killed 3 times" in refusal(lambda: list(workers.in_order(killed, state, range(FEW), stage)))
            else:
                assert list(workers.in_order(squared, state, range(FEW), stage)) == [0, 1, 4, FAILED, 16, 25]
                assert pool.done == FEW - 1


@pytest.mark.slow
def test_pieces_that_need_several_attempts_are_not_taken_for_one_that_always_fails(tmp_path: Path) -> None:
    state = tmp_path / "state"
    save_state(state, tmp_path)
    with Workers(make("submitit"), FEW) as workers, Stage("squares", FEW, "numbers") as stage:
        assert list(workers.in_order(once_killed, state, range(FEW), stage)) == list(range(FEW))


@pytest.mark.slow
@pytest.mark.usefixtures("_cluster")
def test_a_ray_cluster_without_so_many_cpus_is_told() -> None:
    assert "config cluster.cpus: " in refusal(lambda: RayPool(cpus=1000).size(FEW))


def test_a_pool_of_one_piece_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(RayPool, "_connected", started)
    assert RayPool().size(1) == 0
    assert make("submitit").size(1) == 0
