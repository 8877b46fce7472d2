"""What only a GPU can show: a captured training step, where a capture fails, and runs of both kinds of step."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlen.batch import Batch
from dlen.data.split import ResidentSplit
from dlen.models import DLEN, MMoE
from dlen.training.fit import train
from dlen.training.optimizers import adam
from dlen.training.static_step import StaticStep
from tests.conftest import Compose
from tests.helpers import make_schema
from tests.training.test_static_step import SIZE, batches, loss_of, with_bags

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SETTINGS = [
    *(
        "data=feed",
        "data.rows=20000",
        "loader.batch_size=512",
        "trainer.max_epochs=3",
        "trainer.val_check_interval=0.5",
    ),
    *("trainer.precision=32-true", "patience=9", "reset_embeddings=true", "trainer.log_every_n_steps=1"),
]


def on_gpu(make: Any = MMoE) -> tuple[Any, ResidentSplit]:
    schema = make_schema()
    return make(schema, expert=[8], tower=[4]).cuda(), ResidentSplit(with_bags(schema), torch.device("cuda"))


def test_a_step_whose_capture_fails_trains_on_without_a_graph(capsys: pytest.CaptureFixture[str]) -> None:
    model, split = on_gpu()
    loss = loss_of(model)

    def reads(batch: Batch) -> Tensor:
        value = loss(batch)
        assert value.item() > 0
        return value

    step = StaticStep(reads, adam(model, lr=0.01, embedding_lr=0.1), split, SIZE, graph=True)
    before, losses = torch.cuda.current_stream(), []
    for index in [*batches(0), *batches(1), *batches(2)]:
        losses.append(float(step(index)))
    assert step.refused
    assert "CUDA graph" in capsys.readouterr().err
    assert torch.cuda.current_stream() == before
    assert losses[-1] < losses[0]


def test_a_changed_learning_rate_is_captured_anew() -> None:
    model, split = on_gpu(DLEN)
    optimizer = adam(model, lr=0.01, embedding_lr=0.1)
    step = StaticStep(loss_of(model), optimizer, split, SIZE, graph=True)
    for index in batches(0)[:5]:
        step(index)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    frozen = {name: p.detach().clone() for name, p in model.named_parameters()}
    for index in [*batches(1)[:5], *batches(2)[:5]]:
        step(index)
    assert step._captured is not None
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, frozen[name]), name


def losses_of(run: Path) -> list[float]:
    """The training loss of each step."""
    with (run / "logs" / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


@pytest.mark.parametrize("model", ["mmoe", "dlen"])
def test_a_run_with_a_graph_trains_as_one_without(
    model: str, composed: Compose, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With ids dropped at random and new tables: all draw the same numbers, and a new table keeps its memory."""
    found = {}
    for setting in ("cuda_graph=false", "cuda_graph=auto", "compile=true"):
        run = tmp_path / setting.replace("=", "_")
        train(composed(*SETTINGS, f"model={model}", setting, f"run_dir={run}"))
        found[setting] = losses_of(run)
    wanted = found.pop("cuda_graph=false")
    for losses in found.values():
        print(losses[:40:4], wanted[:40:4], losses[-5:], wanted[-5:])
        assert len(losses) == len(wanted) > 90
        # Sums on a GPU run in no fixed order, and a training amplifies their last bits.
        assert losses[:20] == pytest.approx(wanted[:20], rel=1e-4)
        assert losses == pytest.approx(wanted, rel=2e-2)
    assert "training steps are not" not in capfd.readouterr().err


def test_dropout_of_a_replayed_step_draws_what_the_ordinary_one_draws() -> None:
    drop, x = nn.Dropout(0.5), torch.ones(1000, device="cuda")
    torch.cuda.manual_seed(0)
    drop(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = drop(x)
    for seed in (5, 6, 5):
        torch.cuda.default_generators[0].manual_seed(seed)
        graph.replay()
        torch.cuda.default_generators[0].manual_seed(seed)
        assert torch.equal(out, drop(x))
