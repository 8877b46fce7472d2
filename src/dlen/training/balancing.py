"""Balancing: combine the task losses, or their gradients on shared parameters, into one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from dlen.checks import from_zero
from dlen.models.ranker import Ranker
from dlen.nn.processes import total, world_size


class Balancer(nn.Module, ABC):
    """Combines (T,) losses into the scalar training loss.

    Attributes:
        on_gradients: whether it works on gradients, see :class:`Surgery`.
        weights: additional loss factors by task name, on top of the schema's weights; 1 for all other tasks.
    """

    on_gradients = False
    weights: Mapping[str, float] = MappingProxyType({})

    def setup(self, num_tasks: int) -> None:
        """Create the state that depends on the number of tasks T."""

    @abstractmethod
    def forward(self, losses: Tensor, weights: Tensor) -> Tensor:
        """(T,) losses and (T,) task weights of the schema -> scalar."""

    def task_weights(self) -> Tensor | None:
        """(T,) current factors for logging; None if they are constant."""
        return None

    def end_epoch(self) -> None:
        """Hook at the end of each training epoch."""


class Fixed(Balancer):
    """Fixed weighted sum, with the task weights of the schema.

    Args:
        weights: additional loss factors by task name; 1 for all other tasks.

    Raises:
        ValueError: a weight is negative or not a number.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        if not isinstance(weights, Mapping | None):
            raise ValueError(f"weights must map task names to numbers, such as {{click: 2}}, got {weights!r}")
        from_zero(**{f"the weight of {task}": weight for task, weight in (weights or {}).items()})
        self.weights = dict(weights or {})

    def forward(self, losses: Tensor, weights: Tensor) -> Tensor:
        """(losses * weights).sum()"""
        return (losses * weights).sum()


class Uncertainty(Balancer):
    """Homoscedastic uncertainty (Kendall et al. 2018, equation 10): sum of exp(-s) L + s / 2, s a learned log variance.

    For a constant loss L, the optimal s is log(2 L), so all tasks end up with equal weighted losses.
    """

    def setup(self, num_tasks: int) -> None:
        """Create one s per task, initially 0."""
        self.log_variance = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum over tasks."""
        return (weights * ((-self.log_variance).exp() * losses + self.log_variance / 2)).sum()

    def task_weights(self) -> Tensor:
        """exp(-s)"""
        return (-self.log_variance.detach()).exp()


class DynamicWeightAverage(Balancer):
    """Dynamic weight average (Liu et al. 2019, equation 7): tasks whose loss has stopped falling weigh more.

        w(t) = T softmax(r(t) / temperature),    r(t) = mean loss of the last epoch / of the one before

    All weights are 1 in the first two epochs.

    Args:
        temperature: softmax temperature; higher values give more even weights. 2 in the paper.
    """

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def setup(self, num_tasks: int) -> None:
        """Create the sums of the current epoch and the means of the previous two (0 if there is none)."""
        for name in ("total", "last", "before"):
            self.register_buffer(name, torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))
        self.total: Tensor
        self.last: Tensor
        self.before: Tensor
        self.steps: Tensor

    def forward(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum; in training mode, also accumulates the losses for the epoch's mean."""
        if self.training:
            self.total += total(losses.detach()) / world_size()  # over all processes, like a checkpoint
            self.steps += 1
        return (losses * weights * self.task_weights().to(losses.dtype)).sum()

    def task_weights(self) -> Tensor:
        """(T,) weights of the current epoch."""
        ratio = torch.where(self.before > 0, self.last / self.before, 1.0)
        return len(ratio) * (ratio / self.temperature).softmax(0)

    def end_epoch(self) -> None:
        """Shift the epoch means and reset the sums."""
        self.before, self.last = self.last, self.total / self.steps
        self.total, self.steps = torch.zeros_like(self.total), torch.zeros_like(self.steps)


class Surgery(Balancer):
    """Gradient surgery: a torchjd aggregator on the Jacobian of the task losses.

    The Jacobian covers what the tasks share: the shared parameters of interaction and backbone, DLEN's hidden state
    network, and the embeddings of the batch. All other parameters, including gates, get the gradient of the weighted
    sum. The cost is one backward pass per task.

    Args:
        aggregator: class name in ``torchjd.aggregation``, such as UPGrad, PCGrad, MGDA, CAGrad, IMTLG or AlignedMTL.
        arguments: keyword arguments of the aggregator.

    Raises:
        ValueError: torchjd is not installed, or has no such aggregator.
    """

    on_gradients = True

    def __init__(self, aggregator: str = "UPGrad", **arguments: Any) -> None:
        super().__init__()
        try:
            from torchjd import aggregation
        except ImportError:
            raise ValueError("gradient surgery needs the module torchjd: pip install 'dlen[torchjd]'") from None
        kind = getattr(aggregation, aggregator, None)
        if not (isinstance(kind, type) and issubclass(kind, aggregation.Aggregator)):
            known = [n for n in aggregation.__all__ if not n.endswith("Weighting") and "Aggregator" not in n]
            raise ValueError(f"aggregator must be one of torchjd's ({', '.join(known)}), got {aggregator!r}")
        try:
            self.aggregator = kind(**arguments)
        except (TypeError, ValueError, AttributeError, ImportError) as error:
            raise ValueError(f"aggregator {aggregator}: {error}") from None

    def setup(self, num_tasks: int) -> None:
        """Run the aggregator once, so settings that do not fit the number of tasks fail fast."""
        try:
            self.aggregator(torch.eye(num_tasks))
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"aggregator {type(self.aggregator).__name__}: {error}") from None

    def forward(self, losses: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum, for inspection only: :meth:`backward` computes the gradients."""
        return (losses * weights).sum()

    def backward(self, model: Ranker, losses: Tensor, x: Tensor, extra: Tensor | None = None) -> None:
        """Set the gradients of all parameters.

        Args:
            losses: (T,) weighted losses with their graph.
            x: (B, D) output of the embedding, part of that graph.
            extra: scalar loss that belongs to no task, such as AITM's calibrator.
        """
        shared = [*model.shared_parameters(), *model.head.shared_parameters()]
        inputs = [*shared, *([x] if x.requires_grad else [])]  # a model with only numeric fields has no embedding
        if not inputs:
            losses.sum().backward()
            return

        def gradients(loss: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(loss, inputs, retain_graph=True, materialize_grads=True)

        matrix = torch.stack([torch.cat([g.flatten() for g in gradients(loss)]) for loss in losses])
        joined = _split(self.aggregator(matrix.float()), inputs)
        if extra is not None:
            joined = [a + b for a, b in zip(joined, gradients(extra), strict=True)]
        of_shared = joined[: len(shared)]
        before_x = [*model.embedding.parameters(), *([] if model.sequences is None else model.sequences.parameters())]
        known = {id(p) for p in (*shared, *before_x)}
        others = [p for p in model.parameters() if id(p) not in known]
        total = losses.sum() if extra is None else losses.sum() + extra
        of_others = torch.autograd.grad(total, others, retain_graph=True, allow_unused=True)
        for parameter, grad in zip([*shared, *others], [*of_shared, *of_others], strict=True):
            parameter.grad = grad
        if x.requires_grad:
            x.backward(joined[-1])  # into the embedding tables and the pools of sequences


def _split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Split a flat vector into the shapes of the given tensors."""
    parts = vector.split([t.numel() for t in like])
    return [part.view_as(t).to(t.dtype) for part, t in zip(parts, like, strict=True)]
