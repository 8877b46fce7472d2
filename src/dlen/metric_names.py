"""Names of metrics in ``metrics.json``: the built-in ones, and those of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEASURES = ("rmse", "mae", "xauc", "spearman")  # of regression tasks
BUILT_IN = frozenset(
    (
        *("auc", "auc_joint", "auc_total", "base", "calibration", "corr", "ece", "gain", "gauc", "hidden", "leak"),
        *("lift", "logloss", "ndcg@10", "ne", "negatives", "negatives_true", "oracle", "rows", "users_without_auc"),
        *MEASURES,
    )
)


def own_names(metrics: Mapping[str, Any], split: str) -> list[str]:
    """Names of a user's own metrics in the content of ``metrics.json``, in order."""
    keys = [key.split("/") for key in metrics if key.startswith(f"{split}/")]
    return list(dict.fromkeys(parts[1] for parts in keys if len(parts) == 3 and parts[1] not in BUILT_IN))
