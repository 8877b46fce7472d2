"""Several processes: a table's gradient is the mean over all of them, whatever ids each one has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn

from dlen.models.predictions import Predictions, task_losses
from dlen.nn.processes import exchange_rows, total, world_size
from dlen.training.optimizers import touched_rows
from tests.helpers import join_processes

WORLD = 3
ROWS, DIM = 11, 2


def ids_of(rank: int) -> Tensor:
    """Repeated ids, a different number in each process, and none in the last."""
    return torch.tensor([[1, 1, 4], [4, 7, 9, 9, 10], []][rank], dtype=torch.long)


def table() -> nn.Parameter:
    return nn.Parameter(torch.arange(ROWS * DIM, dtype=torch.float32).view(ROWS, DIM))


def loss_of(weight: Tensor, rank: int) -> Tensor:
    return (nn.functional.embedding(ids_of(rank), weight, sparse=weight.is_leaf) ** 2).sum()


def labels_of(rank: int) -> tuple[Predictions, Tensor, Tensor]:
    """Eight rows; the number of rows that observe the second task is the rank."""
    generator = torch.Generator().manual_seed(rank)
    logits = torch.randn(8, 2, generator=generator)
    mask = torch.ones(8, 2)
    mask[:, 1] = torch.arange(8) < rank
    log_p, log_q = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
    return Predictions(log_p, log_q, log_p), (torch.rand(8, 2, generator=generator) < 0.5).float(), mask


def weights_of(rank: int) -> Tensor:
    """Weights of the rows and labels of :func:`labels_of`, below 1 and unlike in each process."""
    return torch.rand(8, 3, generator=torch.Generator().manual_seed(10 + rank)) * (rank + 1) / 40


def work(rank: int, folder: str) -> None:
    """Entry point of each process."""
    join_processes(rank, WORLD, Path(folder) / "init")
    assert world_size() == WORLD
    weight = table()
    loss_of(weight, rank).backward()
    exchange_rows(weight)
    assert weight.grad is not None
    assert weight.grad.is_sparse
    found = {
        "rows": touched_rows(weight.grad)[0],
        "grad": weight.grad.to_dense(),
        "losses": task_losses(*labels_of(rank)),
        "weighted": task_losses(*labels_of(rank), weights_of(rank)),
    }
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_three_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    spawn(work, (str(tmp_path),), nprocs=WORLD)
    dense = table()
    sum(loss_of(dense * 1.0, rank) for rank in range(WORLD)).backward()  # type: ignore[union-attr]
    assert dense.grad is not None
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for part in found:
        torch.testing.assert_close(part["grad"], dense.grad / WORLD)
        assert part["rows"].tolist() == [1, 4, 7, 9, 10]
    # the mean of the processes' losses is the loss over all rows
    parts = [labels_of(rank) for rank in range(WORLD)]
    log_p, log_q = (torch.cat([getattr(p, key) for p, _, _ in parts]) for key in ("log_p", "log_q"))
    joint = Predictions(log_p, log_q, log_p)
    targets = torch.cat([y for _, y, _ in parts]), torch.cat([m for _, _, m in parts])
    torch.testing.assert_close(torch.stack([p["losses"] for p in found]).mean(0), task_losses(joint, *targets))
    weighted = task_losses(joint, *targets, torch.cat([weights_of(rank) for rank in range(WORLD)]))
    torch.testing.assert_close(torch.stack([p["weighted"] for p in found]).mean(0), weighted)


def test_one_process_changes_nothing() -> None:
    weight = table()
    loss_of(weight, 1).backward()
    before = weight.grad
    exchange_rows(weight)
    assert weight.grad is before
    value = torch.ones(2)
    assert total(value) is value
    assert world_size() == 1
