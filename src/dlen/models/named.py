"""Models by the names of their papers: a backbone under a head, built from a schema and one list of settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from dlen.models.backbones import (
    CGCBackbone,
    MMoEBackbone,
    MoEBackbone,
    MRANBackbone,
    PLEBackbone,
    SharedBottomBackbone,
    TaskNetworksBackbone,
)
from dlen.models.dlen import LatentHead
from dlen.models.funnels import AITMHead, ESMMHead
from dlen.models.heads import IndependentHead
from dlen.models.pal import PositionRanker
from dlen.models.ranker import MakeBackbone, MakeEmbedding, MakeHead, Ranker
from dlen.nn.embedding import EmbeddingTable
from dlen.schema import Schema


class Named(Ranker):
    """A ranker whose backbone and head are known, so that the settings of both can be given in one list.

    Args:
        schema: fields and tasks.
        embedding_dim: length of each id's vector.
        first_order: give each id one number per task, see :class:`~dlen.nn.embedding.EmbeddingTable`; None for the
            model's default.
        embedding: makes another table than these two say.
        backbone: makes another backbone than the model's own.
        head: makes another head than the model's own.
        dropout: of backbone and head.
        settings: of the backbone and the head, by their names there.

    Raises:
        TypeError: there is no such setting.
        ValueError: a setting is out of range, or the schema lacks what the model needs.
    """

    BACKBONE: ClassVar[Callable[..., Any]]
    HEAD: ClassVar[Callable[..., Any]] = IndependentHead
    FIRST_ORDER: ClassVar[bool] = False
    PRIVATE: ClassVar[bool] = False

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_dim: int = 16,
        first_order: bool | None = None,
        embedding: MakeEmbedding | None = None,
        backbone: MakeBackbone | None = None,
        head: MakeHead | None = None,
        dropout: float | None = None,
        **settings: Any,
    ) -> None:
        first_order = self.FIRST_ORDER if first_order is None else first_order
        table: dict[str, Any] = {"dim": embedding_dim, "first_order": first_order, "private": self.PRIVATE}
        if head is None:
            head = partial(self.HEAD, **_taken(self.HEAD, settings))
        if backbone is None:
            backbone = partial(self.BACKBONE, **_taken(self.BACKBONE, settings))
        super().__init__(
            schema,
            embedding=partial(EmbeddingTable, **table) if embedding is None else embedding,
            backbone=backbone,
            head=head,
            dropout=dropout,
            **settings,
        )


def _taken(made: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Take out the settings that a class knows."""
    return {name: settings.pop(name) for name in inspect.signature(made).parameters if name in settings}


class SharedBottom(Named):
    """Hard parameter sharing (Caruana 1997): one MLP, a tower for each task."""

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


class SingleTask(Named):
    """A model for each task, vectors included: no parameter has a gradient from two tasks.

    They are trained side by side on the same batches; early stopping and the best weights go by all of them together.
    """

    BACKBONE, PRIVATE = TaskNetworksBackbone, True


class MRAN(Named):
    """Multiple relational attention network (Zhao et al. 2019), reconstructed from its description."""

    BACKBONE = MRANBackbone


class ESMM(Named):
    """Entire space multi-task model (Ma et al. 2018): a network for each task on shared vectors; needs a funnel."""

    BACKBONE, HEAD = TaskNetworksBackbone, ESMMHead


class AITM(Named):
    """Adaptive information transfer multi-task model (Xi et al. 2021); needs a funnel."""

    BACKBONE, HEAD = TaskNetworksBackbone, AITMHead


class PAL(Named, PositionRanker):
    """Position-bias aware learning (Guo et al. 2019) over a mixture of experts; needs a position."""

    BACKBONE = MMoEBackbone


class DLEN(Named):
    """Deep Latent Emotion Network: the latent head on any backbone (MMoE in the paper).

    The paper's own variant is ``alpha=0.1, prediction="joint", likelihood="marginal", first_order=False``. With many
    positives in every task ``match=8`` is better.

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
