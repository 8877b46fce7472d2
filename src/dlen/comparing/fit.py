"""Select the models of an experiment that the data allow, and match their number of parameters by width."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence

import torch
from omegaconf import DictConfig, OmegaConf

from dlen.data.store import Store
from dlen.errors import UnfitError, UserError
from dlen.models.model import Model
from dlen.models.ranker import Ranker
from dlen.overrides import compose_train
from dlen.training.building import build_balancer, build_model
from dlen.training.module import check_balanceable
from dlen.training.size import dense_parameters
from dlen.training.stores import open_store

_WIDTHS = ("backbone.expert", "head.hidden")  # keys of a model's config that hold layer sizes
_STEPS = 14  # steps of the bisection
_MOST_OFF = 0.2  # largest relative deviation from the wanted number of parameters
_MULTIPLE = 4  # layer sizes are multiples of this


def store_of(config: DictConfig, stores: dict[str, Store]) -> Store:
    """The prepared data of a run, opened once for all runs that share them."""
    nodes = [OmegaConf.to_container(node, resolve=True) for node in (config.data, config.days)]
    data = json.dumps(nodes, sort_keys=True)
    if data not in stores:
        stores[data] = open_store(config)
    return stores[data]


def fitted(
    models: Mapping[str, Sequence[str]],
    base: str,
    common: Sequence[str],
    stores: dict[str, Store],
    *,
    skip_unfit: bool,
    match: str | None,
) -> dict[str, list[str]]:
    """Select the models that the data allow, with settings that make them comparable.

    Args:
        models: settings of each model, by name.
        base: the model whose size the others match.
        stores: prepared data that are already open; those that the models need are added.
        skip_unfit: skip a model whose requirements are not met, and print the reason.
        match: ``parameters`` scales the widths of the experts and the hidden state network until the number of dense
            parameters matches the base; None leaves all sizes unchanged.

    Raises:
        UserError: a model cannot be built.
    """
    kept, networks, base_size = {}, set(), 0
    for name, settings in models.items():
        config = compose_train([*common, *settings])
        try:
            model = _build(config, stores)
            _check_balancing(config, model)
        except UnfitError as error:
            if not skip_unfit or name == base:
                raise
            print(f"{name} is skipped: {error}", file=sys.stderr)
            continue
        kept[name] = list(settings)
        if isinstance(model, Ranker):
            networks.add(name)
        if name == base:
            base_size = dense_parameters(model)
    if match is None:
        return kept
    if base not in networks:
        raise UserError(
            f"config experiment.match: the base model {base} is not a network and has no size to match; set it to null"
        )
    for name, settings in kept.items():
        if name != base and name in networks:
            kept[name] = [*settings, *_widths(name, [*common, *settings], stores, base_size)]
    return kept


def _check_balancing(config: DictConfig, model: Model) -> None:
    """Raise UnfitError if the model has one loss for all tasks but the balancing needs one per task."""
    try:
        check_balanceable(model, build_balancer(config))
    except ValueError as error:
        raise UnfitError(f"config balancing: {error}") from None


def _build(config: DictConfig, stores: dict[str, Store]) -> Model:
    """Build the model on the meta device, without allocating memory."""
    store = store_of(config, stores)
    with torch.device("meta"):
        return build_model(config, store)


def _widths(name: str, overrides: list[str], stores: dict[str, Store], wanted: int) -> list[str]:
    """Overrides of the layer sizes that bring the model closest to ``wanted`` dense parameters."""
    model = compose_train(overrides).model
    sizes = {key: OmegaConf.select(model, key) for key in _WIDTHS}
    low, high = 1 / 16, 16.0
    best: tuple[float, list[str]] = (math.inf, [])
    for _ in range(_STEPS):
        factor = (low * high) ** 0.5
        scaled = [f"model.{key}={_scaled(value, factor)}" for key, value in sizes.items() if value is not None]
        size = dense_parameters(_build(compose_train([*overrides, *scaled]), stores))
        best = min(best, (abs(size - wanted), scaled))
        low, high = (factor, high) if size < wanted else (low, factor)
    if not best[1] or best[0] > _MOST_OFF * wanted:
        raise UserError(
            f"config experiment.match: no widths give {name} about {wanted:,} dense parameters; set it to null"
        )
    print(f"{name}: {' '.join(best[1])} for {wanted:,} dense parameters ({best[0] / wanted:.1%} off)", file=sys.stderr)
    return best[1]


def _scaled(sizes: Sequence[int], factor: float) -> list[int]:
    return [max(round(size * factor / _MULTIPLE), 1) * _MULTIPLE for size in sizes]
