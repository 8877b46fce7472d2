"""Ranker: the composition of embedding, backbone and head."""

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

# Factories of the parts, such as functools.partial(EmbeddingTable, dim=8)
MakeEmbedding = Callable[[Schema], EmbeddingTable]
MakeBackbone = Callable[..., Backbone]  # called with (FeatureSpec, number of tasks)
MakeHead = Callable[..., Head]  # called with (Schema, H of the backbone, FeatureSpec)


class Ranker(Model):
    """A multi-task ranking network: any embedding, backbone and head.

    Args:
        dropout: dropout probability of backbone and head; None for each factory's own.
        without: names of fields that are hidden from backbone and head.
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
        for name, make in (("embedding", embedding), ("backbone", backbone), ("head", head)):
            if not callable(make):
                raise ValueError(f"{name} must be callable, got {make!r}; choose one with model/{name}=NAME")
        self.embedding = embedding(schema)
        self.spec = FeatureSpec.of(schema, self.embedding)
        self.without = tuple(without)
        seen = self.spec.without(self.without)
        settings = {} if dropout is None else {"dropout": dropout}
        self.backbone = backbone(seen, len(schema.tasks), **settings)
        self.head = head(schema, self.backbone.out_dim, seen, **settings)

    def forward(self, batch: Batch) -> Predictions:
        """Predict the probability of every task for B rows."""
        return self.predict(self.features(batch))

    def features(self, batch: Batch) -> Features:
        """Embed B rows."""
        return Features(self.embedding(batch), self.spec)

    def predict(self, features: Features) -> Predictions:
        """Predict from features."""
        seen = features.without(self.without)
        predictions: Predictions = self.head(self.backbone(seen), seen)
        return predictions

    @property
    def ranking(self) -> Ranking | None:
        """The head's ranking."""
        return self.head.ranking

    def mixtures(self) -> list[Mixture]:
        """The backbone's mixtures."""
        return self.backbone.mixtures()
