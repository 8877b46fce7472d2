"""torchmetrics classes for ranking and calibration, over pure functions.

Every class measures K targets at once: scores, labels and masks are (N, K), and ``compute`` gives (K,) with nan
where a target is undefined.
"""

from dlen.metrics.auc import ExactAUC, HistogramAUC, MTLGain
from dlen.metrics.by_user import ByUser
from dlen.metrics.hidden import HiddenState
from dlen.metrics.probability import CalibrationError, CalibrationRatio, LogLoss, NormalizedEntropy

__all__ = [
    "ByUser",
    "CalibrationError",
    "CalibrationRatio",
    "ExactAUC",
    "HiddenState",
    "HistogramAUC",
    "LogLoss",
    "MTLGain",
    "NormalizedEntropy",
]
