"""Overrides of ``train.py``: their grammar, those of another command's line, and the config that they make."""

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


def written(value: Any, *, quote: bool = False) -> str:
    """A plain value in the grammar of Hydra's overrides.

    Args:
        value: of YAML.
        quote: take a string as text; else it is in that grammar already.
    """
    if isinstance(value, list):
        return "[" + ",".join(written(item, quote=quote) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(item, quote=quote)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return QuotedString(value, Quote.single).with_quotes() if quote and isinstance(value, str) else str(value)


def leaves(content: Mapping[str, Any], separator: str = ".", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings under its joined keys; an empty mapping is a value."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, separator, f"{prefix}{key}{separator}")
        else:
            yield f"{prefix}{key}", value


def said_overrides(own: Sequence[str], settings: Sequence[str]) -> list[str]:
    """What ``train.py`` has to be told so that a run is as another command was asked for.

    Args:
        own: top keys of that command's config that ``train.py`` does not know.
        settings: what the command sets for all of its runs; its command line comes later and wins.
    """
    hydra = HydraConfig.get()
    said = [o for o in hydra.overrides.task if o.lstrip("+~").split("=")[0].split(".")[0] not in own]
    return [f"data={hydra.runtime.choices['data']}", *settings, *said]


def conf_of_this_command() -> str:
    """The folder of the configs that the running command was composed from, for the processes that it starts."""
    found = [source.path for source in HydraConfig.get().runtime.config_sources if source.provider == "main"]
    return str(found[0])


def register_resolvers() -> None:
    """What the configs' interpolations use beside OmegaConf's own."""
    OmegaConf.register_new_resolver("stem", lambda path: Path(str(path)).stem, replace=True)


def compose_train(overrides: Sequence[str]) -> DictConfig:
    """The resolved config of ``train.py``, outside of its command; Hydra must have been initialised."""
    register_resolvers()
    composed = compose("train", present_overrides(overrides), return_hydra_config=True)
    state, before = HydraConfig.instance(), HydraConfig.instance().cfg
    state.set_config(composed)  # for the interpolations of Hydra's own part, which goes
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    config = OmegaConf.create(OmegaConf.to_container(own, resolve=True))
    state.cfg = before
    assert isinstance(config, DictConfig)
    return config
