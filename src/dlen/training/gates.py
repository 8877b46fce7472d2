"""Gate monitoring: which experts each task uses, and whether experts have become copies of each other."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dlen.models.backbones import Mixture
from dlen.training.module import RankingModule

_COPIES = 0.98  # experts whose outputs correlate more than this count as copies
ALL = "all"  # owner of a gate that serves all tasks


@dataclass(slots=True)
class GateFigures:
    """Metrics of one gate of one task, over the rows of a validation or test pass.

    Attributes:
        level: level of the backbone, counted from 1.
        owner: name of the task, or ``all``.
        experts: names of the E experts.
        weights: (E,) mean weight of each expert.
        entropy: mean normalised entropy of a row's weights: 1 for equal weights, 0 for a single expert.
        top1: share of rows whose top expert is the most frequent top expert.
    """

    level: int
    owner: str
    experts: list[str]
    weights: Tensor
    entropy: float
    top1: float

    @property
    def key(self) -> str:
        """Key prefix in logs and ``metrics.json``."""
        return f"gates/level{self.level}/{self.owner}"


class _Sums:
    """Running sums over the weights of one gate."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.rows = 0
        shape = mixture.gate.shape
        self.weights, self.top = torch.zeros(shape), torch.zeros(shape)
        self.entropy = torch.zeros(shape[0])

    def add(self, gate: nn.Module, inputs: Any, weights: Tensor) -> None:
        """Forward hook of the gate: add (B, G, E) weights."""
        weights = weights.detach().float()
        self.rows += len(weights)
        self.weights = self.weights.to(weights.device) + weights.sum(0)
        heaviest = nn.functional.one_hot(weights.argmax(2), weights.shape[2]).sum(0)
        self.top = self.top.to(weights.device) + heaviest
        self.entropy = self.entropy.to(weights.device) - torch.xlogy(weights, weights).sum((0, 2))

    def figures(self, tasks: list[str]) -> list[GateFigures]:
        """Metrics of each mixture."""
        most = math.log(self.weights.shape[1]) or 1.0
        return [
            GateFigures(
                self.mixture.level,
                ALL if owner is None else tasks[owner],
                [_with_task(name, tasks) for name in self.mixture.names],
                (self.weights[g] / self.rows).cpu(),
                float(self.entropy[g]) / self.rows / most,
                float(self.top[g].max()) / self.rows,
            )
            for g, owner in enumerate(self.mixture.owners)
        ]


def _with_task(name: str, tasks: list[str]) -> str:
    """Replace ``task2`` in ``task2_expert0`` with the task's name."""
    found = re.fullmatch(r"task(\d+)_(.+)", name)
    return f"{tasks[int(found[1])]}_{found[2]}" if found and int(found[1]) < len(tasks) else name


class GateMonitor(Callback):
    """Monitors every gate of the backbone during validation and test, at no cost in training.

    Logs ``gates/levelN/TASK/entropy`` and ``.../top1``, and the mean weight of each expert. The last validation goes
    into ``metrics.json``; the test of the best checkpoint goes into ``diagnostics_test.json``.
    """

    def __init__(self) -> None:
        self.last: list[GateFigures] = []
        self.copies: list[str] = []
        self._sums: list[_Sums] = []
        self._outputs: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start monitoring."""
        self._watch(pl_module)

    on_test_start = on_validation_start

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop monitoring."""
        self._stop(pl_module)

    def _watch(self, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, RankingModule)
        mixtures = pl_module.model.mixtures()
        self._sums, self._outputs = [_Sums(m) for m in mixtures], {}
        self._handles = [s.mixture.gate.register_forward_hook(s.add) for s in self._sums]
        experts = {f"level {m.level} {n}": e for m in mixtures for n, e in zip(m.names, m.experts, strict=True)}
        for name, expert in experts.items():
            self._handles.append(expert.register_forward_hook(self._keep(name)))

    def _keep(self, name: str) -> Any:
        def hook(expert: nn.Module, inputs: Any, output: Tensor) -> None:
            if name not in self._outputs:  # one batch is enough to detect copies
                self._outputs[name] = output.detach().float().flatten()

        return hook

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop monitoring, and log."""
        self._stop(pl_module)
        if trainer.sanity_checking:
            return
        figures = {f"val/{k}": v for k, v in self.figures().items()}
        for gate in self.last:
            weights = zip(gate.experts, gate.weights.tolist(), strict=True)
            figures |= {f"val/{gate.key}/weight/{name}": value for name, value in weights}
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)

    def _stop(self, pl_module: L.LightningModule) -> None:
        for handle in self._handles:
            handle.remove()
        assert isinstance(pl_module, RankingModule)
        tasks = pl_module.model.schema.task_names
        self.last = [f for s in self._sums if s.rows for f in s.figures(tasks)]
        self.copies = [_with_task_in(name, tasks) for name in copies(self._outputs)]
        self._outputs = {}

    def state_dict(self) -> dict[str, Any]:
        """The last metrics, so that a resumed run with no steps left still has them."""
        return {"last": [asdict(f) for f in self.last], "copies": self.copies}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.last = [GateFigures(**f) for f in state_dict["last"]]
        self.copies = state_dict["copies"]

    def figures(self) -> dict[str, float]:
        """Metrics of the last pass, under the keys of ``metrics.json``."""
        figures: dict[str, float] = {}
        for gate in self.last:
            figures |= {f"{gate.key}/entropy": gate.entropy, f"{gate.key}/top1": gate.top1}
        return figures

    def warnings(self) -> list[str]:
        """A warning if experts have become copies; else empty."""
        if not self.copies:
            return []
        return [
            f"experts have become copies of each other ({'; '.join(self.copies)}): use fewer experts, or raise "
            "model.dropout so that they learn different functions"
        ]


def _with_task_in(pair: str, tasks: list[str]) -> str:
    return " ".join(_with_task(word, tasks) if word.startswith("task") else word for word in pair.split(" "))


def copies(outputs: dict[str, Tensor]) -> list[str]:
    """Pairs of experts of one level whose outputs are nearly the same up to scale.

    Args:
        outputs: outputs for the same rows, flattened to (B * H,), by name such as ``level 1 expert0``.
    """
    pairs = []
    for first, second in combinations(outputs, 2):
        same_level = first.split(" ")[:2] == second.split(" ")[:2]
        if same_level and outputs[first].shape == outputs[second].shape:
            correlation = torch.corrcoef(torch.stack([outputs[first], outputs[second]]))[0, 1]
            if float(correlation) > _COPIES:
                pairs.append(f"{first} and {second.split(' ')[-1]}")
    return pairs
