"""Maps config keys of version 0.1.0 to their current names, on command lines, in studies and in run folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_BACKBONE = ("num_experts", "shared_experts", "task_experts", "levels", "expert", "heads", "head_dim")
_HEAD = (
    *("tower", "match", "calibration", "alpha", "bound", "prediction", "likelihood", "hidden", "detach_bound"),
    *("initial_up", "initial_leak"),
)
KEYS = {
    "model.embedding_dim": "model.embedding.dim",
    "model.first_order": "model.embedding.first_order",
    **{f"model.{name}": f"model.backbone.{name}" for name in _BACKBONE},
    **{f"model.{name}": f"model.head.{name}" for name in _HEAD},
}
VARIANTS = {"default": "latent", "match": "latent_match", "paper": "latent_paper"}  # model/variant -> model/head

_MODELS = {  # class in 0.1.0 -> backbone and head
    "SharedBottom": ("SharedBottomBackbone", "heads.IndependentHead"),
    "MoE": ("MoEBackbone", "heads.IndependentHead"),
    "MMoE": ("MMoEBackbone", "heads.IndependentHead"),
    "CGC": ("CGCBackbone", "heads.IndependentHead"),
    "PLE": ("PLEBackbone", "heads.IndependentHead"),
    "SingleTask": ("TaskNetworksBackbone", "heads.IndependentHead"),
    "MRAN": ("MRANBackbone", "heads.IndependentHead"),
    "ESMM": ("TaskNetworksBackbone", "funnels.ESMMHead"),
    "AITM": ("TaskNetworksBackbone", "funnels.AITMHead"),
    "PAL": ("MMoEBackbone", "heads.IndependentHead"),
    "DLEN": (None, "dlen.LatentHead"),
}


def present_key(key: str) -> str:
    """The current name of a key, which may address a part of a setting, such as ``model.alpha.click``."""
    name, _, index = key.partition("[")
    parts = name.split(".")
    renamed = KEYS.get(".".join(parts[:2]))
    if renamed is None:
        return key
    return ".".join([renamed, *parts[2:]]) + (f"[{index}" if index else "")


def present_override(override: str) -> str:
    """A Hydra override with the current name of its key, or of the group ``model/variant``."""
    match = re.fullmatch(r"([+~]*)([^=]*)(=.*)?", override, re.DOTALL)
    if match is None:
        return override
    prefix, key, value = match[1], match[2], match[3] or ""
    if key == "model/variant":
        choices = [VARIANTS.get(choice.strip(), choice) for choice in value.removeprefix("=").split(",")]
        return f"{prefix}model/head={','.join(choices)}"
    return f"{prefix}{present_key(key)}{value}"


def present_overrides(overrides: Iterable[str]) -> list[str]:
    """Apply :func:`present_override` to each override."""
    return [present_override(override) for override in overrides]


def present_keys(point: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their current names."""
    return {present_key(str(key)): value for key, value in point.items()}


def present_space(space: Mapping[str, Any]) -> dict[str, Any]:
    """A study's search space and its conditions, by current names."""
    renamed = {}
    for key, choices in present_keys(space).items():
        if isinstance(choices, Mapping) and isinstance(choices.get("when"), Mapping):
            choices = {**choices, "when": present_keys(choices["when"])}
        renamed[key] = choices
    return renamed


def present_model(model: dict[str, Any]) -> dict[str, Any]:
    """The group ``model`` of a run's config.yaml, with networks of version 0.1.0 split into their current parts."""
    name = str(model.get("_target_", "")).removeprefix("dlen.models.")
    if name not in _MODELS or model.keys() & {"embedding", "head"}:
        return model
    backbone, head = _MODELS[name]
    backbone_settings = model.get("backbone") or {}
    if not isinstance(backbone_settings, dict):  # of an untrusted folder; checked by whoever reads the config
        return model
    parts: dict[str, dict[str, Any]] = {
        "embedding": {
            "_target_": "dlen.nn.embedding.EmbeddingTable",
            "_partial_": True,
            "first_order": False,  # not available in 0.1.0
            "private": name == "SingleTask",
        },
        "backbone": {"_target_": f"dlen.models.backbones.{backbone}", "_partial_": True, **backbone_settings},
        "head": {"_target_": f"dlen.models.{head}", "_partial_": True},
    }
    others = {key: value for key, value in model.items() if key not in ("_target_", "dropout", *parts)}
    for key in [key for key in others if f"model.{key}" in KEYS]:
        _, part, setting = KEYS[f"model.{key}"].split(".")
        parts[part][setting] = others.pop(key)
    if "dropout" in model:
        parts["head"]["dropout"] = model["dropout"]
        parts["backbone"].setdefault("dropout", model["dropout"])
    return {"_target_": f"dlen.models.{'PositionRanker' if name == 'PAL' else 'Ranker'}", **parts, **others}
