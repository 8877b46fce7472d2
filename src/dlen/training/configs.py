"""Builds objects from config nodes, with errors that name the config key."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

import dlen
from dlen.errors import UnfitError, UnmetNeedError, UserError, one_line
from dlen.files import read_yaml
from dlen.renamed import present_model
from dlen.settings import PREPARING
from dlen.training.settings import RunSettings, TrainSettings
from dlen.trust import check_config, packages
from dlen.valid import check_group

Part = TypeVar("Part")
PACKAGE = Path(dlen.__file__).parent
_PLACES = ("data", "data_dir", "data_name", "runs_dir", "run_dir", "ckpt", "rerun", "base_run", "logger", "model_name")
_NOT_HASHED = (*_PLACES, "trust", *PREPARING)
_INSTANTIATED = ("data", "model", "balancing", "optimizer")  # groups that are instantiated


def build(node: DictConfig, key: str, *args: Any) -> Any:
    """Instantiate a config node, and turn errors of its class into one line that names the config key.

    Raises:
        UserError: the node names no class, or an argument is unknown, missing or has an invalid value.
    """
    if OmegaConf.is_dict(node) and "_target_" not in node:
        raise UserError(f"config {key}: names no class in _target_; choose one with {key}=NAME")
    return build_inner(node, key, *args)


def build_inner(node: DictConfig, key: str, *args: Any) -> Any:
    """Like :func:`build`, of a group that need not name a class itself: it becomes a dict with what is built inside it.

    Raises:
        UserError: an argument is unknown, missing or has an invalid value.
    """
    if not OmegaConf.is_dict(node):
        raise UserError(f"config {key}: {node!r} is not a group of settings")
    try:
        return hydra.utils.instantiate(node, *args, _convert_="all")
    except InstantiationException as error:
        located = re.search(r"Error locating target '([^']*)'", str(error))
        if located:
            raise UserError(_not_importable(key, located[1], error)) from None
        cause = error.__cause__
        while isinstance(cause, InstantiationException):
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        message = f"config {key}: {one_line(cause)}"
        if isinstance(cause, UnmetNeedError):
            raise UnfitError(message) from None
        if isinstance(cause, ValueError | TypeError):
            raise UserError(message) from None
        raise


def build_part(
    node: Any,
    key: str,
    base: type[Part],
    leave_out: Sequence[str] = (),
    replaced: Mapping[str, Any] = MappingProxyType({}),
) -> Part:
    """Build an entry that the user can replace by a class of their own, such as a callback.

    Args:
        node: config node of the entry.
        key: its config key.
        base: class that the object must be an instance of.
        leave_out: settings that are not arguments of the class.
        replaced: arguments that replace those of the config.

    Raises:
        UserError: the entry names no class, or one of another kind, or has an invalid setting.
    """
    if not OmegaConf.is_dict(node) or "_target_" not in node:
        raise UserError(f"config {key}._target_: must be set to a class, as in the files of conf/{key.split('.')[0]}")
    settings: Any = OmegaConf.to_container(node, resolve=True)
    arguments = {name: value for name, value in settings.items() if name not in leave_out}
    part = build(OmegaConf.create({**arguments, **replaced}), key)
    if not isinstance(part, base):
        raise UserError(f"config {key}: {node['_target_']} is not a {base.__module__}.{base.__qualname__}")
    return part


def _not_importable(key: str, target: str, error: BaseException) -> str:
    """Why a class cannot be imported, in one line with a remedy."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = one_line(error)[:200]
    package = target.split(".")[0]
    hint = f"; set PYTHONPATH to the folder of {package}, or install it" if "No module named" in reason else ""
    return f"config {key}: {target} cannot be imported ({reason}){hint}"


def read_config(path: Path, trust: Sequence[str], leave_out: Sequence[str] = ()) -> DictConfig:
    """Read the resolved config of a run from a file that may be untrusted.

    Args:
        trust: the config key ``trust``: packages, besides dlen, whose classes the config may name.
        leave_out: groups that are not read, as nothing will be built from them.

    Raises:
        UserError: the file is not the config of a run, or names other code.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not the config of a run")
    for key in leave_out:
        content.pop(key, None)
    if isinstance(content.get("model"), dict):
        content["model"] = present_model(content["model"])
    check_config(content, packages(trust), path)
    config: DictConfig = OmegaConf.create(content)
    check_group(config, RunSettings, start=f"{path}: ")
    check_group(config, TrainSettings, start=f"{path}: ", partial=True)
    for key in _INSTANTIATED:
        if not (content.get(key) or {}).get("_target_"):
            raise UserError(f"{path}: config {key}._target_: is missing, so this is not the config of a run")
    return config


def code_fingerprint(package: Path = PACKAGE) -> str:
    """A hash of the package's source, to distinguish the metrics of different code versions."""
    sha = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        sha.update(path.read_bytes())
    return sha.hexdigest()[:16]


def settings_of(config: DictConfig) -> dict[str, Any]:
    """The settings that a run's metrics depend on: the resolved config without paths, names and ``trust``."""
    return {key: value for key, value in plain_values(config).items() if key not in _NOT_HASHED}


def plain_values(config: DictConfig) -> dict[str, Any]:
    """Convert a config to plain values."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def config_hash(config: DictConfig) -> str:
    """A hash of :func:`settings_of`: runs with the same hash, code and data can differ only by machine."""
    return digest(settings_of(config))


def digest(content: Any) -> str:
    """A hash of plain values, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
