"""The Optuna study of a sweep: its storage, its identity, who may start the next trial, and trials that died."""

from __future__ import annotations

import json
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from dlen.errors import UserError
from dlen.files import check_regular, locked
from dlen.overrides import leaves
from dlen.sweeping.journal import Journal
from dlen.sweeping.trial_records import own_trials, retried, used
from dlen.valid import did_you_mean

STORAGE = "DLEN_STORAGE"  # passes the storage to workers; a URL may contain a password, so it is kept out of files
_IDENTITY = "identity"
_ATTEMPTS = 5  # to open a database whose tables are being created
_REPAIR_AFTER = timedelta(minutes=1)  # a retry that is missing for this long was lost with its coordinator
_SAMPLERS: dict[str, tuple[type[BaseSampler], dict[str, Any]]] = {
    "tpe": (TPESampler, {"multivariate": True, "group": True, "constant_liar": True}),
    "gp": (GPSampler, {}),
    "cmaes": (CmaEsSampler, {}),
    "nsgaii": (NSGAIISampler, {}),
    "qmc": (QMCSampler, {"scramble": True}),
    "random": (RandomSampler, {}),
    "grid": (RandomSampler, {}),  # its points are queued when the study starts
}
_PRUNERS = {
    "median": optuna.pruners.MedianPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
    "none": optuna.pruners.NopPruner,
}


def connect(storage: str) -> BaseStorage:
    """Open a storage from the path of a journal file or the URL of a database.

    Raises:
        UserError: the storage cannot be reached, or its driver is not installed.
    """
    if "://" not in storage:
        path = Path(storage)
        if path.exists():
            check_regular(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(Journal(path))
        except OSError as error:
            raise UserError(f"config sweep.storage: {path} cannot be written ({error.strerror})") from None
        except ValueError as error:
            raise UserError(f"config sweep.storage: {path} {error}") from None
        except (LookupError, TypeError, AttributeError):  # raised while replaying records
            raise UserError(
                f"config sweep.storage: {path} is not a journal file; for SQLite, use sqlite:///{path}"
            ) from None
    try:
        return _open_database(storage)
    except ImportError:
        driver = storage.split("://")[0]
        raise UserError(
            f"config sweep.storage: no driver for {driver} is installed; for PostgreSQL, pip install "
            "'dlen[postgresql]' and use postgresql+psycopg://"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"config sweep.storage: {shown(storage)} cannot be used ({reason})") from None


def _open_database(url: str) -> RDBStorage:
    """Open a database. Optuna creates missing tables, which fails if another process does so at the same time.

    SQLite reports that as an OperationalError, as it does a file that cannot be opened.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            raced = not isinstance(error, OperationalError) or "already exists" in str(error)
            if not raced or attempt + 1 == _ATTEMPTS:
                raise
            time.sleep(1.0)
    raise AssertionError("unreachable")


def shown(storage: str) -> str:
    """The storage with its password hidden."""
    if "://" not in storage:
        return storage
    try:
        return str(sqlalchemy.engine.make_url(storage).render_as_string(hide_password=True))
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return storage.split("://")[0] + "://..."


def check_options(sampler: str, pruner: str, objectives: Mapping[str, str]) -> None:
    """Check the names of sampler and pruner, and that they support the objectives.

    Raises:
        UserError: a name is unknown, or does not support several objectives.
    """
    for key, name, known in (("sampler", sampler, _SAMPLERS), ("pruner", pruner, _PRUNERS)):
        if name not in known:
            hint = did_you_mean(name, known) or f"; choose one of {', '.join(known)}"
            raise UserError(f"config sweep.{key}: there is no {name}{hint}")
    if not objectives:
        raise UserError("config sweep.maximize: is empty, and so is sweep.minimize; name at least one metric")
    several = len(objectives) > 1 or any(name.endswith("*") for name in objectives)
    if several and pruner != "none":
        raise UserError(
            f"config sweep.pruner: {pruner} supports only one objective; with several, set sweep.pruner=none"
        )
    if several and sampler == "cmaes":
        raise UserError("config sweep.sampler: cmaes supports only one objective; with several, use nsgaii, tpe or gp")


def make_sampler(name: str, options: Mapping[str, Any], seed: int, worker: str, trials: int) -> BaseSampler:
    """Make a worker's own sampler.

    Args:
        name: a known sampler.
        options: further arguments of Optuna's class.
        worker: identifies the worker. Workers draw different random numbers, unless they share a sequence.
        trials: number of trials in the study, so that a resumed study draws new numbers.

    Raises:
        UserError: the class rejects an argument.
    """
    kind, defaults = _SAMPLERS[name]
    if name != "qmc":
        seed = int(np.random.SeedSequence([seed, *worker.encode(), trials]).generate_state(1)[0])
    try:
        with _quiet():
            return kind(**{"seed": seed, **defaults, **options})
    except (TypeError, ValueError) as error:
        raise UserError(f"config sweep.sampler_options: {error}") from None
    except ImportError as error:
        raise UserError(f"config sweep.sampler: {name} needs a package that is not installed ({error})") from None


def make_pruner(name: str, options: Mapping[str, Any], first: int, steps: int) -> optuna.pruners.BasePruner:
    """Make the study's pruner.

    Args:
        name: a known pruner.
        options: further arguments of Optuna's class.
        first: training steps before the first validation.
        steps: training steps of a whole trial.

    Raises:
        UserError: the class rejects an argument.
    """
    defaults: dict[str, Any] = {"min_resource": first, "max_resource": max(steps, first)} if name == "hyperband" else {}
    try:
        with _quiet():
            return _PRUNERS[name](**{**defaults, **options})
    except (TypeError, ValueError) as error:
        raise UserError(f"config sweep.pruner_options: {error}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's warnings about experimental classes, which the user cannot act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def open_study(
    storage: BaseStorage, name: str, objectives: Mapping[str, str], identity: Mapping[str, Any]
) -> optuna.Study:
    """Open the study of this name, or create it.

    Raises:
        UserError: the study has another identity; the further lines of the message list the differences.
    """
    directions: Any = list(objectives.values())
    try:
        study = optuna.create_study(study_name=name, directions=directions, storage=storage)
        with _quiet():
            study.set_metric_names(list(objectives))  # optuna-dashboard shows them
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
        before = study.user_attrs.get(_IDENTITY)
        if before is not None and before != _plain(identity):
            raise UserError(
                f"the study {name} was started with other settings; set sweep.name=NAME for a new study, or restore:",
                [f"  {line}" for line in differences(before, _plain(identity))],
            ) from None
    if _IDENTITY not in study.user_attrs:
        study.set_user_attr(_IDENTITY, _plain(identity))
    return study


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert to what a storage returns, by a round trip through JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """One line for each value that was changed, added or removed."""
    was, now = ({k: json.dumps(v) for k, v in leaves(content, " ")} for content in (before, after))
    lines = []
    for key in sorted({*was, *now}):
        if key not in now:
            lines.append(f"- {key}: {was[key]}")
        elif key not in was:
            lines.append(f"+ {key}: {now[key]}")
        elif was[key] != now[key]:
            lines.append(f"! {key}: was {was[key]}, is {now[key]}")
    return lines


def claim(study: optuna.Study, budget: int, folder: Path, worker: str) -> optuna.Trial | None:
    """Start the next trial; None if the wanted number of trials has been started.

    Workers of one folder take turns. Workers that share only the storage may start one trial too many, which the later
    one detects and reverts.

    Args:
        budget: wanted number of trials.
        worker: name of the worker, stored with the trial.
    """
    with locked(folder / ".claim.lock", "starting a trial", quiet=True):
        if len(used(own_trials(study))) >= budget:
            return None
        trial = study.ask()
        trial.set_user_attr("worker", worker)
    before = [n for n in used(own_trials(study)) if n < trial.number]
    if len(before) >= budget:
        trial.set_user_attr("surplus", True)
        study.tell(trial, state=TrialState.FAIL)
        point = study._storage.get_trial(trial._trial_id).system_attrs.get("fixed_params")
        if point is not None:
            kept = {k: v for k, v in trial.user_attrs.items() if k not in ("surplus", "worker")}
            study.enqueue_trial(point, user_attrs=kept)
        return None
    return trial


def queue_points(study: optuna.Study, points: Sequence[Mapping[str, Any]]) -> None:
    """Queue these points to be tried first, except those that the study already has."""
    known = [t.system_attrs.get("fixed_params") for t in study.get_trials(deepcopy=False)]
    for point in points:
        if dict(point) not in known:
            study.enqueue_trial(dict(point), skip_if_exists=True)
    _end_repeated(study)


def _end_repeated(study: optuna.Study) -> None:
    """End queued trials whose point an earlier trial has: coordinators that share only the storage queue them twice."""
    seen: list[Any] = []
    for trial in own_trials(study):
        point = trial.system_attrs.get("fixed_params")
        if point in seen and trial.state == TrialState.WAITING and "retry_of" not in trial.user_attrs:
            with suppress(optuna.exceptions.UpdateFinishedTrialError):  # the other coordinator was faster
                study._storage.set_trial_user_attr(trial._trial_id, "surplus", True)
                study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        seen.append(point)


def fail(study: optuna.Study, trial: FrozenTrial, reason: str, retries: int | None) -> bool:
    """Fail a trial that cannot continue, and requeue it.

    Args:
        trial: a started trial that has not ended.
        reason: reason, stored with the trial.
        retries: maximum number of retries; None retries without counting this attempt, 0 never retries.

    Returns:
        Whether the trial is retried.
    """
    already = int(trial.user_attrs.get("retries", 0))
    again = retries is None or already < retries
    storage, trial_id = study._storage, trial._trial_id
    try:
        storage.set_trial_user_attr(trial_id, "reason", reason)
        storage.set_trial_user_attr(trial_id, "retried", again)
        study.tell(trial.number, state=TrialState.FAIL)
    except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
        return False  # it ended meanwhile, or another coordinator was faster
    if again:
        _queue_again(study, trial, already + (retries is not None))
    return again


def fail_started(study: optuna.Study, trial: optuna.Trial, reason: str, retries: int | None) -> bool:
    """Apply :func:`fail` to a trial of this process."""
    return fail(study, study._storage.get_trial(trial._trial_id), reason, retries)


def _queue_again(study: optuna.Study, trial: FrozenTrial, retries: int) -> None:
    point = {**(trial.system_attrs.get("fixed_params") or {}), **trial.params}
    study.enqueue_trial(point, user_attrs={"retry_of": trial.number, "retries": retries})


def repair(study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
    """Queue retries that are missing because the coordinator died before queueing them.

    Args:
        study: study in which to queue.
        trials: its trials, as just read; those that ended less than a minute ago are left alone.
    """
    queued = {t.user_attrs.get("retry_of") for t in trials}
    for trial in trials:
        ended = trial.datetime_complete
        if retried(trial) and trial.number not in queued and ended and datetime.now() - ended > _REPAIR_AFTER:
            _queue_again(study, trial, int(trial.user_attrs.get("retries", 0)) + 1)


def host() -> str:
    """Name of this machine, the prefix of its workers' names."""
    return socket.gethostname().split(".")[0]
