"""Settings of ``compare.py``, read before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dlen.checks import is_whole
from dlen.comparing.grid import parse_grid
from dlen.devices import check_workers
from dlen.errors import UserError

Value = TypeVar("Value")


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
    check_workers(config.workers)


def read_experiment(config: DictConfig) -> tuple[dict[str, Any], str, dict[str, list[str]], list[int]]:
    """The experiment, its base model, the overrides of the chosen models, and the seeds.

    Raises:
        UserError: there is no such model, the base model is missing, or a seed is wrong.
    """
    experiment = OmegaConf.to_container(config.experiment, resolve=True)
    assert isinstance(experiment, dict)
    base, models = str(experiment["base"]), chosen(experiment["models"], config.models, "models", "experiment")
    if base not in models:
        raise UserError(f"config models: must include the base model {base!r}, got {', '.join(models)}")
    seeds = parse_seeds(config.seeds if config.seeds is not None else experiment["seeds"])
    return {str(key): value for key, value in experiment.items()}, base, models, seeds


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
    """Parse a list of seeds, or a number of seeds counted from 0."""
    if is_whole(value):
        seeds = list(range(value))
    else:
        seeds = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    wrong = [s for s in seeds if not is_whole(s) or s < 0]
    if not seeds or wrong or len(set(seeds)) < len(seeds):
        raise UserError(f"config seeds: {value!r} is neither a positive number nor a list of distinct seeds from 0")
    return seeds
