"""Multi-task rankers. Each is a torch module that takes a schema and its sizes, without Lightning or Hydra."""

from dlen.models.heads import Bound, Likelihood, Ranking
from dlen.models.predictions import Latent, Predictions
from dlen.models.ranker import CGC, DLEN, PLE, MMoE, Ranker, SharedBottom

__all__ = [
    "CGC",
    "DLEN",
    "PLE",
    "Bound",
    "Latent",
    "Likelihood",
    "MMoE",
    "Predictions",
    "Ranker",
    "Ranking",
    "SharedBottom",
]
