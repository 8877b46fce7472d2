"""Model size: parameters, and floating point operations per row."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from dlen.models.features import Features
from dlen.models.model import Model
from dlen.models.ranker import Ranker
from dlen.nn.embedding import EmbeddingTable
from dlen.nn.mixed import MixedTables
from dlen.schema import Kind


def dense_parameters(model: Model) -> int:
    """Number of parameters outside the embedding tables."""
    tables = _embedding_parameters(model) if isinstance(model, Ranker) else 0
    return sum(p.numel() for p in model.parameters()) - tables


def _embedding_parameters(model: Ranker) -> int:
    return sum(m.weight.numel() for m in model.embedding.modules() if isinstance(m, EmbeddingTable))


def size_figures(model: Model) -> dict[str, float]:
    """Size of a model, under the keys of ``metrics.json``.

    Returns:
        ``model/dense_parameters``, ``model/embedding_parameters``, and ``model/flops_per_row``: multiplications and
        additions in the matrix products of a forward pass, without those of sequences, whose lengths differ. Training
        takes three times as many. Empty for a baseline, whose size is known only after the fit.
    """
    if not isinstance(model, Ranker):
        return {}
    training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        x = torch.zeros(1, model.spec.width + model.spec.first_order)  # embedding lookups have no FLOPs
        model.eval().predict(Features(x, model.spec))
        if model.vectors is not None:
            model.vectors([torch.zeros(1, field.size) for field in model.schema.of_kind(Kind.VECTOR)])
    model.train(training)
    projections = model.embedding.flops if isinstance(model.embedding, MixedTables) else 0
    return {
        "model/dense_parameters": dense_parameters(model),
        "model/embedding_parameters": _embedding_parameters(model),
        "model/flops_per_row": float(counter.get_total_flops() + projections),
    }
