"""Settings of ``compare.py``, whose keys conf/compare.yaml describes; read before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dlen.checks import is_whole
from dlen.comparing.grid import parse_grid
from dlen.errors import UserError
from dlen.ranking.settings import SessionSettings
from dlen.settings import Group, Seeds, Workers
from dlen.training.configs import plain_values
from dlen.training.settings import TrainSettings

Value = TypeVar("Value")


@dataclass(kw_only=True)
class PolicySettings(SessionSettings):
    """Sessions in which the models of an experiment rank."""

    fusion: Group
    up: float
    floor: float
    detest: list[float]
    tuned: dict[str, Path] | None = None


@dataclass
class OnlineSettings:
    """Published changes of a live test, in percent."""

    changes: dict[str, float]
    note: str | None = None


@dataclass
class PublishedSettings:
    """Published AUCs, by model and task."""

    auc: dict[str, dict[str, float]]
    note: str | None = None


@dataclass
class ExperimentSettings:
    """An experiment, as in conf/experiment."""

    title: str
    base: str
    seeds: Seeds
    models: dict[str, list[str]]
    settings: list[str] | None = None
    match: Literal["parameters"] | None = None
    skip_unfit: bool = False
    grid: dict[str, dict[str, list[str]]] | None = None
    planes: list[list[str]] | None = None
    sessions: PolicySettings | None = None
    online: OnlineSettings | None = None
    paper: PublishedSettings | None = None


@dataclass(kw_only=True)
class ManySettings(TrainSettings):
    """Keys of a command that trains several models."""

    seeds: Seeds | None
    models: list[str] | None
    workers: Workers
    out: Path | None


@dataclass(kw_only=True)
class CompareSettings(ManySettings):
    """Keys of ``conf/compare.yaml``."""

    experiment: ExperimentSettings | None


def check_comparison(config: DictConfig) -> None:
    """Check the settings of ``compare.py``.

    Raises:
        UserError: a setting is invalid.
    """
    if config.get("experiment") is None:
        name = HydraConfig.get().runtime.choices["experiment"]
        raise UserError(f"config experiment: {name} has no models to compare; run train.py experiment={name}")
    parse_grid(config)
    read_experiment(config)


def read_experiment(config: DictConfig) -> tuple[dict[str, Any], str, dict[str, list[str]], list[int]]:
    """The experiment, its base model, the overrides of the chosen models, and the seeds.

    Raises:
        UserError: there is no such model, the base model is missing, or a seed is wrong.
    """
    experiment = plain_values(config.experiment)
    base, models = str(experiment["base"]), chosen(experiment["models"], config.models, "models", "experiment")
    if base not in models:
        raise UserError(f"config models: must include the base model {base!r}, got {', '.join(models)}")
    if experiment.get("grid") is not None and list(models)[-1] == base:
        raise UserError(f"config models: a grid shows the gain of the last model over {base}, which is the last here")
    seeds = parse_seeds(config.seeds if config.seeds is not None else experiment["seeds"])
    return experiment, base, models, seeds


def chosen(known: dict[str, Value], names: Sequence[str] | None, key: str, owner: str) -> dict[str, Value]:
    """The named entries of a mapping; all without names.

    Args:
        known: entries by name.
        names: the chosen names; None for all.
        key: config key of the names, for messages.
        owner: what has the entries, for messages.

    Raises:
        UserError: there is no such name.
    """
    unknown = [str(n) for n in names or [] if n not in known]
    if unknown:
        raise UserError(f"config {key}: there is no {', '.join(unknown)}; the {owner} has {', '.join(known)}")
    return known if names is None else {name: value for name, value in known.items() if name in names}


def parse_seeds(value: Any) -> list[int]:
    """A list of seeds, or a number of seeds counted from 0, as a list. Raises UserError if a seed is repeated."""
    seeds = list(range(value)) if is_whole(value) else list(value)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"config seeds: {value!r} is not a list of distinct seeds")
    return seeds
