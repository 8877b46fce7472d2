"""Settings of every command, and what those of each are declared with; conf/*.yaml describes them.

A command's dataclass declares the valid values of its keys (:mod:`dlen.valid`), and :func:`dlen.cli.command` checks
them before the command runs. A field with a default may be absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from dlen.valid import Matching, Range

Count = Annotated[int, Range(1)]
FromZero = Annotated[int, Range(0)]
Share = Count | Annotated[float, Range(0, 1, above=True)]  # a number of batches, or a share of them
Workers = Literal["auto"] | Count
Switch = Literal["auto"] | bool
Group = dict[str, Any]  # settings of a class that checks them itself
Seeds = Count | list[FromZero]
Checkpoint = Literal["best", "last"]
Packages = Annotated[list[str], Matching(r"[^\W\d]\w*", "a list of packages, such as [my_models]")]


PREPARING = ("prepare_workers", "cluster")  # keys of who prepares data, which changes none of them


@dataclass
class Settings:
    """Keys of ``conf/base.yaml``."""

    data_dir: Path
    prepare_workers: Workers
    paper: Group
    cluster: Group | None = field(default=None, kw_only=True)


@dataclass
class OpenSettings(Settings):
    """Keys of the commands that open a finished run."""

    run: Path
    trust: Packages
    checkpoint: Checkpoint
    fusion: Group
