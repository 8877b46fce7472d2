"""Model selection: the validation metric that decides when training stops and which weights are kept."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from dlen.errors import UserError
from dlen.schema import Schema
from dlen.targets import Targets
from dlen.training.module import RankingModule
from dlen.training.own_metrics import OwnMetric

_MODES = {"auc": "max", "auc_total": "max", "auc_joint": "max", "gain": "max"}
_MODES |= {"logloss": "min", "ne": "min", "ece": "min"}
_OF_VALUES = {"rmse": "min", "mae": "min", "xauc": "max", "spearman": "max"}
DEFAULT, DEFAULT_OF_VALUES = "val/auc/weighted", "val/xauc/mean"
_MEANS = {"auc": ("mean", "weighted"), "gain": ("mean",), "logloss": ("labels",), "xauc": ("mean",)}
NO_METRICS: Mapping[str, OwnMetric] = MappingProxyType({})


def monitor_mode(monitor: Any, schema: Schema, own: Mapping[str, OwnMetric] = NO_METRICS) -> str:
    """Whether higher (``max``) or lower (``min``) values of a monitored metric are better.

    Args:
        monitor: key of the metric, such as ``val/auc/weighted`` or ``val/logloss/click``.
        own: the user's own metrics by name.

    Raises:
        UserError: there is no such validation metric.
    """
    names, values = Targets(schema.binary).names, [schema.tasks[index].name for index in schema.regressions]
    stage, _, figure = str(monitor).partition("/")
    measure, _, target = figure.partition("/")
    if stage == "val" and measure in own and target in (*own[measure].targets, "mean"):
        mode = own[measure].mode
        if mode is None:
            raise UserError(f"config metrics.own.{measure}.mode: set max or min, as the metric does not tell which")
        return mode
    modes, known_targets = _MODES | _OF_VALUES, values if measure in _OF_VALUES else names
    means = _MEANS.get(measure, ()) if known_targets else ()
    if stage != "val" or measure not in modes or target not in (*known_targets, *means):
        known = [f"val/{m}/{t}" for m in ("auc", "logloss") for t in (*_MEANS[m], *names) if names]
        known += [f"val/xauc/{t}" for t in (*_MEANS["xauc"], *values) if values]
        others = [m for m in [*_MODES, *(_OF_VALUES if values else [])] if m not in ("auc", "logloss", "xauc")]
        raise UserError(
            f"config monitor: {monitor!r} cannot be monitored; choose one of {', '.join(known)}, or a validation "
            f"metric of {', '.join([*others, *own])}"
        )
    return modes[measure]


def monitored(monitor: Any, schema: Schema) -> Any:
    """The metric that selects the weights: the config's, or the mean XAUC for the default without a binary task."""
    return DEFAULT_OF_VALUES if monitor == DEFAULT and not schema.binary.tasks else monitor


class Selection(Callback):
    """Keeps all metrics of the best validation by the monitored metric, whose weights are tested.

    Attributes:
        best: metrics of the best validation so far, by key; empty before the first.
        epoch: epoch of the best validation so far, counted from 0; -1 before the first.
    """

    def __init__(self, monitor: str, mode: str) -> None:
        self.monitor, self.sign = monitor, 1 if mode == "max" else -1
        self.best: dict[str, float] = {}
        self.epoch = -1

    def state_dict(self) -> dict[str, Any]:
        """The best metrics so far."""
        return {"best": self.best, "epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.best, self.epoch = dict(state_dict["best"]), state_dict.get("epoch", -1)  # of a run of before

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare like Lightning's checkpoint callback: in 32 bits, and the first of equal values wins.

        Raises:
            UserError: the monitored metric is undefined on this validation split.
        """
        assert isinstance(pl_module, RankingModule)
        if trainer.sanity_checking:
            return
        validation = pl_module.figures["val"]
        figures = {f"val/{key}": value for key, value in validation.values.items()}
        if self.monitor not in figures:
            reason = validation.undefined.get(self.monitor.removeprefix("val/"), "this model or run has no such metric")
            raise UserError(f"config monitor: {self.monitor} is undefined ({reason}); choose another metric")
        now, before = figures[self.monitor], self.best.get(self.monitor)
        if before is None or np.float32(self.sign * now) > np.float32(self.sign * before):
            self.best, self.epoch = figures, trainer.current_epoch
