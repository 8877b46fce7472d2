"""benchmark: from its config to searched models, trained runs, and a page of ranks."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from omegaconf import DictConfig

from dlen.benchmarking.settings import Benchmark, parse_settings
from dlen.benchmarking.tables import DataSet, Entry, figures_of, record_of, write_benchmark
from dlen.comparing.compare import summarise
from dlen.comparing.fit import fitted, store_of
from dlen.comparing.plan import Plan, plan_runs
from dlen.comparing.statistics import Difference
from dlen.comparing.tables import Comparison, Row, print_markdown
from dlen.comparing.workers import train_missing
from dlen.data.store import Store
from dlen.devices import number_of_workers
from dlen.errors import UserError
from dlen.files import check_links, check_writable, read_figures
from dlen.overrides import SEARCH_PATH, compose_train, overrides_for_train
from dlen.sweeping.space import parse_space
from dlen.sweeping.study import make_sampler
from dlen.training.own_metrics import build_own_metrics
from dlen.training.run_folder import load_run_config
from dlen.training.selection import monitor_mode, monitored

_KEYS = ("benchmark", "seeds", "models", "data_sets", "workers", "out", "check")  # keys that train.py does not have
DEFAULTS = "defaults"
Overrides = tuple[str, ...]


def benchmark(config: DictConfig) -> None:
    """Search and train every model on every data set, and print and write the page.

    Args:
        config: config of ``benchmark.py``.

    Raises:
        UserError: a setting is wrong, a run fails, or the files of every data set are missing.
    """
    settings = parse_settings(config)
    out = Path(config.out) if config.out is not None else Path(config.runs_dir) / "benchmark"
    check_writable(out)
    check_links(out)
    measured, missing = [], {}
    for name, overrides in settings.data.items():
        own = common_overrides(overrides)
        try:
            stores: dict[str, Store] = {}
            store = store_of(compose_train(own), stores)
        except UserError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            missing[name] = str(error)
            continue
        measured.append(_measure(name, own, settings, config, stores, store))
        write_benchmark(out, measured, missing, settings.base, settings.seeds)  # a later data set may fail
    if not measured:
        raise UserError(f"config benchmark.data: no data set can be read ({next(iter(missing.values()))})")
    print_markdown(write_benchmark(out, measured, missing, settings.base, settings.seeds))
    print(f"Benchmark: {out}/benchmark.md, benchmark.json")


def common_overrides(settings: Sequence[str]) -> list[str]:
    """The overrides of ``train.py`` for a data set's runs: its settings, and those of the command line, which win."""
    # train.py's default data set is left out where the settings name another.
    return [o for o in overrides_for_train(_KEYS, settings) if not o.startswith("data=") or o in settings]


def candidates(space: Mapping[str, Any], trials: int, tasks: Sequence[str]) -> list[Overrides]:
    """The settings that a model tries: its defaults, then points of a Sobol sequence, the same for the same space.

    Args:
        space: search space as in a sweep; empty for the defaults alone.
        trials: number of settings.
        tasks: names of the data's tasks.
    """
    if not space:
        return [()]
    parsed = parse_space(space, tasks, "benchmark.space")
    sampler = make_sampler("qmc", {}, seed=0, worker="", trials=0)
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study, found = optuna.create_study(sampler=sampler), []
        for _ in range(trials - 1):
            trial = study.ask(dict(parsed.distributions()))
            found.append(tuple(parsed.overrides(parsed.suggest(trial))))
            study.tell(trial, 0.0)
    finally:
        optuna.logging.set_verbosity(level)
    return [(), *found]


def _measure(
    name: str, common: Sequence[str], settings: Benchmark, config: DictConfig, stores: dict[str, Store], store: Store
) -> DataSet:
    """Search and train all models on one data set."""
    models = fitted(settings.models, settings.base, common, stores, skip_unfit=True, match=None)
    tried = {model: candidates(settings.spaces[model], settings.trials, store.schema.task_names) for model in models}
    search = {
        _trial_name(model, number): [*common, *models[model], *settings_of_trial]
        for model in models
        for number, settings_of_trial in enumerate(tried[model])
    }
    first = _trial_name(settings.base, 0)
    searched = plan_runs(name, first, search, settings.seeds[:1], stores)
    _train(searched.runs.values(), config, f"{name}: search")
    best = {model: _best(searched, model, len(tried[model]), config.trust) for model in models}
    overrides = {model: [*common, *models[model], *tried[model][best[model]]] for model in models}
    plan = plan_runs(name, settings.base, overrides, settings.seeds, stores)
    _train(plan.runs.values(), config, name)
    compared = summarise(plan)
    to_base = {row.model: row for row in compared.rows}

    def entry(group: int, to_first: Row) -> Entry:
        model, row = to_first.model, to_base[to_first.model]
        runs = [read_figures(plan.runs[model, seed].folder / "metrics.json") for seed in plan.seeds]
        return Entry(
            model,
            group,
            row.auc["mean"],
            to_first.differences.get("mean"),
            row.differences.get("mean"),
            figures_of(runs, list(row.auc)),
            " ".join(tried[model][best[model]]),
            len(tried[model]),
            [override for override in overrides[model] if not override.startswith(SEARCH_PATH)],
            [record_of(run) for run in runs],
        )

    groups = list(_groups(plan, compared))
    entries = [entry(group, row) for group, comparison in enumerate(groups, 1) for row in comparison.rows]
    return DataSet(name, groups[0].identity, entries, [model for model in settings.models if model not in models])


def _train(runs: Any, config: DictConfig, group: str) -> None:
    different = list({run.folder: run for run in runs}.values())
    train_missing(different, number_of_workers(config.workers, len(different)), group, "benchmark")


def _trial_name(model: str, number: int) -> str:
    return f"{model} {number}" if number else f"{model} {DEFAULTS}"


def _best(plan: Plan, model: str, trials: int, trust: Sequence[str]) -> int:
    """The trial with the best validation, by the metric that its run was selected by; the earlier one of equals."""
    values = []
    for number in range(trials):
        run = plan.runs[_trial_name(model, number), plan.seeds[0]]
        config, schema = load_run_config(run.folder, trust), run.store.schema
        key = monitored(config.monitor, schema)
        sign = 1 if monitor_mode(key, schema, build_own_metrics(config, schema)) == "max" else -1
        value = read_figures(run.folder / "metrics.json").get(key)
        values.append(-math.inf if value is None else sign * float(value))
    return max(range(trials), key=values.__getitem__)


def _groups(plan: Plan, to_base: Comparison) -> Iterator[Comparison]:
    """Groups of models that are not clearly behind the first of their group, best first.

    Each comparison is paired with the first model of its group, and holds this group alone.
    """
    left = [row.model for row in sorted(to_base.rows, key=lambda row: -fmean(row.auc["mean"]))]
    while left:
        runs = {key: run for key, run in plan.runs.items() if key[0] in left}
        compared = summarise(replace(plan, base=left[0], models=left, runs=runs))
        rows = {row.model: row for row in compared.rows}
        tied = [m for m in left if m == left[0] or not _clearly_behind(rows[m].differences.get("mean"))]
        yield replace(compared, rows=[rows[model] for model in tied])
        left = [model for model in left if model not in tied]


def _clearly_behind(difference: Difference | None) -> bool:
    return difference is not None and difference.clear and difference.mean < 0
