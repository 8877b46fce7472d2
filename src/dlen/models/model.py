"""Model: the interface that evaluation needs from every model, networks and baselines alike."""

from __future__ import annotations

from torch import nn

from dlen.batch import Batch
from dlen.models.backbones import Mixture
from dlen.models.heads import Ranking
from dlen.models.predictions import Predictions
from dlen.schema import Schema


class Model(nn.Module):
    """Base class of multi-task ranking models: networks (:class:`~dlen.models.ranker.Ranker`) and baselines."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.schema = schema

    def forward(self, batch: Batch) -> Predictions:
        """Predict the probability of every task for B rows."""
        raise NotImplementedError

    @property
    def ranking(self) -> Ranking | None:
        """The probability used for ranking, for models with P(UP); None for all others."""
        return None

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the hidden states, ``up`` first; empty for models without any."""
        return ()

    def mixtures(self) -> list[Mixture]:
        """Mixtures of experts whose gates can be monitored; empty by default."""
        return []
