"""Shared fixtures: the repository's root, composed configs, and commands run as users run them."""

from __future__ import annotations

import gc
import io
import json
import os
import random
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hypothesis import HealthCheck, settings
from omegaconf import DictConfig, OmegaConf, open_dict

from dlen.comparing.plan import PlannedRun
from dlen.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
TINY = ("model.embedding.dim=4", "model.head.tower=[8]", "model.backbone.expert=[8]")  # makes any network small
BRAKE = 600  # seconds after which a test that waits for an event gives up: an emergency brake, never a measurement
Compose = Callable[..., DictConfig]
Command = Callable[..., subprocess.CompletedProcess[str]]

# A slow machine is no failure, and the same code has the same result; FUZZ draws other examples.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


_LONGEST = ("test_sweep.py", "test_processes.py", "test_train.py", "test_own_parts.py", "test_compare.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest begin first, in this order, so that two processes end at about the same time."""
    items.sort(key=lambda item: _LONGEST.index(name) if (name := item.path.name) in _LONGEST else len(_LONGEST))


def pytest_collection_finish() -> None:
    """The garbage collector passes over the thousands of tests and all imports: a sixth of the time of small tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_inherited_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run folder set by one test does not leak to another."""
    monkeypatch.delenv("DLEN_RUN_DIR", raising=False)


@pytest.fixture
def composed(tmp_path: Path) -> Compose:
    """Compose a command's config with data and runs below ``tmp_path``."""

    def make(*overrides: str, command: str = "train") -> DictConfig:
        OmegaConf.register_new_resolver("stem", lambda path: Path(str(path)).stem, replace=True)
        places = [f"data_dir={tmp_path / 'data'}"]
        places += [f"runs_dir={tmp_path / 'runs'}"] if command == "train" else []
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose(command, [*places, *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        OmegaConf.resolve(config.get("model", OmegaConf.create()))
        with open_dict(config):
            if "model_name" in config:
                config.model_name = str(config.model_name)
            config.pop("hydra")
        return config

    return make


def run_command(script: str, arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the repository in ``folder``, with one thread."""
    return run_program([sys.executable, str(ROOT / script), *arguments], folder)


def run_program(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run any program in ``folder``, with one thread.

    Args:
        command: program and arguments.
        folder: working directory.
        environment: variables added to the current environment.
    """
    told = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", **(environment or {})}
    told.pop("DLEN_RUN_DIR", None)
    return subprocess.run(command, cwd=folder, env=told, capture_output=True, text=True, timeout=BRAKE, check=False)


def free_port() -> int:
    """A port of this machine that is free, below those that the system gives to whoever asks for any."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port


def run_here(script: str, arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Like :func:`run_command`, but in this process, which saves the seconds that importing torch takes.

    Runs of a comparison and workers of a study also run here, one after the other, instead of in processes.
    """
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(ROOT / script), *arguments])
        if script in ("compare.py", "sweep.py", "benchmark.py"):
            patch.setattr("dlen.comparing.compare.train_missing", _train_missing)
            patch.setattr("dlen.sweeping.sweep.train_missing", _train_missing)
            patch.setattr("dlen.benchmarking.benchmark.train_missing", _train_missing)
            patch.setattr("dlen.benchmarking.check.train_missing", _train_missing)
            patch.setattr("dlen.sweeping.sweep.LocalWorker", _Worker)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        finally:
            GlobalHydra.instance().clear()
    return subprocess.CompletedProcess([script, *arguments], code, out.getvalue(), err.getvalue())


def wait_for(condition: Callable[[], Any]) -> Any:
    """What ``condition`` returns once it is true; a study or a file may not be there yet."""
    deadline = time.monotonic() + BRAKE
    while time.monotonic() < deadline:
        with suppress(KeyError, FileNotFoundError, json.JSONDecodeError):
            if found := condition():
                return found
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def _train_missing(runs: Sequence[PlannedRun], workers: int, group: str, job_type: str) -> None:
    """Replaces :func:`dlen.comparing.workers.train_missing`: trains one run after the other."""
    from dlen.overrides import compose_train, written
    from dlen.training.fit import train

    missing = [run for run in runs if not run.done]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are already done", file=sys.stderr)
    for run in missing:
        try:
            train(compose_train([*run.overrides, f"run_dir={written(str(run.folder), quote=True)}"]))
        except UserError as error:
            raise UserError(f"{run.model}, seed {run.seed}: training failed ({error})") from None


class _Worker:
    """Replaces :class:`dlen.sweeping.coordinator.LocalWorker`: runs its trials on construction."""

    def __init__(self, name: str, number: int, workers: int, devices: int, spec: Path, storage: str) -> None:
        from dlen.sweeping.study import STORAGE
        from dlen.sweeping.trial import FOLLOWED
        from dlen.sweeping.worker import work_from

        self.name = name
        hydra, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
        GlobalHydra.instance().clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(STORAGE, storage)
            work_from(str(spec), name, number)
        GlobalHydra.instance().hydra = hydra
        HydraConfig.instance().cfg = config
        os.environ.pop(FOLLOWED, None)

    def exit_code(self) -> int:
        return 0

    def stop(self) -> None:
        pass

    def kill(self) -> None:
        pass

    def log(self) -> str:
        return ""


@pytest.fixture
def refused(tmp_path: Path) -> Command:
    """A command that is expected to be refused before it does anything."""
    return lambda script, *arguments: run_here(script, arguments, tmp_path)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run a command in ``tmp_path``, as users do."""

    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command(script, arguments, tmp_path)

    return run
