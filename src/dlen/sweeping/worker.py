"""A worker: one process with its own devices that runs trials until the wanted number is done.

It stays alive between trials, so Python, torch and the data's memory maps are loaded only once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from hydra import initialize_config_dir
from omegaconf import DictConfig

from dlen.files import read_mapping
from dlen.overrides import compose_train
from dlen.sweeping.fusion import FusionJob, run_fusion
from dlen.sweeping.space import parse_space
from dlen.sweeping.spec import Spec
from dlen.sweeping.study import (
    STORAGE,
    claim,
    connect,
    host,
    make_pruner,
    make_sampler,
)
from dlen.sweeping.trial import FOLLOWED, follow, run_trial

BEAT_SECONDS = 10.0  # between two heartbeats


def work(spec: Spec, name: str, number: int, watch: bool) -> None:
    """Run trials until the wanted number has been started, time is up, or the worker is asked to stop.

    Args:
        name: name of this worker, by which its coordinator finds its trials.
        number: number of this worker on its machine, from 0.
        watch: stop when standard input is closed, which happens however the coordinator ends.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if FOLLOWED in os.environ:  # started by Lightning as a further process of a trial
        with initialize_config_dir(spec.conf, version_base="1.3"):
            follow(composer(spec, None), spec)
        return
    stopping = threading.Event()
    if watch:
        threading.Thread(target=_wait_for_end_of_input, args=(stopping,), daemon=True).start()
    storage = connect(os.environ[STORAGE])
    study = optuna.load_study(study_name=spec.name, storage=storage)
    trials = len(study.get_trials(deepcopy=False))
    study.sampler = make_sampler(*spec.sampler, seed=spec.seed, worker=f"{host()}-{number}", trials=trials)
    study.pruner = make_pruner(*spec.pruner, first=spec.first, steps=spec.steps)
    space = parse_space(spec.space, spec.tasks)
    job = None if spec.fusion is None else FusionJob(**spec.fusion)
    audience = None if job is None else job.audience("validation", spec.trust)
    with initialize_config_dir(spec.conf, version_base="1.3"):
        while not stopping.is_set() and (spec.until is None or time.time() < spec.until):
            trial = claim(study, spec.trials, Path(spec.folder), name)
            if trial is None:
                return
            if job is not None and audience is not None:
                run_fusion(study, trial, space, job, audience)
                continue
            with _alive(storage, trial._trial_id):
                completed = run_trial(study, trial, composer(spec, trial.number), space, spec, stopping)
            if spec.devices > 1:  # a process group serves one trial and must not wait for this process
                if not completed:
                    os.killpg(0, signal.SIGKILL)
                return


def work_from(path: str, name: str, number: int, watch: bool = False) -> None:
    """Run :func:`work` with the spec as a file. A job of a cluster has no standard input to watch."""
    work(Spec(**read_mapping(Path(path))), name, number, watch)


def composer(spec: Spec, trial: int | None) -> Callable[[list[str]], DictConfig]:
    """Return a function from overrides to a config of ``train.py``, with the study as the W&B group."""

    def make(overrides: list[str]) -> DictConfig:
        config = compose_train([*spec.common, *overrides])
        if config.logger is not None and config.logger.get("wandb") is not None:
            if trial is None:
                config.logger.wandb = None
            else:
                config.logger.wandb.update({"group": spec.name, "name": f"trial-{trial:04d}", "job_type": "trial"})
        return config

    return make


@contextmanager
def _alive(storage: optuna.storages.BaseStorage, trial_id: int) -> Iterator[None]:
    """Send heartbeats while a trial runs."""
    ended = threading.Event()

    def beat() -> None:
        number = 0
        while not ended.wait(BEAT_SECONDS):
            number += 1
            try:
                storage.set_trial_user_attr(trial_id, "beat", number)
            except optuna.exceptions.UpdateFinishedTrialError:
                return
            except Exception as error:  # a database that is briefly unreachable must not make the trial look dead
                print(f"warning: the heartbeat could not be sent ({error})", file=sys.stderr)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _wait_for_end_of_input(stopping: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):  # sys.stdin has a lock that Python cannot take at exit
        pass
    stopping.set()
