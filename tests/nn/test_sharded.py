"""A table sharded over two processes by TorchRec: outputs, updates and checkpoints match an unsharded table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from dlen.errors import UserError
from dlen.models import MMoE
from dlen.nn.embedding import EmbeddingTable, deferred_tables
from dlen.nn.sharded import Layout, ShardedTable, check_shardable
from dlen.schema import Field, Kind
from dlen.training.optimizers import Combined, RowAdagrad, ShardedAdagrad, adagrad
from dlen.training.optimizers import split_for_sharding as split
from tests.helpers import FIELDS, WITH_DIMS, WITH_VECTORS, join_processes, make_batch, make_schema, needs_torchrec

DIM, WORLD, STEPS = 4, 2, 3
SETTINGS: dict[str, Any] = {"lr": 0.1, "eps": 1e-8, "weight_decay": 0.3}
RATES = [0.1, 0.02, 0.5]


def outputs_weight(rank: int, step: int, width: int) -> Tensor:
    """(B, width) gradient of the loss with respect to the output."""
    return torch.randn(9, width, generator=torch.Generator().manual_seed(10 * step + rank))


def batch_of(rank: int, step: int, rows: int = 9) -> Any:
    """Random ids of one process."""
    return make_batch(make_schema(), rows, seed=10 * step + rank)


def work(rank: int, folder: str, by: str) -> None:
    """Entry point of each process."""
    join_processes(rank, WORLD, Path(folder) / "init")
    torch.manual_seed(7)
    settings = SETTINGS | {"parts": 1}
    with deferred_tables():
        table = EmbeddingTable(make_schema(), DIM)
    sharded = ShardedTable(table, make_schema(), by, torch.device("cpu"), settings)
    assert list(sharded.parameters()) == []  # hidden from DDP and optimisers
    optimizer = ShardedAdagrad(sharded, settings)
    found: dict[str, Any] = {"start": sharded.state_dict(), "outputs": []}
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATES[step]  # as a scheduler does
        out = sharded(batch_of(rank, step))
        found["outputs"].append(out.detach())
        (out * outputs_weight(rank, step, sharded.out_dim)).sum().backward()
        optimizer.step()
    found |= {"end": sharded.state_dict(), "optimizer": optimizer.state_dict()}
    with torch.no_grad():
        found["uneven"] = sharded(batch_of(rank, STEPS, rows=[0, 5][rank]))  # as at the end of an evaluation
    ends = [dict(found[key]) for key in ("end", "optimizer")]
    distributed.broadcast_object_list(ends, 0)  # every process reads a checkpoint
    with deferred_tables():
        other = EmbeddingTable(make_schema(), DIM)
    loaded = ShardedTable(other, make_schema(), by, torch.device("cpu"), settings)
    loaded.load_state_dict(ends[0])
    again = ShardedAdagrad(loaded, settings)
    again.load_state_dict(ends[1])
    found |= {"loaded": loaded.state_dict(), "loaded optimizer": again.state_dict()}
    other_settings = ends[1] | {"param_groups": [ends[1]["param_groups"][0] | {"weight_decay": 0.7}]}
    with pytest.raises(UserError, match=r"weight_decay was 0\.7 and is 0\.3 now"):
        again.load_state_dict(other_settings)
    with pytest.raises(RuntimeError, match="size mismatch for weight: \\(3, 3\\) in the checkpoint"):
        loaded.load_state_dict({"weight": torch.zeros(3, 3)})
    with pytest.raises(RuntimeError, match="Missing key"):
        loaded.load_state_dict({})
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
@needs_torchrec
@pytest.mark.parametrize("by", ["rows", "tables"])
def test_a_split_table_is_as_a_whole_one(by: str, tmp_path: Path) -> None:
    spawn(work, (str(tmp_path), by), nprocs=WORLD)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD))
    torch.manual_seed(7)
    whole = EmbeddingTable(make_schema(), DIM)
    optimizer = RowAdagrad([whole.weight], **SETTINGS)
    assert torch.equal(first["start"]["weight"], whole.weight)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATES[step]
        for rank, found in enumerate((first, second)):
            out = whole(batch_of(rank, step))
            torch.testing.assert_close(found["outputs"][step], out)
            # each process's gradient counts half, as in DDP
            (out * outputs_weight(rank, step, whole.out_dim)).sum().div(WORLD).backward()
        optimizer.step()
        optimizer.zero_grad()
    sums = optimizer.state_dict()["state"][0]["sum"]
    for end, state in (("end", "optimizer"), ("loaded", "loaded optimizer")):
        torch.testing.assert_close(first[end]["weight"], whole.weight.detach())
        torch.testing.assert_close(first[state]["state"][0]["sum"], sums)
        assert "weight" not in second[end]  # only the first process assembles it
    for rank, found in enumerate((first, second)):
        torch.testing.assert_close(found["uneven"], whole(batch_of(rank, STEPS, rows=[0, 5][rank])).detach())


def test_fields_are_placed_where_there_is_least() -> None:
    """By hand: tags (13) alone in the first process, item (11) in the second, then user (7), then matches (5)."""
    layout = Layout.of(make_schema(), "tables", 2)
    assert layout.features == ["user", "item", "tags", "matches"]
    assert {name: (table.rows, table.features) for name, table in layout.tables.items()} == {
        "0": (18, ["tags", "matches"]),
        "1": (18, ["user", "item"]),
    }
    held = sorted((s.rank, s.at, s.first, s.rows) for s in layout.shards)
    offsets = make_schema().offsets
    assert held == [
        (0, 0, offsets["tags"], 13),
        (0, 13, offsets["matches"], 5),
        (1, 0, offsets["user"], 7),
        (1, 7, offsets["item"], 11),
    ]


def test_what_cannot_be_split() -> None:
    with pytest.raises(UserError, match="4 fields cannot be shared by 5 processes; set sharding=rows"):
        check_shardable(make_schema(), DIM, "tables", 5, "cpu", 0.0)
    check_shardable(make_schema(), DIM, "rows", 5, "cpu", 0.1)
    check_shardable(make_schema(fields=(*FIELDS, WITH_VECTORS[-1])), DIM, "rows", 5, "cpu", 0.1)
    with pytest.raises(UserError, match=r"config optimizer.embedding_weight_decay: on a CPU"):
        check_shardable(make_schema(fields=FIELDS[:1]), DIM, "rows", 2, "cpu", 0.1)
    check_shardable(make_schema(fields=FIELDS[:1]), DIM, "rows", 2, "cpu", 0.0)
    check_shardable(make_schema(fields=FIELDS[:1]), DIM, "rows", 2, "cuda", 0.1)
    with pytest.raises(UserError, match=r"config model\.embedding\.dim: .*multiple of 4, got 6"):
        check_shardable(make_schema(), 6, "rows", 2, "cpu", 0.0)
    three = (Field("user", Kind.ID, "user", 3),)
    with pytest.raises(UserError, match="3 ids are too few for 4 processes"):
        check_shardable(make_schema(fields=three), DIM, "rows", 4, "cpu", 0.0)
    numbers = (Field("age", Kind.NUMERIC, "user"),)
    with pytest.raises(UserError, match="the data have no ids"):
        check_shardable(make_schema(fields=numbers), DIM, "rows", 2, "cpu", 0.0)
    table = EmbeddingTable(make_schema(), DIM)
    with pytest.raises(ValueError, match="set optimizer=adagrad"):
        split(torch.optim.Adam([table.weight]))
    with pytest.raises(ValueError, match="fields with a dim have tables that cannot be sharded; set sharding=null"):
        split(adagrad(MMoE(make_schema(fields=WITH_DIMS), embedding_dim=DIM), lr=0.1, embedding_lr=0.1))
    parted = RowAdagrad([{"params": [table.weight], "parts": 3}], **SETTINGS)
    with pytest.raises(ValueError, match="a part for each task cannot be sharded"):
        split(Combined([torch.optim.Adam([torch.zeros(1)]), parted]))


@pytest.mark.parametrize("rows", [5, 40, 64, 67])
def test_a_deferred_table_draws_what_it_would_have_had(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn in pieces, and later draws do not change."""
    monkeypatch.setattr("dlen.nn.embedding._CHUNK", 16)
    schema = make_schema(fields=(Field("user", Kind.ID, "user", rows),))
    torch.manual_seed(3)
    whole, after = EmbeddingTable(schema, DIM), torch.randn(4)
    torch.manual_seed(3)
    with deferred_tables():
        table = EmbeddingTable(schema, DIM)
    assert torch.equal(torch.randn(4), after)
    assert table.weight.is_meta
    pieces = list(table.initial())
    assert len(pieces) == max(rows // 16, 1)
    assert torch.equal(torch.cat([values for _, values in pieces]), whole.weight)
    assert [first for first, _ in pieces] == [16 * number for number in range(len(pieces))]
