"""Repeat a run and compare the results."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from dlen.data.prepare import identify
from dlen.errors import UserError
from dlen.files import read_figures
from dlen.training.checkpoints import read_checkpoint
from dlen.training.configs import build
from dlen.training.dashboard import Draw
from dlen.training.fit import train
from dlen.training.run_folder import rank

_CAUSES = ("version", "code", "library/", "machine/")
_SHOWN = 5  # differences that are printed one by one


def rerun(folder: Path, again: DictConfig, draw: Draw | None = None) -> bool:
    """Repeat a finished run in a new folder, and print differences in metrics and weights with possible causes.

    Args:
        folder: run folder.
        again: config of the new run, from :func:`~dlen.training.resume.repeated`.
        draw: see :func:`~dlen.training.fit.train`.

    Returns:
        Whether all metrics and all weights of the best checkpoint are identical.

    Raises:
        UserError: the run's data have changed.
    """
    was = read_figures(folder / "metrics.json")
    # Only the fingerprint is needed: training opens and checks the data itself.
    fingerprint = identify(build(again.data, "data"), Path(again.data_dir))["fingerprint"]
    if fingerprint != was.get("data_fingerprint"):
        raise UserError(
            f"{folder}: was trained on data {was.get('data_fingerprint')}, and the data are {fingerprint} now"
        )
    now = train(again, draw)
    return _compare(folder, Path(again.run_dir), was, now)


def _compare(folder: Path, again: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Compare the two runs and print the result."""
    if rank():
        return True
    figures = [key for key in {**was, **now} if must_match(key) and was.get(key) != now.get(key)]
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
    print(f"  possible causes: {'; '.join(causes(was, now)) or 'none recorded'}", file=sys.stderr)
    return False


def causes(was: Mapping[str, Any], now: Mapping[str, Any], others: Sequence[str] = ()) -> list[str]:
    """What differs between two runs that can change their metrics: code, libraries, machine and ``others``."""
    different = [k for k in {**was, **now} if k.startswith((*_CAUSES, *others)) and was.get(k) != now.get(k)]
    return [f"{key} was {was.get(key, 'not recorded')} and is {now.get(key)}" for key in different]


def must_match(key: str) -> bool:
    """Whether an entry of ``metrics.json`` must be identical in a rerun: times, memory and environment need not."""
    return not key.startswith((*_CAUSES, "fit/samples", "fit/peak")) and not key.endswith("seconds")


def _different_weights(was: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Names of the tensors that are not bitwise identical."""
    for name in {**was, **now}:
        if name not in was or name not in now or not torch.equal(was[name], now[name]):
            yield name
