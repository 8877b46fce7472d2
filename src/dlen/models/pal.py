"""PAL: position-bias aware learning, a network for the position that is left out when the model ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dlen.errors import UnmetNeedError
from dlen.models.backbones import EXPERT, MMoEBackbone
from dlen.models.heads import TOWER, IndependentHead, Towers
from dlen.models.predictions import Predictions
from dlen.models.ranker import Ranker
from dlen.nn.embedding import EmbeddingTable
from dlen.nn.logspace import log1mexp
from dlen.nn.mlp import MLP
from dlen.schema import Kind, Schema

_MOSTLY_SEEN = 2.0  # initial log-odds of P(seen)


class PAL(Ranker):
    """Position-bias aware learning (Guo et al. 2019) over a mixture of experts.

        P(t | x, position) = P(seen | position) * P(t | x, seen)          equation (2)

    Training fits the product. In evaluation mode, and so in validation, test and prediction, the second factor alone
    is given: what the item deserves wherever it stands. A task that is observed under another has no factor of its
    own, since whoever clicked has seen the item.

    Args:
        schema: fields and tasks, with a position.
        embedding_dim: length of each id's vector.
        num_experts: of the mixture that predicts P(t | x, seen).
        expert: layers of each expert.
        tower: hidden layers of each tower.
        position_network: hidden layers from the position's vector to P(seen).
        dropout: everywhere but in the embeddings and the position's network.

    Raises:
        ValueError: the schema names no position, or its position is not a single id.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_dim: int = 16,
        num_experts: int = 5,
        expert: Sequence[int] = EXPERT,
        tower: Sequence[int] = TOWER,
        position_network: Sequence[int] = (16,),
        dropout: float = 0.0,
    ) -> None:
        names = [f.name for f in schema.of_kind(Kind.ID)]
        if schema.position not in names:
            raise UnmetNeedError("pal needs a position: an id field that the schema names as `position`")
        embedding = EmbeddingTable(schema, embedding_dim)
        start = names.index(schema.position) * embedding_dim
        rest = embedding.out_dim - embedding_dim
        backbone = MMoEBackbone(rest, len(schema.tasks), num_experts=num_experts, expert=expert, dropout=dropout)
        super().__init__(
            schema, embedding, backbone, IndependentHead(schema, expert[-1], rest, tower=tower, dropout=dropout)
        )
        self.place = slice(start, start + embedding_dim)
        self.first = [t.observed_where is None for t in schema.tasks]
        self.position_network = MLP(embedding_dim, position_network)
        biases = torch.full((sum(self.first), 1), _MOSTLY_SEEN)
        self.seen = Towers(biases, self.position_network.out_dim, (), 0.0)

    def predict(self, x: Tensor) -> Predictions:
        """Probabilities at the logged positions in training, and of items that were seen in evaluation."""
        rest = torch.cat([x[:, : self.place.start], x[:, self.place.stop :]], 1)
        predictions: Predictions = self.head(self.backbone(rest), rest)
        if not self.training:
            return predictions
        log_p = predictions.log_p + self.log_seen(x)
        return Predictions(log_p, log1mexp(log_p), log_p)

    def log_seen(self, x: Tensor) -> Tensor:
        """(B, D) input -> (B, T) log P(seen | position); 0 for a task that is observed under another."""
        position = self.position_network(x[:, self.place])
        seen = F.logsigmoid(self.seen(position.expand(sum(self.first), *position.shape))[..., 0]).unbind(1)
        columns, everybody = iter(seen), torch.zeros_like(seen[0])
        return torch.stack([next(columns) if first else everybody for first in self.first], 1)
