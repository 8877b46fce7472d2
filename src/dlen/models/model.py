"""Model: what every model of the frame offers when it is measured, whatever it is made of and however it is fitted."""

from __future__ import annotations

from torch import nn

from dlen.batch import Batch
from dlen.models.backbones import Mixture
from dlen.models.heads import Ranking
from dlen.models.predictions import Predictions
from dlen.schema import Schema


class Model(nn.Module):
    """A multi-task ranking model: the networks (:class:`~dlen.models.ranker.Ranker`) and the baselines.

    Args:
        schema: fields and tasks.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.schema = schema

    def forward(self, batch: Batch) -> Predictions:
        """Probabilities of every task for B rows."""
        raise NotImplementedError

    @property
    def ranking(self) -> Ranking | None:
        """Which of its probabilities ranks, of a model that has P(UP); None for others."""
        return None

    def mixtures(self) -> list[Mixture]:
        """Mixtures of experts whose gates can be watched; none in most models without a backbone."""
        return []
