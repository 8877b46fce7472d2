"""PAL: position-bias aware learning, with a position network that is used in training only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dlen.errors import UnmetNeedError
from dlen.models.features import Features
from dlen.models.heads import IndependentHead, Towers, refuse_regression
from dlen.models.predictions import Predictions
from dlen.models.ranker import Ranker
from dlen.nn.logspace import log1mexp
from dlen.nn.mlp import MLP
from dlen.schema import Kind, Schema

_MOSTLY_SEEN = 2.0  # initial log-odds of P(seen)


class PositionRanker(Ranker):
    """Position-bias aware learning (Guo et al. 2019) over any backbone and head.

        P(t | x, position) = P(seen | position) * P(t | x, seen)          equation (2)

    Training fits the product. In evaluation mode (validation, test and prediction) the model returns only the second
    factor, which does not depend on the position. A task observed under another has no position factor: a user who
    clicked has seen the item.

    Args:
        schema: fields and tasks of the data, with a position field.
        position_network: hidden layer sizes of the network from the position's embedding to P(seen).
        parts: the parts of P(t | x, seen), as for :class:`Ranker`. First-order terms are not allowed: they would leak
            the position into the ranking.

    Raises:
        ValueError: the schema names no position field, the position is not a single id, or the table has first-order
            terms.
    """

    def __init__(self, schema: Schema, *, position_network: Sequence[int] = (16,), **parts: Any) -> None:
        if schema.position not in [f.name for f in schema.of_kind(Kind.ID)]:
            raise UnmetNeedError("pal needs a position: name an id field as `position` in the schema")
        refuse_regression(schema, "pal")
        position = str(schema.position)
        super().__init__(schema, without=[position], **parts)
        if self.spec.first_order:
            raise ValueError("embedding.first_order must be false: pal ranks without the position")
        if not isinstance(self.head, IndependentHead):
            raise ValueError(
                f"pal needs an independent head, got {type(self.head).__name__}; set model/head=independent"
            )
        self.position = position
        self.first = [t.observed_where is None for t in schema.tasks]
        self.position_network = MLP(self.spec.dim, position_network)
        biases = torch.full((sum(self.first), 1), _MOSTLY_SEEN)
        self.seen = Towers(biases, self.position_network.out_dim, (), 0.0)

    def predict(self, features: Features) -> Predictions:
        """Predict for the logged positions in training mode, and for seen items in evaluation mode."""
        predictions = super().predict(features)
        if not self.training:
            return predictions
        log_p = predictions.log_p + self.log_seen(features)
        return Predictions(log_p, log1mexp(log_p), log_p)

    def log_seen(self, features: Features) -> Tensor:
        """(B, T) log P(seen | position); 0 for tasks observed under another task."""
        position = self.position_network(features.field(self.position))
        seen = F.logsigmoid(self.seen(position.expand(sum(self.first), *position.shape))[..., 0]).unbind(1)
        columns, certain = iter(seen), torch.zeros_like(seen[0])
        return torch.stack([next(columns) if first else certain for first in self.first], 1)
