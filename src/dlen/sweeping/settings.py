"""Settings of ``sweep.py``, whose keys conf/sweep.yaml and sweeps/base.yaml describe; read before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig

from dlen.errors import UserError
from dlen.ranking.settings import SessionSettings
from dlen.renamed import present_keys, present_space
from dlen.settings import Count, FromZero, Group, Workers
from dlen.training.configs import plain_values
from dlen.training.run_folder import check_run
from dlen.training.settings import TrainSettings
from dlen.valid import Matching, Range


@dataclass
class SubmititSettings:
    """Settings of jobs that train."""

    cluster: str
    parameters: Group | None


@dataclass
class StudySettings:
    """The group ``sweep``."""

    title: str
    run: Path | None
    values: Group | None
    calibrate: bool
    sessions: SessionSettings | None
    settings: list[str]
    space: Group | None
    start: list[Group] | None
    maximize: list[str] | None
    minimize: list[str] | None
    trials: Count
    seeds: Count
    sampler: str
    sampler_options: Group | None
    pruner: str
    pruner_options: Group | None
    hours: Annotated[float, Range(0, above=True)] | None
    retries: FromZero
    confirm: FromZero
    seed: FromZero
    name: int | Annotated[str, Matching(r"\w[\w.-]*", "a name of letters, digits, dots, dashes and underscores")] | None
    storage: str | None
    workers: Workers
    devices_per_trial: Count
    launcher: Literal["local", "submitit", "wandb"]
    submitit: SubmititSettings


@dataclass(kw_only=True)
class SweepSettings(TrainSettings):
    """Keys of ``conf/sweep.yaml``."""

    sweep: StudySettings


def read_options(config: DictConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """The plain values of the group ``sweep``, and the direction of each metric that is searched for.

    Raises:
        UserError: a setting is invalid.
    """
    plain = plain_values(config.sweep)
    if plain["devices_per_trial"] > 1 and plain["seeds"] > 1:
        raise UserError(
            "config sweep.seeds: with several devices per trial, each trial trains one seed; set sweep.seeds=1"
        )
    if plain["devices_per_trial"] > 1 and plain["confirm"]:
        raise UserError(
            "config sweep.confirm: the final comparison needs one device per trial; with several, set sweep.confirm=0"
        )
    plain["space"], plain["start"] = (
        present_space(plain["space"] or {}),
        [present_keys(p) for p in plain["start"] or []],
    )
    directions = _directions(plain)
    from dlen.sweeping.study import check_options  # here: it imports Optuna

    check_options(plain["sampler"], plain["pruner"], directions)
    if plain["run"] is not None:
        check_run(Path(plain["run"]))
    return plain, directions


def _directions(options: Mapping[str, Any]) -> dict[str, str]:
    """Directions of the metrics in the config's two lists."""
    directions: dict[str, str] = {}
    for direction in ("maximize", "minimize"):
        metrics = options[direction] or []
        if len({*metrics}) < len(metrics) or directions.keys() & metrics:
            raise UserError(f"config sweep.{direction}: {metrics!r} is not a list of distinct metrics")
        directions |= dict.fromkeys(metrics, direction)
    return directions
