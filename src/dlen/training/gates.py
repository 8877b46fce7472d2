"""Gates made visible: which experts each task listens to, and whether experts have become copies of each other."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dlen.models.backbones import Mixture
from dlen.training.module import RankingModule

_COPIES = 0.98  # correlation of two experts' outputs from which they count as one
ALL = "all"  # owner of a gate that is for all tasks


@dataclass(slots=True)
class GateFigures:
    """One gate of one task, over the rows of a validation pass.

    Attributes:
        level: of the backbone, from 1.
        owner: the task, or ``all``.
        experts: names.
        weights: (E,) mean weight of each expert.
        entropy: mean entropy of a row's weights, 1 for equal ones and 0 for a single expert.
        top1: share of the rows whose heaviest expert is the most frequent heaviest one.
    """

    level: int
    owner: str
    experts: list[str]
    weights: Tensor
    entropy: float
    top1: float

    @property
    def key(self) -> str:
        """In logs and ``metrics.json``."""
        return f"gates/level{self.level}/{self.owner}"


class _Sums:
    """What the weights of one gate add up to."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.rows = 0
        shape = mixture.gate.shape
        self.weights, self.top = torch.zeros(shape), torch.zeros(shape)
        self.entropy = torch.zeros(shape[0])

    def add(self, gate: nn.Module, inputs: Any, weights: Tensor) -> None:
        """A forward hook of the gate: (B, G, E) weights."""
        weights = weights.detach().float()
        self.rows += len(weights)
        self.weights = self.weights.to(weights.device) + weights.sum(0)
        heaviest = nn.functional.one_hot(weights.argmax(2), weights.shape[2]).sum(0)
        self.top = self.top.to(weights.device) + heaviest
        self.entropy = self.entropy.to(weights.device) - torch.xlogy(weights, weights).sum((0, 2))

    def figures(self, tasks: list[str]) -> list[GateFigures]:
        """Of each mixture."""
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
    """``task2_expert0`` with the name of the task."""
    head, _, rest = name.partition("_")
    return f"{tasks[int(head.removeprefix('task'))]}_{rest}" if rest else name


class GateMonitor(Callback):
    """Watches every gate of the backbone during each validation and test; costs nothing in training.

    Logged are ``gates/levelN/TASK/entropy`` and ``.../top1``, and the mean weight of each expert. Those of the last
    validation enter ``metrics.json``; those of the test, which are the best checkpoint's, ``diagnostics_test.json``.
    """

    def __init__(self) -> None:
        self.last: list[GateFigures] = []
        self.copies: list[str] = []
        self._sums: list[_Sums] = []
        self._outputs: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to watch."""
        self._watch(pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to watch."""
        self._watch(pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop watching."""
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
            if name not in self._outputs:  # the first batch is enough to know copies by
                self._outputs[name] = output.detach().float().flatten()

        return hook

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop watching, and log."""
        self._stop(pl_module)
        if trainer.sanity_checking:
            return
        figures = {f"val/{k}": v for k, v in self.figures().items()}
        for found in self.last:
            weights = zip(found.experts, found.weights.tolist(), strict=True)
            figures |= {f"val/{found.key}/weight/{name}": value for name, value in weights}
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
        """The last figures, so that a run that goes on and has nothing left to do still has them."""
        return {"last": [asdict(f) for f in self.last], "copies": self.copies}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.last = [GateFigures(**f) for f in state_dict["last"]]
        self.copies = state_dict["copies"]

    def figures(self) -> dict[str, float]:
        """Of the last pass, under the keys of ``metrics.json``."""
        found: dict[str, float] = {}
        for gate in self.last:
            found |= {f"{gate.key}/entropy": gate.entropy, f"{gate.key}/top1": gate.top1}
        return found

    def warnings(self) -> list[str]:
        """A line for experts that have become copies."""
        if not self.copies:
            return []
        return [
            f"experts have become copies of each other ({'; '.join(self.copies)}): fewer experts would do the same, or "
            "raise model.dropout so that they learn different things"
        ]


def _with_task_in(pair: str, tasks: list[str]) -> str:
    return " ".join(_with_task(word, tasks) if word.startswith("task") else word for word in pair.split(" "))


def copies(outputs: dict[str, Tensor]) -> list[str]:
    """Pairs of experts of one level whose outputs are the same up to scale.

    Args:
        outputs: by name, such as ``level 1 expert0``, the outputs for the same rows, flattened to (B * H,).
    """
    names, found = list(outputs), []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            same_level = one.split(" ")[:2] == other.split(" ")[:2]
            if same_level and outputs[one].shape == outputs[other].shape:
                correlation = torch.corrcoef(torch.stack([outputs[one], outputs[other]]))[0, 1]
                if float(correlation) > _COPIES:
                    found.append(f"{one} and {other.split(' ')[-1]}")
    return found
