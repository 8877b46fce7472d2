"""Ranker: embedding + backbone + head. The composition and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlen.batch import Batch
from dlen.models.backbones import Backbone, Mixture, MMoEBackbone
from dlen.models.features import Features, FeatureSpec
from dlen.models.heads import Head, IndependentHead, Ranking
from dlen.models.model import Model
from dlen.models.predictions import Predictions
from dlen.nn.embedding import EmbeddingTable
from dlen.schema import Schema

# What makes the parts, each with its settings: functools.partial(EmbeddingTable, dim=8) ...
MakeEmbedding = Callable[[Schema], EmbeddingTable]
MakeBackbone = Callable[..., Backbone]  # of (FeatureSpec, number of tasks)
MakeHead = Callable[..., Head]  # of (Schema, H of the backbone, FeatureSpec)


class Ranker(Model):
    """A network that ranks for several tasks: any backbone under any head.

    Args:
        schema: fields and tasks.
        embedding: makes the embedding table.
        backbone: makes the backbone.
        head: makes the head.
        dropout: of backbone and head; None leaves each as it is made.
        without: names of fields that backbone and head do not see.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        embedding: MakeEmbedding = EmbeddingTable,
        backbone: MakeBackbone = MMoEBackbone,
        head: MakeHead = IndependentHead,
        dropout: float | None = None,
        without: Sequence[str] = (),
    ) -> None:
        super().__init__(schema)
        self.embedding = embedding(schema)
        self.spec = FeatureSpec.of(schema, self.embedding)
        self.without = tuple(without)
        seen = self.spec.without(self.without)
        settings = {} if dropout is None else {"dropout": dropout}
        self.backbone = backbone(seen, len(schema.tasks), **settings)
        self.head = head(schema, self.backbone.out_dim, seen, **settings)

    def forward(self, batch: Batch) -> Predictions:
        """Probabilities of every task for B rows."""
        return self.predict(self.features(batch))

    def features(self, batch: Batch) -> Features:
        """What the embedding makes of B rows."""
        return Features(self.embedding(batch), self.spec)

    def predict(self, features: Features) -> Predictions:
        """Probabilities from features."""
        seen = features.without(self.without)
        predictions: Predictions = self.head(self.backbone(seen), seen)
        return predictions

    @property
    def ranking(self) -> Ranking | None:
        """That of the head."""
        return self.head.ranking

    def mixtures(self) -> list[Mixture]:
        """Those of the backbone."""
        return self.backbone.mixtures()
