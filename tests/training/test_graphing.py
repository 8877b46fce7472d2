"""Runs whose training steps are a static step: the same results, and which runs keep the ordinary step."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend

from dlen.errors import UserError
from dlen.training import building, datamodule, fit, graphing
from dlen.training.fit import train
from dlen.training.module import RankingModule
from dlen.training.static_step import StaticStep
from tests.conftest import Compose

SETTINGS = [
    *("data=feed", "data.rows=3000", "loader.batch_size=256", "trainer.max_epochs=3", "trainer.val_check_interval=0.5"),
    *("trainer.precision=32-true", "trainer.accelerator=cpu", "reset_embeddings=true", "metrics.conflict_every=3"),
]


class Took:
    """Counts the steps of both kinds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.static = self.ordinary = 0
        static, loss = StaticStep.__call__, RankingModule.training_step

        def count_static(step: StaticStep, index: Tensor) -> Tensor:
            self.static += 1
            return static(step, index)

        def count(module: RankingModule, batch: Any, batch_idx: int) -> Tensor:
            self.ordinary += 1
            return loss(module, batch, batch_idx)

        monkeypatch.setattr(StaticStep, "__call__", count_static)
        monkeypatch.setattr(RankingModule, "training_step", count)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Took:
    """Lets runs on the CPU take the static step where one on a GPU would, without a graph."""

    def static_step(setting: str | bool, compile_loss: bool, module: RankingModule) -> StaticStep | None:
        reasons = list(graphing._reasons(module, trusted=setting is True))
        if setting is False or reasons:
            return None
        loader = module.trainer.train_dataloader
        assert loader is not None
        return graphing.build(module, loader, graph=False, compile_loss=compile_loss)

    monkeypatch.setattr(fit, "static_step", static_step)
    monkeypatch.setattr(datamodule, "free_memory", lambda device: 1 << 40)
    return Took(monkeypatch)


def results(config: DictConfig) -> dict[str, Any]:
    metrics = train(config)
    kinds = ("val/", "test/", "train/", "fit/steps")
    return {k: v for k, v in metrics.items() if k.startswith(kinds) and isinstance(v, float | int)}


@pytest.mark.parametrize(
    "more", [["mmoe"], ["dlen", "optimizer=adagrad"], pytest.param(["ple", "scheduler=cosine"], marks=pytest.mark.slow)]
)
def test_a_run_of_static_steps_has_the_results_of_an_ordinary_one(
    more: list[str], composed: Compose, tmp_path: Path, on_cpu: Took
) -> None:
    settings = [*SETTINGS, f"model={more[0]}", *more[1:], f"data_dir={tmp_path}/data"]
    wanted = results(composed(*settings, "cuda_graph=false", f"run_dir={tmp_path}/ordinary"))
    assert on_cpu.static == 0
    ordinary, on_cpu.ordinary = on_cpu.ordinary, 0
    found = results(composed(*settings, f"run_dir={tmp_path}/static"))
    assert on_cpu.static == on_cpu.ordinary == ordinary > 0
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_a_run_of_static_steps_resumes_as_an_ordinary_one(composed: Compose, tmp_path: Path, on_cpu: Took) -> None:
    """Half of the run in each kind of step, either way, as after a move to another machine."""
    settings = [*SETTINGS, "model=mmoe", f"data_dir={tmp_path}/data"]
    wanted = results(composed(*settings, f"run_dir={tmp_path}/whole"))
    for first, second in (("auto", "false"), ("false", "auto")):
        run = f"run_dir={tmp_path}/{first}"
        train(composed(*settings, f"cuda_graph={first}", run, "trainer.max_steps=7"))
        found = results(composed(*settings, f"cuda_graph={second}", run, "ckpt=last"))
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("model", ["mmoe", "dlen", "esmm"])
def test_a_run_of_compiled_steps_has_the_results_of_one_that_is_not_compiled(
    model: str, composed: Compose, tmp_path: Path, on_cpu: Took, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Traced as for a compiler, which a machine may lack: one graph, without gaps, for all full batches."""
    traced: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        traced.append(len(inputs))
        return lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    data = ["data=feed", *SETTINGS[1:]] if model != "esmm" else ["data=aliccp_demo", "data.rows=3000", *SETTINGS[2:]]
    settings = [*data, f"model={model}", f"data_dir={tmp_path}/data"]
    wanted = results(composed(*settings, f"run_dir={tmp_path}/plain"))
    assert not traced
    found = results(composed(*settings, "compile=true", f"run_dir={tmp_path}/compiled"))
    assert len(traced) == 1
    assert "not compiled" not in capsys.readouterr().err
    assert found == pytest.approx(wanted, rel=1e-6)


def test_a_compiler_that_fails_is_told_and_done_without(
    composed: Compose, tmp_path: Path, on_cpu: Took, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fails(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    settings = [*SETTINGS, "model=mmoe", "id_dropout.k=0", f"data_dir={tmp_path}/data"]  # the failing try draws as well
    wanted = results(composed(*settings, f"run_dir={tmp_path}/plain"))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fails))
    found = results(composed(*settings, "compile=true", f"run_dir={tmp_path}/compiled"))
    assert found == wanted
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "not compiled" in line)
    assert "no compiler here" in line


@pytest.mark.slow
def test_many_trainings_in_one_process_are_compiled_each(
    composed: Compose, tmp_path: Path, on_cpu: Took, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a worker of a sweep: torch compiles a function eight times, and then no more, without a word."""
    traced: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        traced.append(len(inputs))
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    more = [f"data_dir={tmp_path}/data", "trainer.max_steps=2", "trainer.max_epochs=-1", "trainer.val_check_interval=1"]
    for size in range(100, 109):
        train(composed(*SETTINGS, "model=shared_bottom", *more, f"run_dir={tmp_path}/{size}", "compile=true",
                       f"loader.batch_size={size}"))  # fmt: skip
    assert len(traced) == 9


class Reads(Callback):
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        assert len(batch.ids)


class Mine(nn.Module):
    """A part of a network that is not dlen's."""

    def forward(self, x: Tensor) -> Tensor:
        return x


REASONS = {
    "trainer.accumulate_grad_batches=2": "accumulate",
    "+trainer.gradient_clip_val=1": "clip",
    "balancing=uncertainty": "balanc",
    "+callbacks.mine._target_=tests.training.test_graphing.Reads": "on_train_batch_start",
    "+optimizer.dense={_target_: torch.optim.SGD, _partial_: true}": "optimiser",
}


@pytest.mark.parametrize("setting", REASONS)
def test_what_a_graph_has_no_place_for_takes_the_ordinary_step(
    setting: str, composed: Compose, tmp_path: Path, on_cpu: Took, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    reasons = graphing._reasons

    def told(module: RankingModule, *, trusted: bool) -> list[str]:
        found.extend(reasons(module, trusted=trusted))
        return found

    monkeypatch.setattr(graphing, "_reasons", told)
    more = [f"data_dir={tmp_path}/data", f"run_dir={tmp_path}/run", "trainer.max_steps=2", "trainer.max_epochs=-1"]
    train(composed(*SETTINGS, "model=mmoe", *more, "trainer.val_check_interval=1", setting))
    assert on_cpu.static == 0
    assert any(REASONS[setting] in reason for reason in found), found


def test_a_class_of_another_package_is_not_captured_unless_trusted(
    composed: Compose, tmp_path: Path, on_cpu: Took, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = building.build_model

    def with_mine(*arguments: Any) -> Any:
        model = build(*arguments)
        model.mine = Mine()
        return model

    monkeypatch.setattr(fit, "build_model", with_mine)
    more = [f"data_dir={tmp_path}/data", "trainer.max_steps=2", "trainer.max_epochs=-1", "trainer.val_check_interval=1"]
    more += [*SETTINGS, "model=mmoe"]
    for setting, steps in (("auto", 0), ("true", 2)):
        train(composed(*more, f"run_dir={tmp_path}/{setting}", f"cuda_graph={setting}"))
        assert on_cpu.static == steps


def test_a_wrong_setting_is_named(composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cuda_graph"):
        train(composed(*SETTINGS, f"data_dir={tmp_path}/data", f"run_dir={tmp_path}/run", "cuda_graph=often"))


def test_the_cpu_keeps_the_ordinary_step(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    took = Took(monkeypatch)
    more = [f"data_dir={tmp_path}/data", f"run_dir={tmp_path}/run", "trainer.max_steps=2", "trainer.max_epochs=-1"]
    train(composed(*SETTINGS, *more, "trainer.val_check_interval=1", "cuda_graph=true", "compile=true"))
    assert (took.static, took.ordinary) == (0, 2)
    assert "training steps are not compiled" in capsys.readouterr().err
