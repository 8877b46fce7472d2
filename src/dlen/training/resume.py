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

_PLACES = ("rerun", "run_dir", "runs_dir", "data_dir", "logger", "trust")  # settings that a rerun accepts
_CAUSES = ("version", "code", "library/", "machine/")
_SHOWN = 5  # differences that are printed one by one


def continued(config: DictConfig, said: Sequence[str]) -> DictConfig:
    """The config of a resumed run: the run's own, with the overrides of the command line.

    Args:
        config: composed config of ``train.py`` with ``ckpt=last``.
        said: overrides of the command line.

    Raises:
        UserError: the run does not exist, or an override changes its model or data.
    """
    if not (Path(config.run_dir) / "checkpoints" / "last.ckpt").exists():
        return config  # training refuses it: there is nothing to resume
    before = load_run_config(Path(config.run_dir), config.trust)
    found = _of_the_run(before, config)
    for override in said:
        key, _, value = override.lstrip("+~").partition("=")
        group = key.partition("@")[0].split("/")[0]
        if key in ("model", "data"):
            was = before[f"{key}_name"]
            if config[f"{key}_name"] != was:
                raise UserError(f"cannot resume: {key} was {was} and is {value} now; set it as it was")
        elif "/" in key or OmegaConf.is_dict(OmegaConf.select(config, key)):
            found[group] = config[group]
        else:
            OmegaConf.update(found, key, OmegaConf.select(config, key), force_add=True)
    return found


def _of_the_run(before: DictConfig, config: DictConfig) -> DictConfig:
    """A run's own config, with the current values of ``trust`` and of keys that the run does not have."""
    found = OmegaConf.create({k: before[k] if k in before and k != "trust" else config[k] for k in config})
    assert isinstance(found, DictConfig)
    return found


def rerun(config: DictConfig, said: Sequence[str], draw: Draw | None = None) -> bool:
    """Repeat a finished run in a new folder, and print differences in metrics and weights with possible causes.

    Args:
        config: composed config of ``train.py`` with ``rerun``.
        said: overrides of the command line; a rerun accepts only paths, loggers and ``trust``.
        draw: see :func:`~dlen.training.fit.train`.

    Returns:
        Whether all metrics and all weights of the best checkpoint are identical.

    Raises:
        UserError: there is no such finished run, its data have changed, or an override is not allowed.
    """
    folder = Path(config.rerun)
    for override in said:
        key = override.lstrip("+~").partition("=")[0]
        if key.split(".")[0].split("/")[0] not in _PLACES:
            raise UserError(f"config {key}: a rerun is as its run was; leave it out, or train without rerun")
    before, path = load_run_config(folder, config.trust), folder / "metrics.json"
    if not path.exists():
        raise UserError(f"{folder}: the run has no metrics.json, so it has not ended and cannot be compared with")
    found = _of_the_run(before, config)
    found.ckpt, found.rerun, found.run_dir = None, None, config.run_dir
    for override in said:
        key = override.lstrip("+~").partition("=")[0].split(".")[0].split("/")[0]
        found[key] = None if key == "rerun" else config[key]
    found.run_dir = str(_beside(folder)) if found.run_dir is None else found.run_dir
    was = read_figures(path)
    # Only the fingerprint is needed: training opens and checks the data itself.
    fingerprint = identify(build(found.data, "data"), Path(found.data_dir))["fingerprint"]
    if fingerprint != was.get("data_fingerprint"):
        raise UserError(f"{folder}: was trained on data {was.get('data_fingerprint')}, but they are {fingerprint} now")
    now = train(found, draw)
    return _tell(folder, Path(found.run_dir), was, now)


def _beside(folder: Path) -> Path:
    """A free folder name for the rerun."""
    found, number = folder.with_name(f"{folder.name}-rerun"), 1
    while found.exists():
        number += 1
        found = folder.with_name(f"{folder.name}-rerun{number}")
    return found


def _tell(folder: Path, again: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Compare the two runs and print the result."""
    if rank():
        return True
    figures = [key for key in {**was, **now} if _counts(key) and was.get(key) != now.get(key)]
    weights = list(_other_weights(*(_weights(f / "checkpoints" / "best.ckpt") for f in (folder, again))))
    if not figures and not weights:
        print(f"rerun: every figure and every weight is that of {folder}")
        return True
    print(f"rerun: not the same as {folder}", file=sys.stderr)
    for key in figures[:_SHOWN]:
        print(f"  {key}: was {was.get(key)}, is {now.get(key)}", file=sys.stderr)
    if len(figures) > _SHOWN:
        print(f"  and {len(figures) - _SHOWN} further figures", file=sys.stderr)
    if weights:
        print(f"  {len(weights)} tensors of weights, such as {weights[0]}", file=sys.stderr)
    causes = [key for key in {**was, **now} if key.startswith(_CAUSES) and was.get(key) != now.get(key)]
    told = [f"{key} was {was.get(key, 'not recorded')} and is {now.get(key)}" for key in causes]
    print(f"  what may be why: {'; '.join(told) or 'nothing that is recorded differs'}", file=sys.stderr)
    return False


def _counts(key: str) -> bool:
    """Whether an entry of ``metrics.json`` must be identical in a rerun: times, memory and environment need not."""
    return not key.startswith((*_CAUSES, "fit/samples", "fit/peak")) and not key.endswith("seconds")


def _weights(path: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = read_checkpoint(path)["state_dict"]
    return content


def _other_weights(was: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Names of the tensors that are not bitwise identical."""
    for name in {**was, **now}:
        if name not in was or name not in now or not torch.equal(was[name], now[name]):
            yield name
