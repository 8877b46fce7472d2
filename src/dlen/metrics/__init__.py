"""torchmetrics classes for ranking and calibration, over pure functions.

Every class measures K targets at once: scores, labels and masks are (N, K), and ``compute`` gives (K,) with nan
where a target is undefined.
"""

from dlen.metrics.auc import ExactAUC, HistogramAUC, MTLGain
from dlen.metrics.hidden import HiddenState
from dlen.metrics.probability import CalibrationError, CalibrationRatio, LogLoss

__all__ = ["CalibrationError", "CalibrationRatio", "ExactAUC", "HiddenState", "HistogramAUC", "LogLoss", "MTLGain"]
