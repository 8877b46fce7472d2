"""Ranker: the composition of embedding, sequence pooling, projected vectors, interaction, backbone and head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dlen.batch import Batch
from dlen.models.backbones import Backbone, Mixture, MMoEBackbone
from dlen.models.features import Features, FeatureSpec
from dlen.models.heads import Head, IndependentHead, Ranking
from dlen.models.interactions import Interaction, MakeInteraction, make_interaction
from dlen.models.model import Model
from dlen.models.predictions import Predictions
from dlen.nn.embedding import EmbeddingTable
from dlen.nn.mixed import MakeEmbedding, make_tables
from dlen.nn.sequences import Layout, Ragged, SequencePool, SequencePools, TargetAttention
from dlen.nn.vectors import VectorProjections
from dlen.schema import Kind, Schema

# Factories of the parts, such as functools.partial(MMoEBackbone, dropout=0.1)
MakeBackbone = Callable[..., Backbone]  # called with (FeatureSpec, number of tasks)
MakeHead = Callable[..., Head]  # called with (Schema, H of the backbone, FeatureSpec)
MakePool = Callable[..., SequencePool]  # called with (E, number of lists, lists with a candidate)


class Ranker(Model):
    """A multi-task ranking network: any embedding, sequence pooling, interaction, backbone and head.

    Args:
        sequence: how a sequence becomes one vector per list.
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
        sequence: MakePool = TargetAttention,
        dropout: float | None = None,
        without: Sequence[str] = (),
    ) -> None:
        super().__init__(schema)
        parts = {"embedding": embedding, "sequence": sequence, "interaction": interaction}
        for name, make in (parts | {"backbone": backbone, "head": head}).items():
            if not callable(make) and (name, make) != ("interaction", None):
                raise ValueError(f"{name} must be callable, got {make!r}; choose one with model/{name}=NAME")
        self.embedding = make_tables(embedding, schema)
        self.spec = FeatureSpec.of(schema, self.embedding)
        self.sequences: SequencePools | None = None
        if schema.sequences:
            self.sequences = SequencePools(schema, self.embedding.dim, self.embedding.parts, sequence)
        self.vectors: VectorProjections | None = None
        if vectors := schema.of_kind(Kind.VECTOR):
            self.vectors = VectorProjections([f.size for f in vectors], self.embedding.dim, self.embedding.parts)
        self.without = tuple(without)
        seen = self.spec.without(self.without)
        self.before_table = tuple(field.name for field in (*schema.lists, *vectors))
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
        layouts = [Ragged(s.lengths, len(s.ids)) for s in batch.sequences]
        places = [] if self.sequences is None else self.embedding.of_sequences(batch)
        return self.joined(self.embedding(batch), places, layouts, batch.vectors)

    def joined(
        self, values: Tensor, places: Sequence[Tensor], layouts: Sequence[Layout], vectors: Sequence[Tensor]
    ) -> Features:
        """Add the pooled sequences and the projected vectors to what the embedding table returns.

        Args:
            values: (B, D + O) output of the table.
            places: (P, N, E) vectors of the places of each sequence.
            layouts: rows of the places of each sequence.
            vectors: (B, d) vectors of each vector field.
        """
        before = []
        if self.sequences is not None:
            of_table = Features(values, self.spec.without(self.before_table))
            targets = [of_table.select(names) for names in self.sequences.targets]
            before.append(self.sequences(places, targets, layouts))
        if self.vectors is not None:
            before.append(self.vectors(vectors))
        if not before:
            return Features(values, self.spec)
        return Features(torch.cat([*(part.to(values.dtype) for part in before), values], 1), self.spec)

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

    @property
    def state_names(self) -> tuple[str, ...]:
        """The head's hidden states."""
        return self.head.state_names

    def mixtures(self) -> list[Mixture]:
        """The backbone's mixtures."""
        return self.backbone.mixtures()
