"""Diagnostics of a test pass as plain values for reports: curves, hidden state, gates, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlen.data.store import Store
from dlen.metrics.hidden import NEGATIVES, PATTERNS
from dlen.models.backbones import AttentionBackbone
from dlen.models.ranker import Ranker
from dlen.training.gates import GateFigures
from dlen.training.latent import HiddenFigures
from dlen.training.measures import Figures
from dlen.training.module import RankingModule

AttentionMap = tuple[NDArray[np.float64], Sequence[str], Sequence[str]]
_SHOWN = 4096  # rows that attention maps are averaged over
_DIGITS = 5  # finer than a plot can show


def diagnostics(
    figures: Figures, gates: Sequence[GateFigures] = (), attention: Mapping[str, AttentionMap] | None = None
) -> dict[str, Any]:
    """Build the content of a run's ``diagnostics_SPLIT.json``.

    Args:
        attention: by title: weights, names of their rows, and names of their columns.

    Returns:
        ``roc`` and ``reliability`` by target; ``hidden``, ``gates`` and ``attention`` if the model has them.
    """
    content: dict[str, Any] = {
        "roc": {name: _rounded(c.roc) for name, c in figures.curves.items() if c.roc.numel()},
        "reliability": {
            name: _reliability(c.reliability)
            for name, c in figures.curves.items()
            if c.reliability is not None and float(c.reliability[0].sum()) > 0
        },
    }
    if figures.hidden is not None:
        content["hidden"] = _hidden(figures.hidden)
    if gates:
        content["gates"] = [
            {"level": g.level, "owner": g.owner, "experts": g.experts, "weights": _rounded(g.weights)} for g in gates
        ]
    if attention:
        content["attention"] = {
            title: {"weights": np.round(weights, _DIGITS).tolist(), "lines": list(lines), "columns": list(columns)}
            for title, (weights, lines, columns) in attention.items()
        }
    return content


def _reliability(sums: Tensor) -> dict[str, Any]:
    """Mean probability and positive rate of each non-empty group."""
    rows, probabilities, labels = sums[:, sums[0] > 0]
    return {
        "rows": rows.long().tolist(),
        "predicted": _rounded(probabilities / rows, 7),
        "observed": _rounded(labels / rows, 7),
    }


def _hidden(hidden: HiddenFigures) -> dict[str, Any]:
    content: dict[str, Any] = {"tasks": hidden.tasks, "negatives": list(NEGATIVES), "kinds": _rounded(hidden.kinds)}
    content["counts"] = dict(zip(PATTERNS, hidden.counts.long().tolist(), strict=True))
    if hidden.true_kinds is not None:
        content["true_kinds"] = _rounded(hidden.true_kinds)
    content["pairs"] = [
        {"tasks": list(p.tasks), "lift": [round(v, _DIGITS) for v in (p.low, p.lift, p.high)]} for p in hidden.pairs
    ]
    return content


def _rounded(values: Tensor, digits: int = _DIGITS) -> Any:
    """Convert to nested lists of rounded values; nan becomes null, because JSON has no nan."""
    rounded = np.round(values.detach().double().cpu().numpy(), digits)
    return np.where(np.isnan(rounded), None, rounded).tolist()  # type: ignore[call-overload]


def attention_maps(module: RankingModule, store: Store, split: str) -> dict[str, AttentionMap]:
    """Attention maps of a backbone with attention, averaged over the first rows of a split."""
    model = module.model
    if not isinstance(model, Ranker) or not isinstance(model.backbone, AttentionBackbone):
        return {}
    rows, tasks = store.split(split), store.schema.task_names
    batch = rows.batch(torch.arange(min(len(rows), _SHOWN))).to(module.device)
    with torch.no_grad():
        model.eval()
        features = model.inputs(model.features(batch))
        attention = model.backbone.attention(features)
    fields = [*features.spec.fields, *features.spec.numbers]
    maps = {
        "field to fields": (attention.fields.mean((0, 1)), fields, fields),
        "task to fields": (attention.tasks.mean((0, 1)), tasks, fields),
        "task to tasks": (attention.transfer.mean(0), tasks, tasks),
    }
    return {title: (mean.double().cpu().numpy(), lines, columns) for title, (mean, lines, columns) in maps.items()}
