"""Plan of a comparison: the runs an experiment needs, each identified by the fingerprint of its config and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dlen import __version__
from dlen.comparing.fit import fitted, store_of
from dlen.comparing.settings import read_experiment
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.overrides import compose_seeds, overrides_for_train
from dlen.training.configs import digest, settings_of
from dlen.training.run_folder import SCORES

_COMPARE_KEYS = ("experiment", "seeds", "models", "workers", "out")  # keys that train.py does not have


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One training run of a comparison.

    Attributes:
        model: row in the table.
        seed: seed of the weights and the training order.
        overrides: overrides of ``train.py``, without the run folder.
        folder: run folder; its name contains the fingerprint.
        store: prepared data of the run.
    """

    model: str
    seed: int
    overrides: tuple[str, ...]
    folder: Path
    store: Store

    @property
    def done(self) -> bool:
        """Whether the run has ended and kept its scores."""
        return (self.folder / "metrics.json").exists() and (self.folder / SCORES).exists()


@dataclass(frozen=True, slots=True)
class Plan:
    """All runs of one comparison.

    Attributes:
        title: title of the table.
        base: the model that the others are paired with.
        models: names in table order.
        seeds: seeds, in order.
        runs: runs by model and seed.
        paper: the paper's own metrics, as configured; empty if there are none.
    """

    title: str
    base: str
    models: list[str]
    seeds: list[int]
    runs: dict[tuple[str, int], PlannedRun]
    paper: dict[str, Any]


def make_plan(config: DictConfig, cell: Sequence[str] = ()) -> Plan:
    """Compose the config of every run, prepare the data, and name the runs by fingerprint.

    Args:
        config: config of ``compare.py``.
        cell: settings of one grid cell, applied to all of its runs.

    Raises:
        UserError: the experiment or an override is wrong.
    """
    experiment, base, models, seeds = read_experiment(config)
    common = [*overrides_for_train(_COMPARE_KEYS, experiment.get("settings") or []), *cell]
    stores: dict[str, Store] = {}
    if experiment.get("skip_unfit") or experiment.get("match"):
        options: dict[str, Any] = {"skip_unfit": bool(experiment.get("skip_unfit")), "match": experiment.get("match")}
        models = fitted(models, base, common, stores, **options)
    overrides = {model: [*common, *settings] for model, settings in models.items()}
    return plan_runs(str(experiment["title"]), base, overrides, seeds, stores, experiment.get("paper"))


def plan_runs(
    title: str,
    base: str,
    models: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    stores: dict[str, Store] | None = None,
    paper: dict[str, Any] | None = None,
) -> Plan:
    """Plan the run of each model and seed.

    Args:
        base: the model that the others are paired with.
        models: all overrides of each model, by name.
        stores: prepared data that are already open.
        paper: the paper's own metrics.
    """
    stores = {} if stores is None else stores
    runs = {}
    for model, overrides in models.items():
        of_all_seeds = (*overrides, "metrics.scores=true")
        for seed, config in zip(seeds, compose_seeds(of_all_seeds, seeds), strict=True):
            runs[model, seed] = _plan_run(model, seed, (*of_all_seeds, f"seed={seed}"), config, stores)
    _check_same_rows(base, runs)
    return Plan(title, base, list(models), list(seeds), runs, paper or {})


def _check_same_rows(base: str, runs: Mapping[tuple[str, int], PlannedRun]) -> None:
    """Raise UserError unless all runs are tested on the same rows and tasks, by which differences are paired.

    Their inputs may differ: two YAMLs of one table tell what a history or a rate brings.
    """
    first = next(run.store for run in runs.values() if run.model == base)
    expected = first.labels_identity("test")
    for run in runs.values():
        actual, tasks = run.store.labels_identity("test"), _measured(run.store)
        if tasks != _measured(first):
            raise UserError(
                f"config models: {run.model}, seed {run.seed}, has other tasks than {base}, so their figures cannot be "
                "compared; give all models the same tasks"
            )
        if actual != expected:
            raise UserError(
                f"config models: {run.model}, seed {run.seed}, is tested on different rows ({actual}) than {base} "
                f"({expected}), so their figures cannot be compared; give all models the same data"
            )


def _measured(store: Store) -> list[tuple[str, ...]]:
    """What of each task decides which rows measure it."""
    return [(t.name, t.kind, t.observed_where or "", t.joint) for t in store.schema.tasks]


def _plan_run(
    model: str, seed: int, overrides: Sequence[str], config: DictConfig, stores: dict[str, Store]
) -> PlannedRun:
    if config.trainer.get("limit_test_batches", 1.0) != 1.0:
        raise UserError("config trainer.limit_test_batches: a comparison tests all rows; remove this setting")
    store = store_of(config, stores)
    fingerprint = digest({**settings_of(config), "fingerprint": store.fingerprint, "version": __version__})
    folder = Path(config.runs_dir) / "compare" / "cache" / f"{config.data_name}-{fingerprint}"
    return PlannedRun(model, seed, tuple(overrides), folder.absolute(), store)
