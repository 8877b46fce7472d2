"""Multi-task rankers. Each is a torch module that takes a schema and its sizes, without Lightning or Hydra."""

from dlen.models.baseline import Baseline
from dlen.models.boosting import LightGBM
from dlen.models.funnels import AITM, ESMM
from dlen.models.heads import Bound, Likelihood, Ranking
from dlen.models.logistic import Logistic
from dlen.models.model import Model
from dlen.models.mran import MRAN
from dlen.models.pal import PAL
from dlen.models.predictions import Latent, Predictions
from dlen.models.ranker import CGC, DLEN, PLE, MMoE, MoE, Ranker, SharedBottom
from dlen.models.single_task import SingleTask

__all__ = [
    "AITM",
    "CGC",
    "DLEN",
    "ESMM",
    "MRAN",
    "PAL",
    "PLE",
    "Baseline",
    "Bound",
    "Latent",
    "LightGBM",
    "Likelihood",
    "Logistic",
    "MMoE",
    "MoE",
    "Model",
    "Predictions",
    "Ranker",
    "Ranking",
    "SharedBottom",
    "SingleTask",
]
