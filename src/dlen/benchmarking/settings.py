"""Settings of ``benchmark.py``, whose keys conf/benchmark.yaml describes; read before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf

from dlen.comparing.settings import ManySettings, chosen, parse_seeds
from dlen.errors import UserError
from dlen.settings import Group, Seeds
from dlen.valid import Range

_MOST_TRIALS = 10_000


@dataclass
class FieldSettings:
    """A benchmark, as in conf/benchmark."""

    base: str
    models: dict[str, list[str]]
    data: dict[str, list[str]]
    trials: Annotated[int, Range(1, _MOST_TRIALS)]
    space: Group | None
    spaces: dict[str, Group] | None
    seeds: Seeds | None = None  # with the key seeds of the command


@dataclass(kw_only=True)
class BenchmarkSettings(ManySettings):
    """Keys of ``conf/benchmark.yaml``."""

    benchmark: FieldSettings
    data_sets: list[str] | None
    check: Path | None


@dataclass(frozen=True, slots=True)
class Benchmark:
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


def parse_settings(config: DictConfig) -> Benchmark:
    """Read the benchmark of a config.

    Raises:
        UserError: a setting is wrong.
    """
    node: Any = OmegaConf.to_container(config.benchmark, resolve=True)
    models = chosen(node["models"], config.models, "models", "benchmark")
    data = chosen(node["data"], config.data_sets, "data_sets", "benchmark")
    spaces = node["spaces"] or {}
    for name in spaces:
        if name not in node["models"]:
            raise UserError(f"config benchmark.spaces: there is no model {name}; there are {', '.join(node['models'])}")
    base = str(node["base"])
    if base not in models:
        raise UserError(f"config benchmark.base: {base!r} is not among the models {', '.join(models)}")
    seeds = parse_seeds(config.seeds if config.seeds is not None else node["seeds"])
    own = {name: dict(spaces.get(name, node["space"] or {}) or {}) for name in models}
    return Benchmark(base, models, data, node["trials"], own, seeds)
