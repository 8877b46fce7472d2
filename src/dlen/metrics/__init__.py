"""torchmetrics classes for ranking and calibration, built on pure functions.

Every class measures K = ``num_targets`` targets at once: scores, labels and masks are (N, K), and ``compute`` returns
(K,), with nan for undefined targets.
"""

from dlen.metrics.auc import ExactAUC, HistogramAUC, MTLGain
from dlen.metrics.by_user import ByUser
from dlen.metrics.hidden import HiddenState
from dlen.metrics.probability import CalibrationError, CalibrationRatio, LogLoss, NormalizedEntropy
from dlen.metrics.regression import RegressionErrors

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
    "RegressionErrors",
]
