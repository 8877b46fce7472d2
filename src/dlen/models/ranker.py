"""Ranker: the composition of embedding, interaction, backbone and head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from dlen.batch import Batch
from dlen.models.backbones import Backbone, Mixture, MMoEBackbone
from dlen.models.features import Features, FeatureSpec
from dlen.models.heads import Head, IndependentHead, Ranking
from dlen.models.interactions import Interaction, MakeInteraction, make_interaction
from dlen.models.model import Model
from dlen.models.predictions import Predictions
from dlen.nn.embedding import EmbeddingTable
from dlen.schema import Schema

# Factories of the parts, such as functools.partial(EmbeddingTable, dim=8)
MakeEmbedding = Callable[[Schema], EmbeddingTable]
MakeBackbone = Callable[..., Backbone]  # called with (FeatureSpec, number of tasks)
MakeHead = Callable[..., Head]  # called with (Schema, H of the backbone, FeatureSpec)


class Ranker(Model):
    """A multi-task ranking network: any embedding, interaction, backbone and head.

    Args:
        interaction: factory of a layer between the embedding and both backbone and head; None for none.
        dropout: dropout probability of backbone and head; None for each factory's own.
        without: names of fields that are hidden from interaction, backbone and head.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        embedding: MakeEmbedding = EmbeddingTable,
        interaction: MakeInteraction | None = None,
        backbone: MakeBackbone = MMoEBackbone,
        head: MakeHead = IndependentHead,
        dropout: float | None = None,
        without: Sequence[str] = (),
    ) -> None:
        super().__init__(schema)
        parts = {"embedding": embedding, "interaction": interaction, "backbone": backbone, "head": head}
        for name, make in parts.items():
            if not callable(make) and (name, make) != ("interaction", None):
                raise ValueError(f"{name} must be callable, got {make!r}; choose one with model/{name}=NAME")
        self.embedding = embedding(schema)
        self.spec = FeatureSpec.of(schema, self.embedding)
        self.without = tuple(without)
        seen = self.spec.without(self.without)
        self.interaction: Interaction | None = None
        if interaction is not None:
            self.interaction = make_interaction(interaction, seen)
            seen = self.interaction.out_spec
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
        seen = self.inputs(features)
        predictions: Predictions = self.head(self.backbone(seen), seen)
        return predictions

    def inputs(self, features: Features) -> Features:
        """What backbone and head receive: the interaction of the fields that are not hidden."""
        seen = features.without(self.without)
        return seen if self.interaction is None else self.interaction(seen)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters of interaction and backbone that the outputs of all tasks depend on."""
        before = [] if self.interaction is None else self.interaction.shared_parameters()
        return [*before, *self.backbone.shared_parameters()]

    @property
    def ranking(self) -> Ranking | None:
        """The head's ranking."""
        return self.head.ranking

    def mixtures(self) -> list[Mixture]:
        """The backbone's mixtures."""
        return self.backbone.mixtures()
