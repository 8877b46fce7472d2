"""Balancing: how the tasks' losses, or their gradients of what is shared, become one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from dlen.models.ranker import Ranker
from dlen.nn.processes import total, world_size


class Balancer(nn.Module, ABC):
    """Turns (T,) losses into the scalar that is trained.

    Attributes:
        on_gradients: it works on gradients, see :class:`Surgery`.
        weights: factors of the tasks' losses beside the schema's, by name; 1 for the others.
    """

    on_gradients = False
    weights: Mapping[str, float] = MappingProxyType({})

    def setup(self, num_tasks: int) -> None:
        """Make what depends on the number of tasks T."""

    @abstractmethod
    def forward(self, losses: Tensor, weights: Tensor) -> Tensor:
        """(T,) losses and (T,) weights of the schema's tasks -> scalar."""

    def task_weights(self) -> Tensor | None:
        """(T,) factors in use, to be logged; None where they never change."""
        return None

    def end_epoch(self) -> None:
        """An epoch of training has ended."""


class Fixed(Balancer):
    """The weighted sum, with the weights of the schema's tasks.

    Args:
        weights: further factors of some tasks, by name.

    Raises:
        ValueError: a weight is negative or no number.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        for task, weight in (weights or {}).items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                raise ValueError(f"the weight of {task} must be a number from 0, got {weight!r}")
        self.weights = dict(weights or {})

    def forward(self, losses: Tensor, weights: Tensor) -> Tensor:
        """(losses * weights).sum()"""
        return (losses * weights).sum()


class Uncertainty(Balancer):
    """Homoscedastic uncertainty (Kendall et al. 2018, equation 10): sum of exp(-s) L + s / 2, s a learned log variance.

    For a constant loss L the best s is log(2 L), so every task comes to pull alike.
    """

    def setup(self, num_tasks: int) -> None:
        """One s for each task, from 0."""
        self.log_variance = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum over the tasks."""
        return (weights * ((-self.log_variance).exp() * losses + self.log_variance / 2)).sum()

    def task_weights(self) -> Tensor:
        """exp(-s)"""
        return (-self.log_variance.detach()).exp()


class DynamicWeightAverage(Balancer):
    """Dynamic weight average (Liu et al. 2019, equation 7): a task that has stopped falling weighs more.

        w(t) = T softmax(r(t) / temperature),    r(t) = mean loss of the last epoch / of the one before

    The first two epochs have weights of 1.

    Args:
        temperature: 2 in the paper; the higher, the more even.
    """

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def setup(self, num_tasks: int) -> None:
        """Sums of this epoch, and means of the two before (0 where there is none)."""
        for name in ("total", "last", "before"):
            self.register_buffer(name, torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))
        self.total: Tensor
        self.last: Tensor
        self.before: Tensor
        self.steps: Tensor

    def forward(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum; adds the losses to the epoch's mean."""
        if self.training:
            self.total += total(losses.detach()) / world_size()  # of all processes, as is what a checkpoint holds
            self.steps += 1
        return (losses * weights * self.task_weights().to(losses.dtype)).sum()

    def task_weights(self) -> Tensor:
        """(T,) of this epoch."""
        ratio = torch.where(self.before > 0, self.last / self.before, 1.0)
        return len(ratio) * (ratio / self.temperature).softmax(0)

    def end_epoch(self) -> None:
        """This epoch's mean becomes the last one's."""
        self.before, self.last = self.last, self.total / self.steps
        self.total, self.steps = torch.zeros_like(self.total), torch.zeros_like(self.steps)


class Surgery(Balancer):
    """Gradient surgery: one of torchjd's aggregators on the Jacobian of the tasks' losses.

    The Jacobian is that of what the tasks share: the backbone's shared parameters, DLEN's hidden state network, and the
    embeddings of the batch. All other parameters, gates among them, have the gradient of the weighted sum. Costs a
    backward pass for each task.

    Args:
        aggregator: a class of ``torchjd.aggregation``, such as UPGrad, PCGrad, MGDA, CAGrad, IMTLG or AlignedMTL.
        arguments: of its constructor.

    Raises:
        ValueError: torchjd is not installed, or has no such aggregator.
    """

    on_gradients = True

    def __init__(self, aggregator: str = "UPGrad", **arguments: Any) -> None:
        super().__init__()
        try:
            from torchjd import aggregation
        except ImportError:
            raise ValueError("gradient surgery needs the library torchjd: pip install 'dlen[torchjd]'") from None
        kind = getattr(aggregation, aggregator, None)
        if not (isinstance(kind, type) and issubclass(kind, aggregation.Aggregator)):
            known = [n for n in aggregation.__all__ if not n.endswith("Weighting") and "Aggregator" not in n]
            raise ValueError(f"aggregator {aggregator!r} is none of torchjd's: {', '.join(known)}")
        try:
            self.aggregator = kind(**arguments)
        except (TypeError, ValueError, AttributeError, ImportError) as error:
            raise ValueError(f"aggregator {aggregator}: {error}") from None

    def setup(self, num_tasks: int) -> None:
        """Aggregate once, so that settings that do not fit the number of tasks are told now."""
        try:
            self.aggregator(torch.eye(num_tasks))
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"aggregator {type(self.aggregator).__name__}: {error}") from None

    def forward(self, losses: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum, to be looked at: the gradients come from :meth:`backward`."""
        return (losses * weights).sum()

    def backward(self, model: Ranker, losses: Tensor, x: Tensor, extra: Tensor | None = None) -> None:
        """Set the gradients of all parameters.

        Args:
            model: whose losses they are.
            losses: (T,) weighted, with their graph.
            x: (B, D) what the embedding has made, in that graph.
            extra: a scalar that belongs to no task, such as AITM's calibrator.
        """
        shared = [*model.backbone.shared_parameters(), *model.head.shared_parameters()]
        common = [*shared, *([x] if x.requires_grad else [])]  # numbers alone have no embedding

        if not common:
            losses.sum().backward()
            return

        def gradients(loss: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(loss, common, retain_graph=True, materialize_grads=True)

        matrix = torch.stack([torch.cat([g.flatten() for g in gradients(loss)]) for loss in losses])
        joined = _split(self.aggregator(matrix.float()), common)
        if extra is not None:
            joined = [a + b for a, b in zip(joined, gradients(extra), strict=True)]
        of_shared = joined[: len(shared)]
        known = {id(p) for p in shared} | {id(model.embedding.weight)}
        own = [p for p in model.parameters() if id(p) not in known]
        total = losses.sum() if extra is None else losses.sum() + extra
        of_own = torch.autograd.grad(total, own, retain_graph=True, allow_unused=True)
        for parameter, grad in zip([*shared, *own], [*of_shared, *of_own], strict=True):
            parameter.grad = grad
        if x.requires_grad:
            x.backward(joined[-1])  # into the embedding table


def _split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A flat vector in the shapes of some tensors."""
    parts = vector.split([t.numel() for t in like])
    return [part.view_as(t).to(t.dtype) for part, t in zip(parts, like, strict=True)]
