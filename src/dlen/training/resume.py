"""Resume a run from its folder, or repeat it from the start and compare the results."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from dlen.data.prepare import identify
from dlen.errors import UserError
from dlen.files import read_figures
from dlen.training.checkpoints import read_checkpoint
from dlen.training.configs import build
from dlen.training.dashboard import Draw
from dlen.training.fit import train
from dlen.training.run_folder import load_run_config, rank

_RERUN_KEYS = ("rerun", "run_dir", "runs_dir", "data_dir", "logger", "trust")  # settings that a rerun accepts
_CAUSES = ("version", "code", "library/", "machine/")
_SHOWN = 5  # differences that are printed one by one


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
        group = key.partition("@")[0].split("/")[0]
        if key in ("model", "data"):
            was = before[f"{key}_name"]
            if config[f"{key}_name"] != was:
                raise UserError(f"cannot resume: {key} was {was} and is {value} now; set {key}={was}")
        elif "/" in key or OmegaConf.is_dict(OmegaConf.select(config, key)):
            resumed[group] = config[group]
        else:
            OmegaConf.update(resumed, key, OmegaConf.select(config, key), force_add=True)
    return resumed


def _of_the_run(before: DictConfig, config: DictConfig) -> DictConfig:
    """A run's own config, with the current values of ``trust`` and of keys that the run does not have."""
    keys = dict.fromkeys([*config, *before])  # a group without a choice, such as scheduler, has no key
    merged = OmegaConf.create({k: before[k] if k in before and k != "trust" else config[k] for k in keys})
    assert isinstance(merged, DictConfig)
    return merged


def rerun(config: DictConfig, overrides: Sequence[str], draw: Draw | None = None) -> bool:
    """Repeat a finished run in a new folder, and print differences in metrics and weights with possible causes.

    Args:
        config: composed config of ``train.py`` with ``rerun``.
        overrides: overrides of the command line; a rerun accepts only paths, loggers and ``trust``.
        draw: see :func:`~dlen.training.fit.train`.

    Returns:
        Whether all metrics and all weights of the best checkpoint are identical.

    Raises:
        UserError: there is no such finished run, its data have changed, or an override is not allowed.
    """
    folder = Path(config.rerun)
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    for key in keys:
        if _group(key) not in _RERUN_KEYS:
            raise UserError(f"config {key}: a rerun uses the settings of its run; leave it out, or train without rerun")
    before, path = load_run_config(folder, config.trust), folder / "metrics.json"
    if not path.exists():
        raise UserError(f"{folder}: has no metrics.json, so the run is not finished and cannot be compared")
    again = _of_the_run(before, config)
    for group in map(_group, keys):
        again[group] = config[group]
    again.ckpt, again.rerun = None, None
    again.run_dir = str(_free_folder(folder)) if config.run_dir is None else config.run_dir
    was = read_figures(path)
    # Only the fingerprint is needed: training opens and checks the data itself.
    fingerprint = identify(build(again.data, "data"), Path(again.data_dir))["fingerprint"]
    if fingerprint != was.get("data_fingerprint"):
        raise UserError(
            f"{folder}: was trained on data {was.get('data_fingerprint')}, and the data are {fingerprint} now"
        )
    now = train(again, draw)
    return _compare(folder, Path(again.run_dir), was, now)


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


def _compare(folder: Path, again: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Compare the two runs and print the result."""
    if rank():
        return True
    figures = [key for key in {**was, **now} if _must_match(key) and was.get(key) != now.get(key)]
    states = (read_checkpoint(f / "checkpoints" / "best.ckpt")["state_dict"] for f in (folder, again))
    weights = list(_different_weights(*states))
    if not figures and not weights:
        print(f"rerun: all metrics and weights are identical to those of {folder}")
        return True
    print(f"rerun: differs from {folder}", file=sys.stderr)
    for key in figures[:_SHOWN]:
        print(f"  {key}: was {was.get(key)}, is {now.get(key)}", file=sys.stderr)
    if len(figures) > _SHOWN:
        print(f"  and {len(figures) - _SHOWN} more metrics", file=sys.stderr)
    if weights:
        print(f"  {len(weights)} weight tensors, such as {weights[0]}", file=sys.stderr)
    causes = [key for key in {**was, **now} if key.startswith(_CAUSES) and was.get(key) != now.get(key)]
    changes = [f"{key} was {was.get(key, 'not recorded')} and is {now.get(key)}" for key in causes]
    print(f"  possible causes: {'; '.join(changes) or 'none recorded'}", file=sys.stderr)
    return False


def _must_match(key: str) -> bool:
    """Whether an entry of ``metrics.json`` must be identical in a rerun: times, memory and environment need not."""
    return not key.startswith((*_CAUSES, "fit/samples", "fit/peak")) and not key.endswith("seconds")


def _different_weights(was: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Names of the tensors that are not bitwise identical."""
    for name in {**was, **now}:
        if name not in was or name not in now or not torch.equal(was[name], now[name]):
            yield name
