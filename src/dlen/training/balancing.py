"""Balancing: combine the task losses, or their gradients on shared parameters, into one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from dlen.checks import from_zero, is_number, whole
from dlen.models.ranker import Ranker
from dlen.nn.processes import total, world_size

_BETAS = (0.9, 0.999)  # of Adam
_LEAST_LOSS = 1e-12
_LEAST_WEIGHT = 0.01  # of GradNorm


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


class LossWeighting(Balancer):
    """Base of balancers that weigh each step's losses by factors of these losses, at no cost.

    The factors are constants of the gradient. A task without rows in a batch, whose loss is 0, gets none.
    """

    @abstractmethod
    def factors(self, losses: Tensor) -> Tensor:
        """(T,) factors of (T,) losses, which are above 0 and carry no gradient."""

    def learn(self, losses: Tensor, seen: Tensor) -> None:
        """Take in a training step before its factors are computed.

        Args:
            losses: (T,) losses without a gradient, 1 where a task has no rows; means over all processes.
            seen: (T,) whether a task has rows.
        """

    def forward(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum over tasks."""
        known = total(losses.detach()) / world_size()
        seen = known > 0
        known = torch.where(seen, known, 1.0)
        if self.training:
            self.learn(known, seen)
        return (losses * weights * seen * self.factors(known).to(losses.dtype)).sum()


class FAMO(LossWeighting):
    """Fast adaptive multitask optimisation (Liu et al. 2023, algorithm 1): all losses fall at the same relative rate.

        factor_t = c z_t / L_t,    z = softmax(w),    c = 1 / sum_t z_t / L_t
        w learns from log L_t(before) - log L_t(after), by Adam

    Differs from the paper: a step is judged by the losses of the next batch, and not by those of the same batch in
    another forward pass, which would cost a third of the speed.

    Args:
        lr: learning rate of w; .025 in the paper.
        weight_decay: weight decay of w, which keeps the weights even; .001 in the paper.
    """

    logits: Tensor
    first: Tensor
    second: Tensor
    last: Tensor
    steps: Tensor

    def __init__(self, lr: float = 0.025, weight_decay: float = 1e-3) -> None:
        super().__init__()
        from_zero(**{"balancing.lr": lr, "balancing.weight_decay": weight_decay})
        self.lr, self.weight_decay = lr, weight_decay

    def setup(self, num_tasks: int) -> None:
        """Create w and Adam's moments, and the losses of the last step, 0 if there is none."""
        for name in ("logits", "first", "second", "last"):
            self.register_buffer(name, torch.zeros(num_tasks))
        self.register_buffer("steps", torch.zeros(()))

    def learn(self, losses: Tensor, seen: Tensor) -> None:
        """Adam's step on w by what the last step changed."""
        known = seen & (self.last > 0)
        change = torch.where(known, torch.where(known, self.last, 1.0).log() - losses.log(), 0.0)
        z = self.logits.softmax(0)
        gradient = z * (change - (z * change).sum()) + self.weight_decay * self.logits
        started = (self.last > 0).any().to(losses.dtype)
        self.steps += started
        self.first += (gradient - self.first) * (1 - _BETAS[0]) * started
        self.second += (gradient.square() - self.second) * (1 - _BETAS[1]) * started
        count = self.steps.clamp(min=1)
        mean, square = self.first / (1 - _BETAS[0] ** count), self.second / (1 - _BETAS[1] ** count)
        self.logits -= self.lr * started * mean / (square.sqrt() + 1e-8)
        self.last = torch.where(seen, losses, self.last)

    def factors(self, losses: Tensor) -> Tensor:
        """Shares that sum to 1."""
        shares = self.logits.softmax(0) / losses
        return shares / shares.sum()

    def task_weights(self) -> Tensor:
        """(T,) z, the weight of each task's relative progress."""
        return self.logits.softmax(0)


class SmoothTchebycheff(LossWeighting):
    """Smooth Tchebycheff scalarisation (Lin et al. 2024, equation 8): the tasks that have improved least weigh most.

        mu log sum_t exp(L_t / (n_t mu)),    n_t = mean loss of t in the first epoch

    Args:
        mu: smoothing; a smaller one comes closer to the largest term.

    Raises:
        ValueError: ``mu`` is not above 0.
    """

    total: Tensor
    steps: Tensor
    epochs: Tensor

    def __init__(self, mu: float = 0.1) -> None:
        super().__init__()
        if not (is_number(mu) and mu > 0):
            raise ValueError(f"mu must be above 0, got {mu!r}")
        self.mu = mu

    def setup(self, num_tasks: int) -> None:
        """Create the sums of the first epoch."""
        self.register_buffer("total", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.float64))

    def learn(self, losses: Tensor, seen: Tensor) -> None:
        """Add to the sums of the first epoch."""
        counts = seen * (self.epochs == 0)
        self.total += losses * counts
        self.steps += counts

    def factors(self, losses: Tensor) -> Tensor:
        """The derivatives of the smooth maximum."""
        scale = torch.where(self.steps > 0, self.total / self.steps.clamp(min=1), 1.0).to(losses.dtype)
        return (losses / scale / self.mu).softmax(0) / scale

    def end_epoch(self) -> None:
        """The scale is that of the first epoch."""
        self.epochs += 1


class GeometricMean(LossWeighting):
    """Geometric mean of the losses (Chennupati et al. 2019, equation 2), which no task's scale affects."""

    def factors(self, losses: Tensor) -> Tensor:
        """The derivatives of the geometric mean."""
        return losses.log().mean().exp() / (len(losses) * losses)


class OnGradients(Balancer):
    """Base of balancers that combine the tasks' gradients of what they share.

    The Jacobian covers the shared parameters of interaction and backbone, DLEN's hidden state network, and the
    embeddings of the batch. All other parameters, including gates, get the gradient of a weighted sum. The cost is one
    backward pass per task.
    """

    on_gradients = True

    @abstractmethod
    def combine(self, matrix: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Combine gradients.

        Args:
            matrix: (T, P) gradient of each task's weighted loss on what the tasks share.
            losses: (T,) these losses.

        Returns:
            (P,) gradient of what is shared, and (T,) factors of the losses for all other parameters.
        """

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
        combined, factors = self.combine(matrix.float(), losses.detach())
        joined = _split(combined, inputs)
        if extra is not None:
            joined = [a + b for a, b in zip(joined, gradients(extra), strict=True)]
        of_shared = joined[: len(shared)]
        before_x = [part for part in (model.embedding, model.sequences, model.vectors) if part is not None]
        known = {id(p) for p in chain(shared, *(part.parameters() for part in before_x))}
        others = [p for p in model.parameters() if id(p) not in known]
        of_tasks = (losses * factors).sum()
        of_others = torch.autograd.grad(
            of_tasks if extra is None else of_tasks + extra, others, retain_graph=True, allow_unused=True
        )
        for parameter, grad in zip([*shared, *others], [*of_shared, *of_others], strict=True):
            parameter.grad = grad
        if x.requires_grad:
            x.backward(joined[-1])  # into the parts before x


class Surgery(OnGradients):
    """Gradient surgery: a torchjd aggregator on the Jacobian of the task losses.

    Args:
        aggregator: class name in ``torchjd.aggregation``, such as UPGrad, PCGrad, MGDA, CAGrad, IMTLG, AlignedMTL,
            FairGrad or GradVac.
        arguments: keyword arguments of the aggregator.

    Raises:
        ValueError: torchjd is not installed, or has no such aggregator.
    """

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

    def combine(self, matrix: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the aggregator; all other parameters get the gradient of the sum."""
        return self.aggregator(matrix), torch.ones_like(losses)


class GradNorm(OnGradients):
    """Gradient normalisation (Chen et al. 2018, equations 1 and 2): tasks that lag behind get larger gradients.

        w_t G_t -> mean(w G) r_t^alpha,    r_t = (L_t / L_t(0)) / mean(L / L(0))

    The weights w, which sum to T, are trained by the model's optimiser to reduce the absolute differences. Differs from
    the paper: G is the norm of the gradient of all that the tasks share and not of the last shared layer, L(0) is the
    mean loss of the first steps, and L a running mean, as a rare task may have no positives in a batch.

    Args:
        alpha: strength of the balance of progress; 1.5 in the paper.
        warmup: number of first steps, in which all weights are 1.
    """

    initial: Tensor
    running: Tensor
    steps: Tensor

    def __init__(self, alpha: float = 1.5, warmup: int = 100) -> None:
        super().__init__()
        from_zero(**{"balancing.alpha": alpha})
        whole("balancing.warmup", warmup, 1)
        self.alpha, self.warmup = alpha, warmup

    def setup(self, num_tasks: int) -> None:
        """Create the weights and the mean losses."""
        self.raw = nn.Parameter(torch.ones(num_tasks))
        for name in ("initial", "running"):
            self.register_buffer(name, torch.zeros(num_tasks))
        self.register_buffer("steps", torch.zeros(()))

    def combine(self, matrix: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Weigh the gradients, and set the gradient of the weights."""
        self.steps += 1
        self.initial += torch.where(self.steps <= self.warmup, (losses - self.initial) / self.steps, 0.0)
        self.running += (losses - self.running) / self.steps.clamp(max=self.warmup)
        weights, norms = self.task_weights(), matrix.norm(dim=1)
        progress = self.running / self.initial.clamp(min=_LEAST_LOSS)
        pace = (progress / progress.mean().clamp(min=_LEAST_LOSS)) ** self.alpha
        weighted = weights * norms
        warm = self.steps > self.warmup
        self.raw.grad = torch.where(warm, (weighted - weighted.mean() * pace).sign() * norms, 0.0)
        return weights @ matrix, weights

    def task_weights(self) -> Tensor:
        """(T,) weights, which sum to T."""
        raw = self.raw.detach().clamp(min=_LEAST_WEIGHT)
        return len(raw) * raw / raw.sum()


def _split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Split a flat vector into the shapes of the given tensors."""
    parts = vector.split([t.numel() for t in like])
    return [part.view_as(t).to(t.dtype) for part, t in zip(parts, like, strict=True)]
