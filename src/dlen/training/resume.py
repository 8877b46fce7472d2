"""The config that resumes a run from its folder, or repeats it from the start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dlen.errors import UserError
from dlen.settings import PREPARING
from dlen.training.run_folder import load_run_config

_RERUN_KEYS = ("rerun", "run_dir", "runs_dir", "data_dir", "logger", "trust", *PREPARING)  # that a rerun accepts


def continued(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The config of a resumed run: the run's own, with the overrides of the command line.

    Args:
        config: composed config of ``train.py`` with ``ckpt=last``.

    Raises:
        UserError: the run does not exist, or an override changes its model or data.
    """
    if not (Path(config.run_dir) / "checkpoints" / "last.ckpt").exists():
        return config  # training refuses it: there is nothing to resume
    before = load_run_config(Path(config.run_dir), config.trust)
    resumed = _of_the_run(before, config)
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in ("model", "data"):
            was = before[f"{key}_name"]
            if config[f"{key}_name"] != was:
                raise UserError(f"cannot resume: {key} was {was} and is {value} now; set {key}={was}")
        elif "/" in key:
            group = _group(key.partition("@")[0])
            resumed[group] = config[group]
        else:
            OmegaConf.update(resumed, key, OmegaConf.select(config, key), merge=False, force_add=True)
    return resumed


def _of_the_run(before: DictConfig, config: DictConfig) -> DictConfig:
    """A run's own config, with the current values of ``trust`` and of keys that the run does not have."""
    keys = dict.fromkeys([*config, *before])  # a group without a choice, such as scheduler, has no key
    merged = OmegaConf.create({k: before[k] if k in before and k != "trust" else config[k] for k in keys})
    assert isinstance(merged, DictConfig)
    return merged


def repeated(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The config that repeats a finished run in a new folder.

    Args:
        config: composed config of ``train.py`` with ``rerun``.
        overrides: overrides of the command line; a rerun accepts only paths, loggers and ``trust``.

    Raises:
        UserError: there is no such finished run, or an override is not allowed.
    """
    folder = Path(config.rerun)
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    for key in keys:
        if _group(key) not in _RERUN_KEYS:
            raise UserError(f"config {key}: a rerun uses the settings of its run; leave it out, or train without rerun")
    before = load_run_config(folder, config.trust)
    if not (folder / "metrics.json").exists():
        raise UserError(f"{folder}: has no metrics.json, so the run is not finished and cannot be compared")
    again = _of_the_run(before, config)
    for group in map(_group, keys):
        again[group] = config[group]
    again.ckpt, again.rerun = None, None
    again.run_dir = str(_free_folder(folder)) if config.run_dir is None else config.run_dir
    return again


def _group(key: str) -> str:
    """The top-level key or config group that an override sets."""
    return key.split(".")[0].split("/")[0]


def _free_folder(folder: Path) -> Path:
    """A folder for the rerun, next to its run, that does not exist yet."""
    free, number = folder.with_name(f"{folder.name}-rerun"), 1
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-rerun{number}")
    return free
