"""Overrides of ``train.py``: writing them, passing them on from other commands, and composing a config from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from dlen.renamed import present_overrides

SEARCH_PATH = "hydra.searchpath"


def written(value: Any, *, quote: bool = False) -> str:
    """Write a plain value in Hydra's override grammar.

    Args:
        value: plain YAML value.
        quote: quote strings; otherwise they must already be in that grammar.
    """
    if isinstance(value, list):
        return "[" + ",".join(written(item, quote=quote) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(item, quote=quote)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return QuotedString(value, Quote.single).with_quotes() if quote and isinstance(value, str) else str(value)


def leaves(content: Mapping[str, Any], separator: str = ".", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of nested mappings under its joined keys. An empty mapping counts as a value."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, separator, f"{prefix}{key}{separator}")
        else:
            yield f"{prefix}{key}", value


def overrides_for_train(command_keys: Sequence[str], settings: Sequence[str]) -> list[str]:
    """The overrides of ``train.py`` for the runs of another command.

    Args:
        command_keys: top-level keys of that command's config that ``train.py`` does not have.
        settings: overrides that the command sets for all of its runs; its command line follows and wins.
    """
    hydra = HydraConfig.get()
    given = [o for o in hydra.overrides.task if o.lstrip("+~").split("=")[0].split(".")[0] not in command_keys]
    folders = user_search_path()
    search = [f"{SEARCH_PATH}={written(folders, quote=True)}"] if folders else []
    return [*search, f"data={hydra.runtime.choices['data']}", *settings, *given]


def conf_of_this_command() -> str:
    """The config folder of the running command, for the processes that it starts."""
    (main,) = [source.path for source in HydraConfig.get().runtime.config_sources if source.provider == "main"]
    return str(main)


def user_search_path() -> list[str]:
    """The user's entries of Hydra's search path, as absolute URLs: ``--config-dir`` and ``hydra.searchpath``.

    Installed packages that bring configs add theirs in every process by themselves.
    """
    sources = [
        s for s in HydraConfig.get().runtime.config_sources if s.provider == "command-line" or SEARCH_PATH in s.provider
    ]
    return [f"{s.schema}://{Path(s.path).absolute() if s.schema == 'file' else s.path}" for s in sources]


def register_resolvers() -> None:
    """Register the resolvers that the configs use in addition to OmegaConf's own."""
    OmegaConf.register_new_resolver("stem", lambda path: Path(str(path)).stem, replace=True)


def compose_train(overrides: Sequence[str]) -> DictConfig:
    """Compose the resolved config of ``train.py`` outside its command. Hydra must be initialised."""
    return _resolved(_composed(overrides))


def compose_seeds(overrides: Sequence[str], seeds: Sequence[int]) -> Iterator[DictConfig]:
    """Yield what :func:`compose_train` returns for each seed, composed once: Hydra takes a quarter of a second."""
    composed = _composed([*overrides, f"seed={seeds[0]}"])
    for seed in seeds:
        composed.seed = seed
        yield _resolved(composed)


def _composed(overrides: Sequence[str]) -> DictConfig:
    register_resolvers()
    return compose("train", present_overrides(overrides), return_hydra_config=True)


def _resolved(composed: DictConfig) -> DictConfig:
    """The values of a composed config, without Hydra's own part."""
    state, before = HydraConfig.instance(), HydraConfig.instance().cfg
    state.set_config(composed)  # for interpolations into Hydra's own part, which is removed below
    without_hydra = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    config = OmegaConf.create(OmegaConf.to_container(without_hydra, resolve=True))
    state.cfg = before
    assert isinstance(config, DictConfig)
    return config
