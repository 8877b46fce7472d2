"""Published models by name: a fixed backbone and head, built from a schema and one flat list of settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

from dlen.models.backbones import (
    AdaTTBackbone,
    CGCBackbone,
    CrossStitchBackbone,
    HoMEBackbone,
    MMoEBackbone,
    MoEBackbone,
    MRANBackbone,
    PLEBackbone,
    PPNetBackbone,
    SharedBottomBackbone,
    STEMBackbone,
    TaskNetworksBackbone,
)
from dlen.models.dbmtl import DBMTLHead
from dlen.models.dlen import LatentHead
from dlen.models.escm2 import ESCM2Head
from dlen.models.funnels import AITMHead, ESMMHead
from dlen.models.heads import IndependentHead
from dlen.models.interactions import CrossInteraction, EPNetInteraction, MakeInteraction
from dlen.models.pal import PositionRanker
from dlen.models.ranker import MakeBackbone, MakeHead, MakePool, Ranker
from dlen.nn.embedding import EmbeddingTable
from dlen.nn.mixed import MakeEmbedding
from dlen.nn.sequences import TargetAttention
from dlen.schema import Schema


class Named(Ranker):
    """A ranker with a fixed backbone and head, whose settings are passed as one flat list of keywords.

    Args:
        embedding_dim: length of each id's embedding vector.
        first_order: add first-order terms, see :class:`~dlen.nn.embedding.EmbeddingTable`; None for the model's
            default.
        embedding: factory of the embedding table; overrides ``embedding_dim`` and ``first_order``.
        sequence: how a sequence becomes one vector per list.
        interaction: factory of a layer between embedding and backbone, see :mod:`dlen.models.interactions`, or None;
            cross layers by default, and EPNet in PEPNet.
        backbone: factory of the backbone; overrides the model's own.
        head: factory of the head; overrides the model's own.
        dropout: dropout probability of backbone and head.
        settings: keyword arguments of the backbone and the head.

    Raises:
        TypeError: neither backbone nor head has such a setting.
        ValueError: a setting is out of range, or the schema lacks what the model needs.
    """

    BACKBONE: ClassVar[Callable[..., Any]]
    HEAD: ClassVar[Callable[..., Any]] = IndependentHead
    INTERACTION: ClassVar[Callable[..., Any]] = CrossInteraction
    FIRST_ORDER: ClassVar[bool] = False
    PRIVATE: ClassVar[bool] = False
    SHARED_PART: ClassVar[bool] = False

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_dim: int = 16,
        first_order: bool | None = None,
        embedding: MakeEmbedding | None = None,
        sequence: MakePool = TargetAttention,
        interaction: MakeInteraction | Literal["default"] | None = "default",
        backbone: MakeBackbone | None = None,
        head: MakeHead | None = None,
        dropout: float | None = None,
        **settings: Any,
    ) -> None:
        first_order = self.FIRST_ORDER if first_order is None else first_order
        table: dict[str, Any] = {"dim": embedding_dim, "first_order": first_order}
        table |= {"private": self.PRIVATE, "shared_part": self.SHARED_PART}
        head = self.HEAD if head is None else head
        head = partial(head, **_taken(head, settings))
        backbone = self.BACKBONE if backbone is None else backbone
        backbone = partial(backbone, **_taken(backbone, settings))
        super().__init__(
            schema,
            embedding=partial(EmbeddingTable, **table) if embedding is None else embedding,
            interaction=self.INTERACTION if interaction == "default" else interaction,
            backbone=backbone,
            head=head,
            sequence=sequence,
            dropout=dropout,
            **settings,
        )


def _taken(made: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Pop the settings that a class accepts."""
    return {name: settings.pop(name) for name in inspect.signature(made).parameters if name in settings}


class SharedBottom(Named):
    """Hard parameter sharing (Caruana 1997): one MLP and a tower per task."""

    BACKBONE, FIRST_ORDER = SharedBottomBackbone, True


class MoE(Named):
    """Mixture of experts with one gate for all tasks (Jacobs et al. 1991)."""

    BACKBONE, FIRST_ORDER = MoEBackbone, True


class MMoE(Named):
    """Multi-gate mixture of experts (Ma et al. 2018), the paper's base model."""

    BACKBONE, FIRST_ORDER = MMoEBackbone, True


class CGC(Named):
    """Customized gate control (Tang et al. 2020): PLE with one level."""

    BACKBONE, FIRST_ORDER = CGCBackbone, True


class PLE(Named):
    """Progressive layered extraction (Tang et al. 2020)."""

    BACKBONE, FIRST_ORDER = PLEBackbone, True


class STEM(Named):
    """STEM-Net (Su et al. 2024): each id has a vector for each task and a shared one, with experts on each."""

    BACKBONE, FIRST_ORDER, PRIVATE, SHARED_PART = STEMBackbone, True, True, True


class DBMTL(Named):
    """Deep Bayesian multi-target learning (Wang et al. 2019): towers that take the hidden layers of other tasks."""

    BACKBONE, HEAD, FIRST_ORDER = SharedBottomBackbone, DBMTLHead, True


class CrossStitch(Named):
    """Cross-stitch networks (Misra et al. 2016): networks of each task, whose layers' outputs are mixed."""

    BACKBONE, FIRST_ORDER = CrossStitchBackbone, True


class AdaTT(Named):
    """Adaptive task-to-task fusion (Li et al. 2023): every task fuses all experts, its own ones also as a residual."""

    BACKBONE, FIRST_ORDER = AdaTTBackbone, True


class PEPNet(Named):
    """Parameter and embedding personalised network (Chang et al. 2023): gates on the inputs and on hidden units."""

    BACKBONE, INTERACTION, FIRST_ORDER = PPNetBackbone, EPNetInteraction, True


class HoME(Named):
    """Hierarchy of multi-gate experts (Wang et al. 2024): normalised experts of all tasks, groups and single tasks."""

    BACKBONE, FIRST_ORDER = HoMEBackbone, True


class SingleTask(Named):
    """One separate model per task, embeddings included: no parameter gets gradients from two tasks.

    The models train side by side on the same batches. Early stopping and the best checkpoint apply to all of them
    together.
    """

    BACKBONE, PRIVATE = TaskNetworksBackbone, True


class MRAN(Named):
    """Multiple relational attention network (Zhao et al. 2019), reimplemented from the paper."""

    BACKBONE = MRANBackbone


class ESMM(Named):
    """Entire space multi-task model (Ma et al. 2018): a network per task on shared embeddings; needs a funnel."""

    BACKBONE, HEAD = TaskNetworksBackbone, ESMMHead


class ESCM2(Named):
    """Entire space counterfactual multi-task model (Wang et al. 2022): doubly robust ESMM; needs a funnel."""

    BACKBONE, HEAD, FIRST_ORDER = TaskNetworksBackbone, ESCM2Head, True


class AITM(Named):
    """Adaptive information transfer multi-task model (Xi et al. 2021); needs a funnel."""

    BACKBONE, HEAD = TaskNetworksBackbone, AITMHead


class PAL(Named, PositionRanker):
    """Position-bias aware learning (Guo et al. 2019) on top of MMoE; needs a position field."""

    BACKBONE = MMoEBackbone


class DLEN(Named):
    """Deep Latent Emotion Network: the latent head on any backbone (MMoE in the paper).

    The paper's variant is ``alpha=0.1, prediction="joint", likelihood="marginal", first_order=False``. ``match=8``
    works better when every task has many positives.

    Example:
        >>> import torch
        >>> from dlen.batch import Batch
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

    BACKBONE, HEAD, FIRST_ORDER = MMoEBackbone, LatentHead, True
