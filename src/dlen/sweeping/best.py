"""Write the result of a study: best.yaml for ``train.py +best=...``, and trials.parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import optuna
import polars as pl
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import FrozenTrial

from dlen.files import replacing_file, write_text
from dlen.overrides import SEARCH_PATH
from dlen.sweeping.trial_records import last_value, params_of, pareto_front, retried, seed_aucs, targets_of


def write_best(overrides: Sequence[str], origin: str, path: Path) -> None:
    """Write overrides as a config that Hydra merges into another.

    Args:
        overrides: overrides of ``train.py``; the last one of a key wins.
        origin: a comment that states their origin.
    """
    groups: dict[str, Any] = {}
    values: dict[str, Any] = {}
    loader = GlobalHydra.instance().config_loader()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.key_or_group, override.value()
        if override.is_delete():
            continue  # a config cannot delete keys of the config it is merged into
        if key in ("trust", SEARCH_PATH):
            continue  # only the user of the file decides whose code may run, and which folders are searched
        if loader.get_group_options(key):
            groups[key if override.is_add() else f"override /{key}"] = value
        else:
            _put(values, key.split("."), value)
    content: dict[str, Any] = {"defaults": [{k: v} for k, v in groups.items()] + ["_self_"], **values}
    text = yaml.safe_dump(content, sort_keys=False)
    write_text(path, f"# @package _global_\n# {origin}\n# python train.py +best={path}\n{text}")


def _put(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        if not isinstance(values.get(key), dict):
            values[key] = {}
        values = values[key]
    values[keys[-1]] = value


def write_trials(trials: Sequence[FrozenTrial], objectives: Mapping[str, str], path: Path) -> None:
    """Write one row per trial, in order.

    Columns: number, state, values by objective, parameters as ``param/KEY``, mean and deviation over seeds of each
    AUC, last reported step and value, cost, worker, times, reason and overrides.

    Args:
        objectives: direction of each metric, by key.
    """
    front = {t.number for t in pareto_front(trials, objectives)}
    params, targets = params_of(trials), targets_of(trials)
    rows = [_row(t, objectives, params, targets, t.number in front) for t in trials]
    with replacing_file(path) as temporary:
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(temporary)


def _row(
    trial: FrozenTrial, objectives: Mapping[str, str], params: Sequence[str], aucs: Sequence[str], front: bool
) -> dict[str, Any]:
    attributes = trial.user_attrs
    row: dict[str, Any] = {"number": trial.number, "state": trial.state.name.lower(), "best": front}
    row |= dict(zip(objectives, trial.values or [None] * len(objectives), strict=True))
    row |= {f"param/{name}": _cell(trial, name) for name in params}
    for name in aucs:
        values = seed_aucs(trial, name)
        row[f"auc/{name}"] = fmean(values) if values else None
        row[f"auc/{name}/deviation"] = stdev(values) if len(values) > 1 else None
    row |= {"last_step": trial.last_step, "last_value": last_value(trial)}
    row |= {"steps": attributes.get("steps"), "seconds": attributes.get("seconds")}
    row |= {"samples_per_second": attributes.get("samples_per_second"), "worker": attributes.get("worker")}
    row |= {"started": trial.datetime_start, "ended": trial.datetime_complete, "reason": attributes.get("reason")}
    row |= {"retried": retried(trial), "retry_of": attributes.get("retry_of")}
    return row | {"overrides": " ".join(attributes.get("overrides", []))}


def _cell(trial: FrozenTrial, name: str) -> Any:
    """Numbers of a range as numbers; choices, which can have mixed types, as text."""
    if name not in trial.params:
        return None
    value = trial.params[name]
    is_choice = isinstance(trial.distributions[name], optuna.distributions.CategoricalDistribution)
    return str(value) if is_choice else float(value)
