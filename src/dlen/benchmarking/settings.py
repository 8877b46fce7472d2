"""Settings of ``benchmark.py``, read before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dlen.checks import whole
from dlen.comparing.settings import chosen, parse_seeds
from dlen.devices import check_workers
from dlen.errors import UserError

_MOST_TRIALS = 10_000


@dataclass(frozen=True, slots=True)
class Settings:
    """What a benchmark measures.

    Attributes:
        base: the model that gains are measured against.
        models: settings by model.
        data: settings by data set.
        trials: settings that each model tries.
        spaces: search space by model; empty for the defaults alone.
        seeds: seeds of each model, the first of which the search uses.
    """

    base: str
    models: dict[str, list[str]]
    data: dict[str, list[str]]
    trials: int
    spaces: dict[str, dict[str, Any]]
    seeds: list[int]


def parse_settings(config: DictConfig) -> Settings:
    """Read the benchmark of a config.

    Raises:
        UserError: a setting is wrong.
    """
    node: Any = OmegaConf.to_container(config.benchmark, resolve=True)
    models = chosen(_lists("models", node["models"]), config.models, "models", "benchmark")
    data = chosen(_lists("data", node["data"]), config.data_sets, "data_sets", "benchmark")
    spaces = node["spaces"] or {}
    for name in spaces:
        if name not in node["models"]:
            raise UserError(f"config benchmark.spaces: there is no model {name}; there are {', '.join(node['models'])}")
    base = str(node["base"])
    if base not in models:
        raise UserError(f"config benchmark.base: {base!r} is not among the models {', '.join(models)}")
    try:
        trials = whole("benchmark.trials", node["trials"], 1, _MOST_TRIALS)
    except ValueError as error:
        raise UserError(f"config {error}") from None
    check_workers(config.workers)
    seeds = parse_seeds(config.seeds if config.seeds is not None else node["seeds"])
    own = {name: dict(spaces.get(name, node["space"] or {}) or {}) for name in models}
    return Settings(base, models, data, trials, own, seeds)


def _lists(key: str, node: Any) -> dict[str, list[str]]:
    if not isinstance(node, Mapping) or not node:
        raise UserError(f"config benchmark.{key}: must map names to lists of settings, got {node!r}")
    for name, settings in node.items():
        if not isinstance(settings, list):
            raise UserError(f"config benchmark.{key}: {name} must be a list of settings, got {settings!r}")
    return {str(name): [str(s) for s in settings] for name, settings in node.items()}
