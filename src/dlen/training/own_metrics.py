"""A user's own metrics: any metric of torchmetrics over a task's probabilities and labels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import Metric

from dlen.errors import UserError
from dlen.metric_names import BUILT_IN
from dlen.metrics.functional import mean_of_defined
from dlen.nn.processes import total
from dlen.schema import Schema
from dlen.targets import Targets
from dlen.training.configs import build_part

_MODES = ("max", "min")


@dataclass(frozen=True, slots=True)
class OwnMetric:
    """A metric of the user's.

    Attributes:
        metric: metric whose ``update`` takes (N,) probabilities and (N,) integer labels, and whose ``compute`` returns
            one number.
        targets: targets that it is computed for.
        mode: ``max`` or ``min``, the direction in which it improves; None if that is unknown.
    """

    metric: Metric
    targets: tuple[str, ...]
    mode: str | None


def build_own_metrics(config: DictConfig, schema: Schema) -> dict[str, OwnMetric]:
    """Build the metrics of the config key ``metrics.own``, by name: for all tasks, or for the targets that they name.

    Raises:
        UserError: an entry is not such a metric.
    """
    nodes = config.metrics.get("own") or {}
    schema = schema.binary
    targets = Targets(schema).names
    return {
        str(name): _build(str(name), node, schema.task_names, targets)
        for name, node in nodes.items()
        if node is not None
    }


def _build(name: str, node: Any, tasks: Sequence[str], targets: Sequence[str]) -> OwnMetric:
    key = f"metrics.own.{name}"
    if not re.fullmatch(r"[A-Za-z][\w@-]*", name) or name in BUILT_IN:
        reason = "dlen has a metric of this name" if name in BUILT_IN else "not a plain name"
        raise UserError(f"config {key}: {reason}; choose another name")
    metric = build_part(node, key, Metric, ["tasks", "mode"])  # type: ignore[type-abstract]
    chosen = node.get("tasks")
    names = tuple(str(task) for task in (tasks if chosen is None else chosen))
    unknown = [task for task in names if task not in targets]
    if unknown or not names:
        raise UserError(f"config {key}.tasks: there is no {', '.join(unknown)}; the data has {', '.join(targets)}")
    _try_out(metric, key)
    better = metric.higher_is_better
    mode = node.get("mode", None if better is None else _MODES[not better])
    if mode not in (None, *_MODES):
        raise UserError(f"config {key}.mode: {mode!r} is neither max nor min")
    return OwnMetric(metric, names, mode)


def _try_out(metric: Metric, key: str) -> None:
    """Raise UserError unless the metric takes probabilities and labels and returns a number."""
    trial = metric.clone()
    try:
        trial.update(torch.tensor([0.2, 0.7, 0.4, 0.9]), torch.tensor([0, 1, 1, 0]))
        value = trial.compute()
    except Exception as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"config {key}: does not take probabilities and labels of a binary task ({line})") from None
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UserError(f"config {key}: computes more than one number; choose a metric of one number")


class OwnMeasures(nn.Module):
    """The user's metrics of one pass.

    Args:
        metrics: metrics by name.
        targets: names of all targets, in the order of the columns.
    """

    def __init__(self, metrics: Mapping[str, OwnMetric], targets: Sequence[str]) -> None:
        super().__init__()
        self.keys = [(name, target) for name, own in metrics.items() for target in own.targets]
        self.columns = [targets.index(target) for _, target in self.keys]
        self.metrics = [metrics[name].metric.clone() for name, _ in self.keys]
        self.modules_of_metrics = nn.ModuleList(self.metrics)  # so that they move to the module's device

    def update(self, log_p: Tensor, labels: Tensor, mask: Tensor) -> None:
        """Add the observed rows of a batch; all arguments are (B, K)."""
        for metric, column in zip(self.metrics, self.columns, strict=True):
            observed = mask[:, column] > 0
            if observed.any():
                metric.update(log_p[observed, column].exp(), labels[observed, column].long())

    def compute(self) -> dict[str, float]:
        """Values by ``NAME/TARGET`` and ``NAME/mean``; nan for a target without observed rows."""
        values: dict[str, float] = {}
        for (name, target), metric in zip(self.keys, self.metrics, strict=True):
            updates = total(torch.tensor(float(metric.update_called), device=metric.device))  # over all processes
            values[f"{name}/{target}"] = float(metric.compute()) if updates else math.nan
        for name in dict.fromkeys(name for name, _ in self.keys):
            values[f"{name}/mean"] = mean_of_defined(values[f"{n}/{t}"] for n, t in self.keys if n == name)
        return values
