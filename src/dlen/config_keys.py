"""Refuses config keys that nothing reads, and config files that nothing can select."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from omegaconf import DictConfig, OmegaConf

from dlen.errors import UserError
from dlen.files import read_yaml
from dlen.valid import did_you_mean

_FREE = ("hydra", "paper", "trainer", "callbacks", "logger", "embedding_lr")  # mappings that take keys of the user's


def check_keys(config: DictConfig, conf: Path, name: str) -> None:
    """Raise UserError for a key that the command does not have, which Hydra adds for ``+key`` and in own files.

    A top-level key that another value refers to, such as ``${width}``, is a variable of the user's and accepted. Groups
    that are instantiated are not checked here, because their classes refuse unknown arguments.

    Args:
        config: composed config of the command, unresolved.
        conf: folder of the command's own configs.
        name: name of its primary config.
    """
    known = _known(conf, name)
    if "data" in known:
        known |= _known(conf, "train")  # a data set sets what train.py reads, such as loader and patience
    text = OmegaConf.to_yaml(config)
    for given in config:
        key = str(given)
        if key not in known and not re.search(rf"\$\{{[^}}]*\b{re.escape(key)}\b", text):
            raise UserError(_no_such_key(key, known))
    for primary in (name, *includes(conf, name)):
        for group, settings in _read(conf, primary).items():
            if isinstance(settings, dict) and group not in _FREE and OmegaConf.is_dict(config.get(group)):
                for key in map(str, config[group]):
                    if key not in settings:
                        raise UserError(_no_such_key(f"{group}.{key}", [f"{group}.{setting}" for setting in settings]))


@cache
def _read(conf: Path, name: str) -> dict[str, Any]:
    """The content of a primary config."""
    content: dict[str, Any] = read_yaml(conf / f"{name}.yaml")
    return content


def choices(conf: Path, group: str) -> list[str]:
    """The choices of a group."""
    return sorted(path.stem for path in (conf / group).glob("*.yaml"))


def _no_such_key(key: str, known: Iterable[str]) -> str:
    return f"config {key}: there is no such key{did_you_mean(key, known) or '; --help lists all of them'}"


def groups_of(conf: Path, name: str) -> dict[str, str | None]:
    """The groups of a command and their default choices."""
    groups: dict[str, str | None] = {}
    for primary in [*reversed(includes(conf, name)), name]:
        for entry in _read(conf, primary).get("defaults") or []:
            if isinstance(entry, dict):
                ((key, choice),) = entry.items()
                group = str(key).removeprefix("override ").removeprefix("optional ").lstrip("/")
                groups |= {} if group.startswith("hydra/") else {group: choice}
    return groups


def includes(conf: Path, name: str) -> list[str]:
    """The primary configs that a primary config includes, directly or not."""
    entries = _read(conf, name).get("defaults") or []
    direct = [entry for entry in entries if isinstance(entry, str) and entry != "_self_"]
    return [*direct, *(inner for entry in direct for inner in includes(conf, entry))]


def _known(conf: Path, name: str) -> set[str]:
    """Top-level keys of a command: those of its primary configs, and its groups."""
    files = [_read(conf, primary) for primary in (name, *includes(conf, name))]
    return {str(key) for content in files for key in content if key != "defaults"} | set(groups_of(conf, name))


def warn_of_hidden_files(places: Iterable[str], conf: Path) -> None:
    """Warn of a user's config file that has the name of one of ours, which Hydra finds first.

    Args:
        places: the user's entries of Hydra's search path.
        conf: folder of the command's own configs.
    """
    for place in places:
        url = urlparse(place)
        if url.scheme != "file":
            continue
        folder = Path(url.path)
        for config in sorted(conf.rglob("*.yaml")):
            path = folder / config.relative_to(conf)
            if path.exists() and not folder.samefile(conf):
                print(f"warning: {path} is ignored: dlen has a config of the same name; rename it", file=sys.stderr)
