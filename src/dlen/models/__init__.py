"""Multi-task rankers: plain torch modules built from a schema and sizes, independent of Lightning and Hydra."""

from dlen.models.baseline import Baseline
from dlen.models.boosting import LightGBM
from dlen.models.dlen import LatentHead, Likelihood
from dlen.models.features import Features, FeatureSpec
from dlen.models.heads import IndependentHead, Ranking
from dlen.models.latent_start import Bound
from dlen.models.logistic import Logistic
from dlen.models.model import Model
from dlen.models.named import (
    AITM,
    CGC,
    DBMTL,
    DLEN,
    ESCM2,
    ESMM,
    MRAN,
    PAL,
    PLE,
    STEM,
    AdaTT,
    CrossStitch,
    HoME,
    MMoE,
    MoE,
    Named,
    PEPNet,
    SharedBottom,
    SingleTask,
)
from dlen.models.pal import PositionRanker
from dlen.models.predictions import Latent, Predictions
from dlen.models.ranker import Ranker

__all__ = [
    "AITM",
    "CGC",
    "DBMTL",
    "DLEN",
    "ESCM2",
    "ESMM",
    "MRAN",
    "PAL",
    "PLE",
    "STEM",
    "AdaTT",
    "Baseline",
    "Bound",
    "CrossStitch",
    "FeatureSpec",
    "Features",
    "HoME",
    "IndependentHead",
    "Latent",
    "LatentHead",
    "LightGBM",
    "Likelihood",
    "Logistic",
    "MMoE",
    "MoE",
    "Model",
    "Named",
    "PEPNet",
    "PositionRanker",
    "Predictions",
    "Ranker",
    "Ranking",
    "SharedBottom",
    "SingleTask",
]
