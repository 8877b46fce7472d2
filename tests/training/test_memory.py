"""Memory of the embedding table: closed forms against a real table, and what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dlen import limits
from dlen.data.prepare import prepare
from dlen.data.sources.feed import Feed
from dlen.models import MMoE
from dlen.models.model import Model
from dlen.nn.embedding import EmbeddingTable
from dlen.training import memory
from dlen.training.memory import check_memory, free_memory, state_bytes, table_bytes
from dlen.training.optimizers import Combined, adagrad, adam
from tests.conftest import Compose
from tests.data.helpers import refusal
from tests.helpers import WITH_DIMS, make_batch, make_schema

IDS = 2_001 + 41 + 301 + 25 + 4_001 + 8 + 3 + 61  # of the feed
WIDTH = 16 + 8  # five first-order terms, padded to a multiple of four
TABLE = 4 * IDS * WIDTH


def model(private: bool) -> Model:
    if private:  # a vector of four numbers for each of three tasks
        return MMoE(make_schema(), embedding=partial(EmbeddingTable, dim=4, private=True))
    return MMoE(make_schema(fields=WITH_DIMS), embedding=partial(EmbeddingTable, dim=4, first_order=True))


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("make", [adam, adagrad])
def test_bytes_are_those_of_a_table_that_was_updated(make: type, private: bool) -> None:
    real = model(private)
    optimizer = make(real, lr=0.1, embedding_lr=0.1)
    assert isinstance(optimizer, Combined)
    real(make_batch(real.schema, 8)).log_p.sum().backward()
    optimizer.step()
    tables = [m for m in real.modules() if isinstance(m, EmbeddingTable)]
    states = [value for table in tables for value in optimizer.parts[1].state[table.weight].values()]
    with torch.device("meta"):
        planned = model(private)
    assert table_bytes(planned) == sum(table.weight.untyped_storage().nbytes() for table in tables)
    assert state_bytes(make(planned, lr=0.1, embedding_lr=0.1)) == sum(
        state.untyped_storage().nbytes() for state in states if isinstance(state, Tensor)
    )


CASES = {
    "adam": ([], 3 * TABLE),
    "adagrad": (["optimizer=adagrad"], TABLE + 4 * IDS),
    "two copies": (["trainer.devices=2"], 6 * TABLE),
    "halves": (["optimizer=adagrad", "trainer.devices=2", "sharding=rows"], TABLE + 4 * IDS),
    "16 bits": (["trainer.precision=bf16-true"], 1.5 * TABLE),
    "private vectors": (
        ["model.embedding.private=true", "model.embedding.first_order=false"],
        3 * 4 * IDS * 5 * 16,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_table_is_refused_by_one_byte(
    case: str, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = prepare(Feed(rows=2000), tmp_path / "data")
    settings, needed = CASES[case]
    config = composed("model=mmoe", "trainer.accelerator=cpu", *settings)
    monkeypatch.setattr(memory, "free_memory", lambda: needed)
    check_memory(config, store)
    monkeypatch.setattr(memory, "free_memory", lambda: needed - 1)
    message = refusal(lambda: check_memory(config, store))
    assert "most ids are of field user, 4,001" in message
    assert "model.embedding.dim" in message
    assert ("use optimizer=adagrad" in message) == ("optimizer=adagrad" not in settings)
    assert ("sharding=rows" in message) == ("sharding=rows" not in settings)


def test_a_process_of_several_counts_itself(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = prepare(Feed(rows=2000), tmp_path / "data")
    config = composed("model=mmoe", "trainer.accelerator=cpu", "trainer.devices=2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(memory, "free_memory", lambda: 3 * TABLE)
    check_memory(config, store)


@pytest.mark.parametrize("sharding", [None, "rows", "tables"])
def test_a_gpu_needs_the_state_and_the_machine_the_table(
    sharding: str | None, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = prepare(Feed(rows=2000), tmp_path / "data")
    config = composed("model=mmoe", "optimizer=adagrad", "trainer.devices=[1,3]", f"sharding={sharding or 'null'}")
    asked: list[int] = []
    on_gpu, on_machine = ((TABLE + 4 * IDS) / 2, 0) if sharding else (TABLE + 4 * IDS, 2 * TABLE)

    def free_on_gpu(number: int) -> float:
        asked.append(number)
        return on_gpu

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(memory, "free_on_gpu", free_on_gpu)
    monkeypatch.setattr(memory, "free_memory", lambda: on_machine)
    check_memory(config, store)
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_memory(config, store)
    assert asked == [1, 3]
    monkeypatch.setattr(memory, "free_on_gpu", lambda number: on_gpu - 1)
    assert "on GPU 3" in refusal(lambda: check_memory(config, store))


@pytest.mark.parametrize("name", ["lightgbm", "logistic"])
def test_a_baseline_has_no_table(name: str, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 0)
    check_memory(composed(f"model={name}"), prepare(Feed(rows=2000), tmp_path / "data"))


def machine(folder: Path, groups: dict[str, str], cgroup: str) -> None:
    """Write the files of a machine with 1000 kB free and 24 kB of swap, and of its cgroups."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "meminfo").write_text(
        "MemTotal: 9000 kB\nMemAvailable: 1000 kB\nSwapFree: 24 kB\nHugePages: 0\n"
    )
    (folder / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, content in groups.items():
        (folder / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup" / name).write_text(content)


STAT = "anon 7\nfile 9\ninactive_file 200\nactive_file 50\ntotal_inactive_file 20\ntotal_active_file 5\n"


@pytest.mark.parametrize(
    ("groups", "cgroup", "free"),
    [
        ({}, "", 1024 * 1024),
        ({"job/memory.max": "max\n", "job/memory.current": "5000\n"}, "0::/job\n", 1024 * 1024),
        (
            {"job/memory.max": "9000\n", "job/memory.current": "5000\n", "job/memory.stat": STAT},
            "0::/job/step\n",  # the limit of a group above, as of a Slurm job
            4250,
        ),
        (
            {"memory/memory.limit_in_bytes": "9000\n", "memory/memory.usage_in_bytes": "9100\n"},
            "9:pids:/x\n4:cpu,memory:/docker/1\n0::/\n",  # a container, whose own group is the root
            0,
        ),
        (
            {
                "memory/job/memory.limit_in_bytes": "9000\n",
                "memory/job/memory.usage_in_bytes": "8000\n",
                "memory/job/memory.stat": STAT,
            },
            "4:memory:/job\n",
            1025,
        ),
    ],
)
def test_free_memory_is_within_every_limit(
    groups: dict[str, str], cgroup: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, groups, cgroup)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "proc" / "meminfo")
    monkeypatch.setattr(limits, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(limits, "_CGROUP", tmp_path / "cgroup")
    assert free_memory() == free


def test_this_machine_has_some_memory_left() -> None:
    assert 1 << 24 < free_memory() < 1 << 50
