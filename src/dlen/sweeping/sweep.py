"""sweep: run a study from its config, and test the result on fresh seeds."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial, TrialState

from dlen.comparing.compare import summarise
from dlen.comparing.plan import plan_runs
from dlen.comparing.tables import markdown, print_markdown, write_comparison
from dlen.comparing.workers import train_missing
from dlen.data.store import Store
from dlen.devices import number_of_workers
from dlen.errors import UserError
from dlen.files import check_links, check_writable, locked, write_json
from dlen.metric_names import MEASURES
from dlen.overrides import SEARCH_PATH, compose_train, conf_of_this_command, overrides_for_train
from dlen.sweeping.best import write_best, write_trials
from dlen.sweeping.coordinator import Coordinator, LocalWorker, SubmititWorker, Worker
from dlen.sweeping.fusion import FusionJob, check_fusion, confirm, equal_weights, make_job, write_best_fusion
from dlen.sweeping.live import StudyTable, describe
from dlen.sweeping.settings import read_options
from dlen.sweeping.space import Space, parse_space
from dlen.sweeping.spec import Spec
from dlen.sweeping.study import (
    STORAGE,
    connect,
    host,
    make_pruner,
    make_sampler,
    open_study,
    queue_points,
    shown,
)
from dlen.sweeping.trial_records import best_trial, ended, own_trials, used
from dlen.sweeping.wandb_sweep import write_wandb_sweep
from dlen.targets import Targets
from dlen.training.checks import check, planned_steps
from dlen.training.configs import settings_of
from dlen.training.loggers import sync_command
from dlen.training.stores import open_run, open_store

Draw = Callable[[optuna.Study, str, Sequence[FrozenTrial], Mapping[str, str], Path, Path | None], None]
_JOB = {"cpus_per_task": 8}  # parameters of a worker's job on a cluster
_FRESH = 1000  # first seed of the final comparison; trials count from 0
_FIXED = ("data", "seed", "run_dir", "runs_dir", "ckpt", "base_run", "sweep")  # keys that a study cannot search


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """A study that has been checked but not started.

    Attributes:
        title: title of the page.
        job: a finished run whose ranking score is searched; None if trials train a model.
        spec: spec for the workers.
        space: search space.
        start: points that are tried first.
        identity: what must match when a study is resumed.
        storage: path or URL.
        store: prepared data.
        cli_overrides: overrides of the command line only.
        folder: folder of the study.
    """

    title: str
    job: FusionJob | None
    spec: Spec
    space: Space
    start: list[dict[str, Any]]
    identity: dict[str, Any]
    storage: str
    store: Store
    cli_overrides: list[str]
    folder: Path


def sweep(config: DictConfig, draw: Draw) -> None:
    """Run a study to its end, write the results, and test the best trial against the default on fresh seeds.

    Args:
        config: config of ``sweep.py``.
        draw: writes the study's page to its folder.

    Raises:
        UserError: a setting is wrong, the study was started with other settings, or every trial fails.
        SystemExit: 130 after Ctrl-C; the same command resumes the study.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plan = make_plan(config)
    spec, options = plan.spec, config.sweep
    workers = number_of_workers(options.workers, spec.trials, options.devices_per_trial)
    check_writable(plan.folder)
    check_links(plan.folder)
    if options.launcher == "wandb":
        path = write_wandb_sweep(spec, plan.space, plan.folder)
        print(f"W&B sweep: run wandb sweep {path}, and on each machine the wandb agent command that it prints")
        return
    storage = connect(plan.storage)
    study = open_study(storage, spec.name, spec.objectives, plan.identity)
    if not study.get_trials(deepcopy=False) and any((plan.folder / "trials").glob("*")):
        raise UserError(
            f"{plan.folder}/trials: contains the trials of another study; delete it, or set sweep.name=NAME"
        )
    with locked(plan.folder / ".claim.lock", "starting this study", quiet=True):
        queue_points(study, plan.start)
    (plan.folder / "workers").mkdir(parents=True, exist_ok=True)
    spec_file = plan.folder / "workers" / f"spec-{host()}-{os.getpid()}.json"  # another coordinator has its own file
    write_json(spec_file, asdict(spec))
    earlier_trials = own_trials(study)
    print(
        f"study {spec.name}: {len(used(earlier_trials))} of {spec.trials} trials so far, {workers} workers",
        file=sys.stderr,
    )
    print(f"folder {plan.folder}, storage {shown(plan.storage)}", file=sys.stderr, flush=True)
    table = StudyTable(spec.name, spec.trials, spec.objectives, earlier_trials)

    def start(name: str, number: int) -> Worker:
        if options.launcher == "submitit":
            os.environ[STORAGE] = plan.storage
            settings = {**_JOB, **(options.submitit.parameters or {})}
            return SubmititWorker(name, number, spec_file, str(options.submitit.cluster), settings)
        return LocalWorker(name, number, workers, options.devices_per_trial, spec_file, plan.storage)

    try:
        completed = Coordinator(study, spec, start, workers, table).run()
    finally:
        _write(study, plan, draw)
    if not completed:
        print(f"interrupted: run the same command again to continue the study {spec.name}", file=sys.stderr)
        raise SystemExit(130)
    _report_best(study, plan, options.confirm, workers, draw)
    if OmegaConf.select(config, "logger.wandb") is not None:
        print(sync_command(plan.folder / "trials" / "*" / "wandb"))


def make_plan(config: DictConfig) -> StudyPlan:
    """Check everything that can be checked before a worker starts.

    Raises:
        UserError: the sweep or an override is wrong.
    """
    hydra = HydraConfig.get()
    plain, directions = read_options(config)
    cli_overrides = overrides_for_train(("sweep",), [])
    common = overrides_for_train(("sweep",), plain["settings"])
    if plain["devices_per_trial"] > 1:
        common.append(f"trainer.devices={plain['devices_per_trial']}")
    if plain["run"] is None:
        job, base = None, compose_train(common)
        store = open_store(base)
    else:
        base, store = open_run(Path(plain["run"]), config.trust)
        job = make_job(plain, store.schema, directions)
    name = str(plain["name"] or f"{hydra.runtime.choices['sweep']}-{base.data_name}")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"config sweep.name: {name!r} may contain only letters, digits, dots, dashes and underscores")
    folder = (Path(config.runs_dir) / "sweeps" / name).absolute()
    tasks = store.schema.task_names
    objectives = _objectives(directions, store) if job is None else directions
    space = parse_space(plain["space"], tasks)
    if job is None:
        _check_points(space, common, cli_overrides, store)
    else:
        check_fusion(space, job)
    first, steps = planned_steps(base, store)
    start, trials = _points(space, plain["start"]), plain["trials"]
    if job is not None and not start:
        start = [equal_weights(space)]
    if plain["sampler"] == "grid":
        start = space.grid()
        trials = len(start)
    spec = Spec(
        name=name,
        folder=str(folder),
        conf=conf_of_this_command(),
        common=common,
        space=plain["space"],
        tasks=tasks,
        objectives=objectives,
        sampler=(plain["sampler"], plain["sampler_options"] or {}),
        pruner=(plain["pruner"], plain["pruner_options"] or {}),
        first=first,
        steps=steps,
        seed=plain["seed"],
        seeds=plain["seeds"],
        trials=trials,
        retries=plain["retries"],
        devices=plain["devices_per_trial"],
        fusion=None if job is None else asdict(job),
        trust=list(config.trust),
        until=None if plain["hours"] is None else time.time() + 3600 * plain["hours"],
    )
    make_sampler(*spec.sampler, seed=spec.seed, worker="", trials=0)
    make_pruner(*spec.pruner, first=first, steps=steps)
    identity = _identity(base, space, spec, store)
    storage = str(plain["storage"] or folder / "journal.log")
    return StudyPlan(str(plain["title"]), job, spec, space, start, identity, storage, store, cli_overrides, folder)


def _objectives(directions: Mapping[str, str], store: Store) -> dict[str, str]:
    """Expand ``val/auc/*`` to all tasks.

    Raises:
        UserError: a validation AUC names an unknown target.
    """
    objectives: dict[str, str] = {}
    names = Targets(store.schema.binary).names
    for key, direction in directions.items():
        measure, _, target = str(key).rpartition("/")
        if target == "*":
            kind = measure.rpartition("/")[2] in MEASURES
            tasks = [task.name for task in store.schema.tasks if task.is_regression == kind]
            if not tasks:
                raise UserError(f"config sweep.{direction}: the data have no task for {key}")
            objectives |= {f"{measure}/{task}": direction for task in tasks}
            continue
        objectives[str(key)] = direction
        if measure == "val/auc" and target not in (*names, "mean") and not target.startswith("up_"):
            raise UserError(f"config sweep.{direction}: there is no {key}; the data have {', '.join(names)} and mean")
    return objectives


def _check_points(space: Space, common: Sequence[str], cli_overrides: Sequence[str], store: Store) -> None:
    """Compose and build enough configs to cover every choice and both ends of every range."""
    set_keys = {o.lstrip("+~").split("=")[0] for o in cli_overrides}
    for parameter in space.parameters:
        key = parameter.key.lstrip("+~")
        if key.split(".")[0].split("/")[0] in _FIXED:
            raise UserError(f"config sweep.space: {key} is the same for all trials of a study and cannot be searched")
        if key in set_keys:
            raise UserError(
                f"config {key}: is searched by the study; remove the override, or remove it from sweep.space"
            )
    for point in space.probes():
        overrides = space.overrides(point)
        try:
            check(compose_train([*common, *overrides]), store)
        except UserError as error:
            raise UserError(f"config sweep.space: {' '.join(overrides)}: {error}") from None


def _points(space: Space, points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Check the points that are tried first.

    Raises:
        UserError: a point has a parameter that is not searched, or a value outside its range.
    """
    known = {p.name: p for p in space.parameters}
    for point in points:
        for name, value in point.items():
            if name not in known:
                raise UserError(f"config sweep.start: {name} is not searched (searched: {', '.join(known)})")
            if not known[name].contains(value):
                raise UserError(f"config sweep.start: {name}={value!r} lies outside of {known[name].distribution}")
    return [dict(point) for point in points]


def _identity(base: DictConfig, space: Space, spec: Spec, store: Store) -> dict[str, Any]:
    settings = {key: value for key, value in settings_of(base).items() if key != "seed"}
    return {
        "space": space.describe(),
        "objectives": spec.objectives,
        "seeds": spec.seeds,
        "settings": settings,
        "data": store.fingerprint,
        "fusion": spec.fusion,
    }


def _write(study: optuna.Study, plan: StudyPlan, draw: Draw) -> None:
    """Write the results so far: trials.parquet, study.html and best.yaml."""
    trials = own_trials(study)
    if not trials:
        return
    write_trials(trials, plan.spec.objectives, plan.folder / "trials.parquet")
    draw(study, plan.title, trials, plan.spec.objectives, plan.folder, None)
    top = _best(trials, plan)
    if top is not None:
        origin = f"trial {top.number} of the study {plan.spec.name}"
        if plan.job is not None:
            write_best_fusion(plan.job, top.params, origin, plan.folder / "best.yaml")
            return
        write_best([*plan.spec.common, *plan.space.overrides(top.params)], origin, plan.folder / "best.yaml")


def _best(trials: Sequence[FrozenTrial], plan: StudyPlan) -> FrozenTrial | None:
    """The best trial. Its values become overrides, so they must not come from other writers to the storage.

    Raises:
        UserError: the trial has a value that the study does not search.
    """
    top = best_trial(trials, plan.spec.objectives)
    params = {} if top is None else top.params
    for parameter in plan.space.parameters:
        name = parameter.name
        if name in params and not parameter.contains(params[name]):
            raise UserError(
                f"{plan.folder}: its best trial has {name}={params[name]!r}, which is outside sweep.space; "
                "choose another study with sweep.name=NAME"
            )
    return top


def _report_best(study: optuna.Study, plan: StudyPlan, seeds: int, workers: int, draw: Draw) -> None:
    """Report the best trial, then train it and the default on fresh seeds, test each once, and draw the page again."""
    trials = own_trials(study)
    top = _best(trials, plan)
    if top is None:
        print("no trial completed, so there is no best trial", file=sys.stderr)
        return
    done = ended(trials)
    values = ", ".join(f"{k} {v:.4f}" for k, v in zip(plan.spec.objectives, top.values, strict=True))
    best = f"best: trial {top.number}, {values} on validation, with {describe(top.params)}"
    if plan.job is not None:
        print(f"{len(done)} trials\n{best}")
        if seeds:
            print(confirm(plan.job, top.params, plan.folder, plan.spec.trust))
        print(f"Study: {plan.folder}/trials.parquet, study.html, best.yaml")
        return
    steps = sum(int(t.user_attrs.get("steps", 0)) for t in done)
    pruned = sum(t.state == TrialState.PRUNED for t in done)
    planned = plan.spec.steps * plan.spec.seeds * len(done)
    share = f"{steps:,} of {planned:,} steps ({steps / planned:.0%})" if steps <= planned else f"{steps:,} steps"
    print(f"{len(done)} trials, {pruned} of them pruned, in {share}")
    print(best)
    if seeds:
        model = [o for o in plan.spec.common if o.startswith("model=")]  # the default is the study's model as it ships
        models = {
            "default": [*model, *plan.cli_overrides],
            "best": [*plan.spec.common, *plan.space.overrides(top.params)],
        }
        title = f"Best of the study {plan.spec.name}, and the default, on fresh seeds"
        tested = plan_runs(title, "default", models, range(_FRESH, _FRESH + seeds))
        with locked(plan.folder / ".answer.lock", "testing the best of this study"):
            train_missing(list(tested.runs.values()), workers, plan.spec.name, "confirm")
        comparison = summarise(tested)
        print_markdown(markdown(comparison))
        out = plan.folder / "confirm"
        out.mkdir(exist_ok=True)
        write_comparison(comparison, out)
        draw(study, plan.title, trials, plan.spec.objectives, plan.folder, out)
    print(f"Study: {plan.folder}/trials.parquet, study.html, best.yaml")
    search = "".join(f"'{o}' " for o in plan.spec.common if o.startswith(SEARCH_PATH))
    print(f"To train with it: python train.py {search}+best={plan.folder}/best.yaml")
