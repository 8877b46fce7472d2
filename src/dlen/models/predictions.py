"""Predictions: a head's output in log space, and the loss computed from it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dlen.models.second_state import Conditionals, SecondState
from dlen.models.values import MixtureValues, Values
from dlen.nn.logspace import log_lift
from dlen.nn.processes import total, world_size

_LEAST_WEIGHT = 1e-30  # sum of weights, instead of dividing by 0


@dataclass(frozen=True, slots=True)
class Views:
    """Dependences within views: E links between a task and another one.

    Attributes:
        parent_tasks: (E,) index of the first task of each link.
        child_tasks: (E,) index of the second, which depends on the first given UP; no task is the child of two.
        log_ratios: (2, E) logarithm of the odds ratio of both labels, given UP and given not UP.
    """

    parent_tasks: Tensor
    child_tasks: Tensor
    log_ratios: Tensor

    def only(self, columns: Tensor) -> Views:
        """The links by the places of their tasks among some tasks, which all of them are in."""
        parents, children = (
            (tasks[:, None] == columns).int().argmax(1) for tasks in (self.parent_tasks, self.child_tasks)
        )
        return Views(parents, children, self.log_ratios)

    def is_link(self, first: Tensor, second: Tensor) -> Tensor:
        """(P, E) whether each pair of tasks, by their (P,) indices, is each link in either direction."""
        a, b = first[:, None], second[:, None]
        parents, children = self.parent_tasks, self.child_tasks
        return (a == parents) & (b == children) | (a == children) & (b == parents)

    def log_given(self, up: Tensor, not_up: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Turn the log-probability of each child's label into one given its parent's label as well.

        Args:
            up: (B, T) log P(y_t | UP).
            not_up: (B, T) log P(y_t | not UP).
            labels: (B, T) 0 or 1.
            mask: (B, T) 0 where a label is not known; a child whose parent is not known stays as it is.
        """
        parents, children = labels.index_select(1, self.parent_tasks), labels.index_select(1, self.child_tasks)
        known = (mask.index_select(1, self.parent_tasks) > 0).to(up.dtype)
        log_ratios = torch.where(parents == children, 1.0, -1.0).to(up.dtype) * self.log_ratios[:, None]
        states = []
        for state, ratios in zip((up, not_up), log_ratios, strict=True):
            of_parents, of_children = (
                state.index_select(1, places) for places in (self.parent_tasks, self.child_tasks)
            )
            states.append(state.index_add(1, self.child_tasks, known * log_lift(of_parents, of_children, ratios)))
        return states[0], states[1]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The density of one column that is known only afterwards, in K bins.

    Attributes:
        logits: (2, A, K) of each bin given UP and given not UP, for each of the A combinations of labels it depends on.
        shift: (B, K) what the inputs add to these logits, in both states alike; (1, 1) for nothing.
        tasks: indices of the tasks whose labels it depends on; the first one is the lowest binary digit of a
            combination.
    """

    logits: Tensor
    shift: Tensor
    tasks: tuple[int, ...]

    def detach(self) -> Evidence:
        """The same without a gradient."""
        return Evidence(self.logits.detach(), self.shift.detach(), self.tasks)

    def only(self, columns: Tensor) -> Evidence:
        """The same by the places of its tasks among some tasks, which all of them are in."""
        places = columns.tolist()
        return Evidence(self.logits, self.shift, tuple(places.index(task) for task in self.tasks))

    def log_given(self, bins: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) log-probability of the bins given UP and given not UP; 0 where a bin or one of the labels is missing.

        Args:
            bins: (B,) bin of each row, from 0 to K - 1; K or more where it is missing.
            labels: (B, T) 0 or 1.
            mask: (B, T) 0 where a label is not known.
        """
        size, known = self.logits.shape[2], bins < self.logits.shape[2]
        combination = torch.zeros_like(bins, dtype=torch.int64)
        for digit, task in enumerate(self.tasks):
            combination = combination + (labels[:, task].long() << digit)
            known = known & (mask[:, task] > 0)
        logits = self.logits.index_select(1, combination).transpose(0, 1) + self.shift[:, None]  # (B, 2, K)
        place = bins.long().clamp(max=size - 1)[:, None, None].expand(-1, 2, 1)
        log_p = logits.log_softmax(2).gather(2, place)[..., 0] * known[:, None]
        return log_p[:, 0], log_p[:, 1]


@dataclass(slots=True)
class Latent:
    """DLEN's hidden state as log-probabilities.

    Attributes:
        log_up: (B,) log P(UP).
        log_not_up: (B,) log P(not UP), equation (2).
        log_given_up: (B, T) log P(t | UP).
        log_given_not_up: (B, T) log P(t | not UP).
        log_not_given_up: (B, T) log of 1 - P(t | UP).
        log_not_given_not_up: (B, T) log of 1 - P(t | not UP).
        log_joint: (B, T) log P(t, UP), equation (4); log P(t, not UP) for a dislike task.
        values: distributions of the regression tasks, whose columns in the above have no meaning; None without them.
        views: dependences of labels on each other given the state; None if all are independent.
        evidence: densities of what is known only afterwards, one per :attr:`Schema.views`.
        second: a second hidden state, which is summed out of all of the above; None without one.
    """

    log_up: Tensor
    log_not_up: Tensor
    log_given_up: Tensor
    log_given_not_up: Tensor
    log_not_given_up: Tensor
    log_not_given_not_up: Tensor
    log_joint: Tensor
    values: MixtureValues | None = None
    views: Views | None = None
    evidence: tuple[Evidence, ...] = ()
    second: SecondState | None = None

    @property
    def conditionals(self) -> Conditionals:
        """(B, T) log P(t | UP), P(t | not UP), 1 - P(t | UP) and 1 - P(t | not UP)."""
        return self.log_given_up, self.log_given_not_up, self.log_not_given_up, self.log_not_given_not_up

    def log_with_labels(self, labels: Tensor, mask: Tensor, bins: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return log P(UP, labels) and log P(not UP, labels), (B,) each.

        Labels of different views are independent given the hidden state. That of a regression task enters with its
        density.

        Args:
            labels: (B, T) 0 or 1; standardised for a regression task.
            mask: (B, T) weight of each label; 0 ignores it.
            bins: (B, V) bins of what is known only afterwards, :attr:`Batch.views`; None to leave it out.
        """
        if self.second is None:
            of_up, of_not_up = self._log_labels(self.conditionals, labels, mask)
        else:
            of_up, of_not_up = self.second.summed(
                self._log_labels(given, labels, mask) for given in self.second.conditionals
            )
        with_up, with_not_up = self.log_up + of_up, self.log_not_up + of_not_up
        if bins is None:
            return with_up, with_not_up
        of_up, of_not_up = self.log_evidence(labels, mask, bins)
        return with_up + of_up, with_not_up + of_not_up

    def _log_labels(self, given: Conditionals, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) log P(labels | UP) and log P(labels | not UP), with independent views."""
        happened, (yes_up, yes_not_up, no_up, no_not_up) = labels.bool(), given
        up, not_up = torch.where(happened, yes_up, no_up), torch.where(happened, yes_not_up, no_not_up)
        if self.views is not None:
            up, not_up = self.views.log_given(up, not_up, labels, mask)
        if self.values is not None:
            columns = self.values.columns
            of_up, of_not_up = self.values.log_given(labels.index_select(1, columns))
            up, not_up = up.index_copy(1, columns, of_up), not_up.index_copy(1, columns, of_not_up)
        return (up * mask).sum(1), (not_up * mask).sum(1)

    def log_evidence(self, labels: Tensor, mask: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) log P(bins | UP, labels) and log P(bins | not UP, labels). Takes the arguments of
        :meth:`log_with_labels`."""
        of_up, of_not_up = torch.zeros_like(labels[:, 0]), torch.zeros_like(labels[:, 0])
        for evidence, column in zip(self.evidence, bins.unbind(1), strict=False):  # no densities: no evidence
            up, not_up = evidence.log_given(column, labels, mask)
            of_up, of_not_up = of_up + up, of_not_up + not_up
        return of_up, of_not_up

    def log_both(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, P) log-probability that both tasks of P pairs happen, by their (P,) indices.

        Tasks without a link count as independent given the state, also those of one view.
        """
        if self.views is None:
            ratios = self.log_up.new_zeros(2, len(first))
        else:
            ratios = self.views.log_ratios @ self.views.is_link(first, second).T.to(self.log_up.dtype)

        def of_states(given: Conditionals) -> tuple[Tensor, Tensor]:
            up, not_up = (
                _log_and(state.index_select(1, first), state.index_select(1, second), odds)
                for state, odds in zip(given[:2], ratios, strict=True)
            )
            return up, not_up

        if self.second is None:
            up, not_up = of_states(self.conditionals)
        else:
            up, not_up = self.second.summed(of_states(given) for given in self.second.conditionals)
        return torch.logaddexp(self.log_up[:, None] + up, self.log_not_up[:, None] + not_up)

    def posterior_log_odds(self, labels: Tensor, mask: Tensor, bins: Tensor | None = None) -> Tensor:
        """(B,) log-odds of P(UP | labels, bins, x) by Bayes' rule. Takes the arguments of :meth:`log_with_labels`."""
        up, not_up = self.log_with_labels(labels, mask, bins)
        return up - not_up


@dataclass(slots=True)
class Predictions:
    """A model's predictions for B impressions and T tasks.

    Attributes:
        log_p: (B, T) log P(y_t = 1); for DLEN the total probability, equation (1). For a regression task, by which
            it is ranked and fused, the logarithm of the logistic function of its standardised prediction: log .5
            at the mean of training.
        log_q: (B, T) log P(y_t = 0).
        log_score: (B, T) log-probability used for ranking: ``log_p``, or equation (4).
        latent: DLEN's hidden state; None for other models.
        log_joint: (B, T) joint log-probability of a task and its parents, for models that learn it over all rows
            (ESMM, AITM, ESCM2); None for others.
        values: predictions of the regression tasks; None without them.
        imputed: (B, S) predicted cross entropies of the S tasks with a parent, for ESCM2; None for others.
    """

    log_p: Tensor
    log_q: Tensor
    log_score: Tensor
    latent: Latent | None = None
    log_joint: Tensor | None = None
    values: Values | None = None
    imputed: Tensor | None = None

    def only(self, columns: Tensor) -> Predictions:
        """Predictions of some binary tasks, by their indices (K,)."""

        def chosen(part: Tensor | None) -> Tensor | None:
            return part.index_select(1, columns) if part is not None and part.dim() == 2 else part

        latent = None
        if self.latent is not None:
            latent = Latent(*(chosen(getattr(self.latent, f.name)) for f in fields(Latent)[:7]))  # type: ignore[arg-type]
            latent.views = None if self.latent.views is None else self.latent.views.only(columns)
            latent.evidence = tuple(evidence.only(columns) for evidence in self.latent.evidence)
            latent.second = None if self.latent.second is None else self.latent.second.only(columns)
        log_p, log_q, log_score = (part.index_select(1, columns) for part in (self.log_p, self.log_q, self.log_score))
        return Predictions(log_p, log_q, log_score, latent, chosen(self.log_joint))

    @property
    def log_states(self) -> Tensor | None:
        """(B, S) log-probability of each hidden state, P(UP) first; None for models without any."""
        if self.latent is None:
            return None
        states = (
            [self.latent.log_up] if self.latent.second is None else [self.latent.log_up, self.latent.second.log_state]
        )
        return torch.stack(states, 1)


def _log_and(log_a: Tensor, log_b: Tensor, log_ratio: Tensor) -> Tensor:
    """log P(a, b) of two events from their log-probabilities and the logarithm of their odds ratio."""
    return log_a + log_b + log_lift(log_a, log_b, log_ratio)


def task_losses(predictions: Predictions, labels: Tensor, mask: Tensor, row_weights: Tensor | None = None) -> Tensor:
    """Mean cross entropy of each task, or loss of a regression, over the rows that train it: :func:`weighted_mean`.

    Args:
        predictions: predictions for B rows and T tasks.
        labels: (B, T) 0 or 1; standardised for a regression task.
        mask: (B, T) 1 where a row trains a task.
        row_weights: (B, 1 + T) weights of rows and of their labels, :attr:`Batch.weights`; None if all are 1.

    Returns:
        (T,) losses in nats; 0 for a task without rows in this batch.
    """
    nll = -torch.where(labels.bool(), predictions.log_p, predictions.log_q)
    if predictions.values is not None:
        columns = predictions.values.columns
        nll = nll.index_copy(1, columns, predictions.values.nll(labels.index_select(1, columns)))
    return weighted_mean(nll, mask if row_weights is None else mask * label_weights(row_weights))


def label_weights(row_weights: Tensor) -> Tensor:
    """(B, 1 + T) weights of rows and of their labels -> (B, T) weight of each label, with that of its row."""
    return row_weights[:, 1:] * row_weights[:, :1]


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of ``values`` (B, ...) over rows with ``weights`` of the same shape; 0 if all weights are 0.

    With several processes, the mean runs over the rows of all of them, and each process returns its share. Gradients
    are averaged over processes, so the result is that of the joint batch even if a process has little weight in it.
    """
    return (values * weights).sum(0) * world_size() / total(weights.sum(0)).clamp(min=_LEAST_WEIGHT)
