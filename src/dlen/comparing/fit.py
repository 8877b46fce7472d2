"""Which models of an experiment its data allow, and widths at which they have the same number of parameters."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence

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

_WIDTHS = ("backbone.expert", "head.hidden")  # keys of a model's config that hold layer sizes
_STEPS = 14  # of the bisection
_MOST_OFF = 0.2  # from the wanted number of parameters, as a share of it
_MULTIPLE = 4  # of a layer's size
MATCHES = (None, "parameters")


def fitted(
    models: Mapping[str, Sequence[str]],
    base: str,
    common: Sequence[str],
    store_of: Callable[[DictConfig], Store],
    *,
    skip_unfit: bool,
    match: str | None,
) -> dict[str, list[str]]:
    """The models that the data allow, with settings that make them comparable.

    Args:
        models: name to settings.
        base: the model whose size the others take.
        common: settings of all.
        store_of: the prepared data of a config.
        skip_unfit: leave a model out, with a line that says why, where its needs are not met.
        match: ``parameters`` scales the width of experts and hidden state network until the number of dense
            parameters is that of the base; None leaves all sizes as they are.

    Raises:
        UserError: a model cannot be built, or ``match`` is unknown.
    """
    if match not in MATCHES:
        raise UserError(f"config experiment.match: {match!r} is neither null nor parameters")
    kept, networks, wanted = {}, set(), 0
    for name, own in models.items():
        config = compose_train([*common, *own])
        try:
            model = _build(config, store_of)
            _check_balancing(config, model)
        except UnfitError as error:
            if not skip_unfit or name == base:
                raise
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        kept[name] = list(own)
        if isinstance(model, Ranker):
            networks.add(name)
        if name == base:
            wanted = dense_parameters(model)
    if match is None:
        return kept
    if base not in networks:
        raise UserError(f"config experiment.match: {base} is no network, so it has no size to match; set it to null")
    for name, own in kept.items():
        if name != base and name in networks:
            kept[name] = [*own, *_widths(name, [*common, *own], store_of, wanted)]
    return kept


def _check_balancing(config: DictConfig, model: Model) -> None:
    """Raise UnfitError where the model has one loss for all tasks and the balancing needs one for each."""
    try:
        check_balanceable(model, build_balancer(config))
    except ValueError as error:
        raise UnfitError(f"config balancing: {error}") from None


def _build(config: DictConfig, store_of: Callable[[DictConfig], Store]) -> Model:
    """The model without its memory."""
    store = store_of(config)
    with torch.device("meta"):
        return build_model(config, store)


def _widths(name: str, overrides: list[str], store_of: Callable[[DictConfig], Store], wanted: int) -> list[str]:
    """Overrides of the layer sizes with which the model comes closest to ``wanted`` dense parameters."""
    model = compose_train(overrides).model
    sizes = {key: OmegaConf.select(model, key) for key in _WIDTHS}
    low, high = 1 / 16, 16.0
    best: tuple[float, list[str]] = (math.inf, [])
    for _ in range(_STEPS):
        factor = (low * high) ** 0.5
        scaled = [f"model.{key}={_scaled(value, factor)}" for key, value in sizes.items() if value is not None]
        found = dense_parameters(_build(compose_train([*overrides, *scaled]), store_of))
        best = min(best, (abs(found - wanted), scaled))
        low, high = (factor, high) if found < wanted else (low, factor)
    if not best[1] or best[0] > _MOST_OFF * wanted:
        raise UserError(f"config experiment.match: {name} cannot have about {wanted:,} dense parameters by its widths")
    print(f"{name}: {' '.join(best[1])} for {wanted:,} dense parameters ({best[0] / wanted:.1%} off)", file=sys.stderr)
    return best[1]


def _scaled(sizes: Sequence[int], factor: float) -> list[int]:
    return [max(round(size * factor / _MULTIPLE), 1) * _MULTIPLE for size in sizes]
