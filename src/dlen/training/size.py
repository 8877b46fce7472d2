"""How large a model is: parameters, and floating point operations for each row."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from dlen.models.ranker import Ranker


def dense_parameters(model: Ranker) -> int:
    """Parameters outside the embedding table."""
    return sum(p.numel() for p in model.parameters()) - model.embedding.weight.numel()


def size_figures(model: Ranker) -> dict[str, float]:
    """Keys of ``metrics.json``.

    Args:
        model: any ranker.

    Returns:
        ``model/dense_parameters``, ``model/embedding_parameters``, and ``model/flops_per_row``: multiplications and
        additions in the matrix products of a forward pass. Training takes three times as many.
    """
    training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        width = model.embedding.out_dim + model.embedding.first_order
        model.eval().predict(torch.zeros(1, width))  # looking up vectors multiplies nothing
    model.train(training)
    return {
        "model/dense_parameters": dense_parameters(model),
        "model/embedding_parameters": model.embedding.weight.numel(),
        "model/flops_per_row": float(counter.get_total_flops()),
    }
