"""Two processes with uneven shares of the rows give the same metrics as one process."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn
from torchmetrics import Metric

from dlen.metrics import (
    ByUser,
    CalibrationError,
    CalibrationRatio,
    ExactAUC,
    HistogramAUC,
    LogLoss,
    NormalizedEntropy,
)
from tests.helpers import join_processes

ROWS, TARGETS = 301, 2


def make_rows() -> tuple[Tensor, Tensor, Tensor]:
    """Log-odds with ties, labels and mask."""
    generator = torch.Generator().manual_seed(0)
    scores = (torch.randn(ROWS, TARGETS, generator=generator) * 8).round() / 4 - 1
    labels = (torch.rand(ROWS, TARGETS, generator=generator) < scores.sigmoid()).float()
    return scores, labels, (torch.rand(ROWS, TARGETS, generator=generator) < 0.8).float()


def figures(part: slice) -> dict[str, Tensor]:
    """All metrics of these rows, in two updates; combined with the other process if there is one."""
    scores, labels, mask = (x[part] for x in make_rows())
    log_p, log_q = (torch.nn.functional.logsigmoid(x) for x in (scores, -scores))
    inputs: dict[str, tuple[Metric, list[Tensor]]] = {
        "histogram": (HistogramAUC(TARGETS), [scores, labels, mask]),
        "exact": (ExactAUC(TARGETS), [scores, labels, mask]),
        "logloss": (LogLoss(TARGETS), [log_p, log_q, labels, mask]),
        "ratio": (CalibrationRatio(TARGETS), [log_p, labels, mask]),
        "error": (CalibrationError(TARGETS), [log_p, labels, mask]),
        "entropy": (NormalizedEntropy(TARGETS), [log_p, log_q, labels, mask]),
        "by user": (ByUser(TARGETS), [scores, labels, mask, torch.arange(ROWS)[part] % 9]),
    }
    found = {}
    for name, (metric, values) in inputs.items():
        for piece in torch.arange(len(scores)).split(60):
            if len(piece):
                metric.update(*(x[piece] for x in values))
        value = metric.compute()
        found[name] = value if isinstance(value, Tensor) else torch.tensor([x for v in value for x in astuple(v)])
    return found


def work(rank: int, folder: str, first_share: int) -> None:
    """Entry point of each process."""
    join_processes(rank, 2, Path(folder) / f"init{first_share}")
    part = slice(0, first_share) if rank == 0 else slice(first_share, ROWS)
    torch.save(figures(part), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("first_share", [220, ROWS])
def test_two_processes_equal_one(tmp_path: Path, first_share: int) -> None:
    """The second process has 81 rows, or none."""
    spawn(work, (str(tmp_path), first_share), nprocs=2)
    wanted = figures(slice(None))
    for rank in (0, 1):
        got = torch.load(tmp_path / f"{rank}.pt")
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            assert got[name].tolist() == pytest.approx(value.tolist(), rel=1e-12), name
