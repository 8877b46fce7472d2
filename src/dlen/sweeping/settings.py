"""Settings of ``sweep.py``, read before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dlen.devices import check_workers
from dlen.errors import UserError
from dlen.renamed import present_keys, present_space
from dlen.sweeping.study import check_options
from dlen.training.configs import check_whole
from dlen.training.run_folder import check_run

_COUNTS = {
    "sweep.trials": 1,
    "sweep.seeds": 1,
    "sweep.devices_per_trial": 1,
    "sweep.retries": 0,
    "sweep.confirm": 0,
    "sweep.seed": 0,
}  # lowest values
_LAUNCHERS = ("local", "submitit", "wandb")


def read_options(config: DictConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """The plain values of the group ``sweep``, and the direction of each metric that is searched for.

    Raises:
        UserError: a setting is invalid.
    """
    node = OmegaConf.to_container(config.sweep, resolve=True)
    assert isinstance(node, dict)
    plain = {str(key): value for key, value in node.items()}
    check_whole(config, _COUNTS)
    if plain["devices_per_trial"] > 1 and plain["seeds"] > 1:
        raise UserError(
            "config sweep.seeds: with several devices per trial, each trial trains one seed; set sweep.seeds=1"
        )
    if plain["devices_per_trial"] > 1 and plain["confirm"]:
        raise UserError(
            "config sweep.confirm: the final comparison needs one device per trial; with several, set sweep.confirm=0"
        )
    if plain["hours"] is not None and not (isinstance(plain["hours"], int | float) and plain["hours"] > 0):
        raise UserError(f"config sweep.hours: {plain['hours']!r} is not a positive number")
    if plain["launcher"] not in _LAUNCHERS:
        raise UserError(f"config sweep.launcher: {plain['launcher']!r} is not one of {', '.join(_LAUNCHERS)}")
    plain["space"], plain["start"] = (
        present_space(plain["space"] or {}),
        [present_keys(p) for p in plain["start"] or []],
    )
    directions = _directions(plain)
    check_options(plain["sampler"], plain["pruner"], directions)
    check_workers(plain["workers"], "sweep.workers")
    if plain["run"] is not None:
        check_run(Path(plain["run"]))
    return plain, directions


def _directions(options: Mapping[str, Any]) -> dict[str, str]:
    """Directions of the metrics in the config's two lists."""
    directions: dict[str, str] = {}
    for direction in ("maximize", "minimize"):
        figures = options[direction] or []
        if not isinstance(figures, list) or any(not isinstance(f, str) or f in directions for f in figures):
            raise UserError(f"config sweep.{direction}: {figures!r} is not a list of distinct metrics")
        directions |= dict.fromkeys(figures, direction)
    return directions
