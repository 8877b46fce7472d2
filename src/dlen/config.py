"""From config nodes to objects, with errors that name the config key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from dlen.data.prepare import Source, prepare
from dlen.data.store import Store
from dlen.errors import UnfitError, UnmetNeedError, UserError


def build(node: DictConfig, key: str, *args: Any) -> Any:
    """Instantiate a config node; what its class refuses becomes one line that names the config key.

    Raises:
        UserError: an argument is unknown, missing or has a wrong value.
    """
    try:
        return hydra.utils.instantiate(node, *args, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException):
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, UnmetNeedError):
            raise UnfitError(f"config {key}: {cause}") from None
        if isinstance(cause, ValueError | TypeError):
            raise UserError(f"config {key}: {cause}") from None
        raise


def open_store(config: DictConfig) -> Store:
    """The prepared store of a config's data, prepared now if it is not there."""
    source: Source = build(config.data, "data")
    return prepare(source, Path(config.data_dir))


def said_overrides(own: Sequence[str], settings: Sequence[str]) -> list[str]:
    """What ``train.py`` has to be told so that a run is as another command was asked for.

    Args:
        own: top keys of that command's config that ``train.py`` does not know.
        settings: what the command sets for all of its runs; its command line comes later and wins.
    """
    hydra = HydraConfig.get()
    said = [o for o in hydra.overrides.task if o.lstrip("+~").split("=")[0].split(".")[0] not in own]
    return [f"data={hydra.runtime.choices['data']}", *settings, *said]


def code_fingerprint() -> str:
    """A hash of the package's source, to tell figures of one version of the code from those of another."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
