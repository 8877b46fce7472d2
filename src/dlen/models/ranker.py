"""Ranker: embeddings + backbone + head, and the models that have names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

from torch import Tensor

from dlen.batch import Batch
from dlen.models.backbones import (
    EXPERT,
    Backbone,
    Mixture,
    MMoEBackbone,
    MoEBackbone,
    PLEBackbone,
    SharedBottomBackbone,
)
from dlen.models.heads import TOWER, Bound, Head, IndependentHead, LatentHead, Likelihood, Ranking
from dlen.models.model import Model
from dlen.models.predictions import Predictions
from dlen.nn.embedding import EmbeddingTable
from dlen.schema import Schema


class MakeBackbone(Protocol):
    """A backbone that waits for its input size, such as ``functools.partial(MMoEBackbone, num_experts=2)``."""

    def __call__(self, in_dim: int, num_tasks: int) -> Backbone:
        """Build it."""


class Ranker(Model):
    """A network that ranks for several tasks.

    Args:
        schema: fields and tasks.
        embedding: turns a batch into (B, D), and first-order terms behind it if the head takes them.
        backbone: turns (B, D) into (T, B, H).
        head: turns both into Predictions.
    """

    def __init__(self, schema: Schema, embedding: EmbeddingTable, backbone: Backbone, head: Head) -> None:
        super().__init__(schema)
        self.embedding = embedding
        self.backbone = backbone
        self.head = head

    def forward(self, batch: Batch) -> Predictions:
        """Probabilities of every task for B rows."""
        return self.predict(self.embedding(batch))

    def predict(self, x: Tensor) -> Predictions:
        """The same from the (B, D + O) input that the embedding makes."""
        deep = self.embedding.out_dim
        first_order = (x[:, deep:],) if self.embedding.first_order else ()
        x = x[:, :deep]
        predictions: Predictions = self.head(self.backbone(x), x, *first_order)
        return predictions

    @property
    def ranking(self) -> Ranking | None:
        """Which probability ranks, with DLEN's head."""
        return self.head.prediction if isinstance(self.head, LatentHead) else None

    def mixtures(self) -> list[Mixture]:
        """Those of the backbone."""
        return self.backbone.mixtures()


class IndependentRanker(Ranker):
    """A backbone under a sigmoid for each task."""

    def __init__(
        self,
        schema: Schema,
        make: MakeBackbone,
        embedding_dim: int,
        tower: Sequence[int],
        dropout: float,
        match: int = 0,
        first_order: bool = True,
    ) -> None:
        embedding = EmbeddingTable(schema, embedding_dim, first_order=len(schema.tasks) if first_order else 0)
        backbone = make(embedding.out_dim, len(schema.tasks))
        head = IndependentHead(schema, backbone.out_dim, embedding.out_dim, tower=tower, match=match, dropout=dropout)
        super().__init__(schema, embedding, backbone, head)


class SharedBottom(IndependentRanker):
    """Hard parameter sharing (Caruana 1997): one MLP, a tower for each task.

    Args:
        schema: fields and tasks.
        embedding_dim: length of each id's vector.
        expert: layers of the shared MLP.
        tower: hidden layers of each tower.
        first_order: each id has a number of each task's own, whose sum joins the task's logit.
        dropout: everywhere but in the embeddings.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_dim: int = 16,
        expert: Sequence[int] = EXPERT,
        tower: Sequence[int] = TOWER,
        first_order: bool = True,
        dropout: float = 0.0,
    ) -> None:
        make = partial(SharedBottomBackbone, expert=expert, dropout=dropout)
        super().__init__(schema, make, embedding_dim, tower, dropout, first_order=first_order)


class MoE(IndependentRanker):
    """Mixture of experts with one gate for all tasks (Jacobs et al. 1991).

    Args:
        schema: fields and tasks.
        embedding_dim: length of each id's vector.
        num_experts: of the mixture.
        expert: layers of each expert.
        tower: hidden layers of each tower.
        first_order: each id has a number of each task's own, whose sum joins the task's logit.
        dropout: everywhere but in the embeddings.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_dim: int = 16,
        num_experts: int = 5,
        expert: Sequence[int] = EXPERT,
        tower: Sequence[int] = TOWER,
        first_order: bool = True,
        dropout: float = 0.0,
    ) -> None:
        make = partial(MoEBackbone, num_experts=num_experts, expert=expert, dropout=dropout)
        super().__init__(schema, make, embedding_dim, tower, dropout, first_order=first_order)


class MMoE(IndependentRanker):
    """Multi-gate mixture of experts (Ma et al. 2018), the paper's base model.

    Args:
        schema: fields and tasks.
        embedding_dim: length of each id's vector.
        num_experts: 5 in the paper's feed setting, 2 on Ali-CCP.
        expert: layers of each expert.
        tower: hidden layers of each tower.
        first_order: each id has a number of each task's own, whose sum joins the task's logit.
        match: factors of a dot product of user and item that joins each logit; 0 for none, as in the paper.
        dropout: everywhere but in the embeddings.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_dim: int = 16,
        num_experts: int = 5,
        expert: Sequence[int] = EXPERT,
        tower: Sequence[int] = TOWER,
        first_order: bool = True,
        match: int = 0,
        dropout: float = 0.0,
    ) -> None:
        make = partial(MMoEBackbone, num_experts=num_experts, expert=expert, dropout=dropout)
        super().__init__(schema, make, embedding_dim, tower, dropout, match, first_order)


class PLE(IndependentRanker):
    """Progressive layered extraction (Tang et al. 2020).

    Args:
        schema: fields and tasks.
        embedding_dim: length of each id's vector.
        levels: CGC levels.
        shared_experts: 5 in the paper's feed setting, 2 on Ali-CCP.
        task_experts: 2 for each task in the paper's feed setting, 1 on Ali-CCP.
        expert: layers of each expert.
        tower: hidden layers of each tower.
        first_order: each id has a number of each task's own, whose sum joins the task's logit.
        dropout: everywhere but in the embeddings.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_dim: int = 16,
        levels: int = 2,
        shared_experts: int = 5,
        task_experts: int = 2,
        expert: Sequence[int] = EXPERT,
        tower: Sequence[int] = TOWER,
        first_order: bool = True,
        dropout: float = 0.0,
    ) -> None:
        make = partial(
            PLEBackbone,
            levels=levels,
            shared_experts=shared_experts,
            task_experts=task_experts,
            expert=expert,
            dropout=dropout,
        )
        super().__init__(schema, make, embedding_dim, tower, dropout, first_order=first_order)


class CGC(PLE):
    """Customized gate control (Tang et al. 2020): PLE with one level.

    Args:
        schema: fields and tasks.
        embedding_dim: length of each id's vector.
        shared_experts: experts of all tasks.
        task_experts: experts of each task.
        expert: layers of each expert.
        tower: hidden layers of each tower.
        first_order: each id has a number of each task's own, whose sum joins the task's logit.
        dropout: everywhere but in the embeddings.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_dim: int = 16,
        shared_experts: int = 5,
        task_experts: int = 2,
        expert: Sequence[int] = EXPERT,
        tower: Sequence[int] = TOWER,
        first_order: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            schema,
            embedding_dim=embedding_dim,
            levels=1,
            shared_experts=shared_experts,
            task_experts=task_experts,
            expert=expert,
            tower=tower,
            first_order=first_order,
            dropout=dropout,
        )


class DLEN(Ranker):
    """Deep Latent Emotion Network: the latent head on any backbone (MMoE in the paper).

    The paper's own variant is ``alpha=0.1, prediction="joint", likelihood="marginal"``. With many positives in every
    task ``match=8`` is better.

    Args:
        schema: fields and tasks.
        backbone: makes the backbone, by default :class:`MMoEBackbone` with 5 experts.
        embedding_dim: length of each id's vector.
        alpha: multiplier of the bound on P(t | not UP), one number or one for each task by name.
        bound: what alpha multiplies: ``conditional``, ``prior`` or ``absolute``.
        prediction: what ranks: ``joint``, equation (4), or ``total``, equation (1).
        likelihood: what training fits: ``marginal``, the paper's cross entropies, or ``full``, all labels together.
        tower: hidden layers of each tower.
        first_order: each id has a number of each task's own, whose sum joins the logit of P(t | UP).
        hidden: layers of the hidden state network; None for one P(UP) for all rows.
        match: factors of the dot product of user and item in P(UP); 0 for none, as in the paper.
        detach_bound: let P(t | not UP) send no gradient into P(t | UP) through the conditional bound.
        initial_up: P(UP) at the first step.
        initial_leak: P(t | not UP) over P(t | UP) at the first step.
        dropout: in the towers and the hidden state network.

    Example:
        >>> import torch
        >>> from dlen.schema import Field, Kind, Schema, Task
        >>> schema = Schema((Field("user", Kind.ID, "user", 100),), (Task("click", 0.2), Task("like", 0.1)))
        >>> model = DLEN(schema, embedding_dim=4, hidden=[8])
        >>> ids, labels = torch.tensor([[3], [7], [7]]), torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
        >>> batch = Batch.of_ids(ids, labels)
        >>> predictions = model(batch)
        >>> predictions.log_p.shape, predictions.latent.log_up.shape
        (torch.Size([3, 2]), torch.Size([3]))
        >>> p, up = predictions.log_p.exp(), predictions.latent.log_up.exp()[:, None]
        >>> given_up, given_not_up = predictions.latent.log_given_up.exp(), predictions.latent.log_given_not_up.exp()
        >>> torch.allclose(p, up * given_up + (1 - up) * given_not_up)  # equation (1)
        True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        backbone: MakeBackbone = MMoEBackbone,
        embedding_dim: int = 16,
        alpha: float | Mapping[str, float] = 1.0,
        bound: Bound | str = Bound.CONDITIONAL,
        prediction: Ranking | str = Ranking.TOTAL,
        likelihood: Likelihood | str = Likelihood.FULL,
        tower: Sequence[int] = TOWER,
        hidden: Sequence[int] | None = EXPERT,
        first_order: bool = True,
        match: int = 0,
        detach_bound: bool = False,
        initial_up: float = 0.5,
        initial_leak: float = 0.05,
        dropout: float = 0.0,
    ) -> None:
        embedding = EmbeddingTable(schema, embedding_dim, first_order=len(schema.tasks) if first_order else 0)
        made = backbone(embedding.out_dim, len(schema.tasks))
        head = LatentHead(
            schema,
            made.out_dim,
            embedding.out_dim,
            alpha=alpha,
            bound=bound,
            prediction=prediction,
            likelihood=likelihood,
            tower=tower,
            hidden=hidden,
            match=match,
            detach_bound=detach_bound,
            initial_up=initial_up,
            initial_leak=initial_leak,
            dropout=dropout,
        )
        super().__init__(schema, embedding, made, head)
