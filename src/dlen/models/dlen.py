"""DLEN: the Deep Latent Emotion Network, the whole paper in one file.

UP ("user prefers this item") is a hidden binary state that all tasks share and that is never labelled. For every task
t, label y_t and impression x:

    P(t) = P(t | UP) P(UP) + P(t | not UP) P(not UP)    total probability                 (1)
    P(not UP) = 1 - P(UP)                                                                 (2)
    P(t, UP) = P(t | UP) P(UP)                          the paper's ranking score         (4)
    0 < P(t | not UP) < bound                           what makes UP identifiable        (5)-(7)
    P(t | UP) = sigmoid(c),  P(t | not UP) = alpha sigmoid(n) base                        (8)-(10)

:class:`LatentHead` computes c, n and P(UP). ``LatentHead.mixture`` implements the equations in log space. The bound of
(5) to (7) is alpha times ``base``, the buffer ``log_ceiling``, by which ``mixture`` multiplies sigmoid(n).
:class:`Likelihood` selects the training loss: the paper's sum of cross entropies of (1), or :func:`joint_loss`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlen.checks import choice, is_number
from dlen.errors import UnmetNeedError
from dlen.models.backbones import EXPERT
from dlen.models.features import Features, FeatureSpec
from dlen.models.heads import TOWER, Head, Ranking, Towers, add_first_order, make_match, training_rates
from dlen.models.label_classes import LEAST_VIEWS, find_links, fit_classes, view_names
from dlen.models.latent_start import MOST_UP, START_UP, Bound, start_of, start_of_four
from dlen.models.latent_views import PrivilegedViews, ViewOdds, given_views
from dlen.models.predictions import Latent, Predictions, weighted_mean
from dlen.models.second_state import second_state, switches, tasks_of_states
from dlen.models.values import MixtureValues, centres
from dlen.nn.logspace import at_least_float32, log1mexp
from dlen.nn.mlp import MLP
from dlen.schema import Schema

FROM_LABELS = "labels"  # initial_up: from the labels' own classes


class Likelihood(StrEnum):
    """Likelihood that training maximises."""

    MARGINAL = "marginal"  # each label separately: the paper's sum of cross entropies of equation (1)
    FULL = "full"  # all labels of an impression jointly, with the hidden state summed out


class LatentHead(Head):
    """DLEN's head: a hidden state UP shared by all tasks, and two conditional probabilities per task.

    Each tower outputs the two logits c and n of equations (8) to (10). ``bound`` selects ``base``: P(t | UP), the
    training rate of t, or 1. For a dislike task, UP and not UP are swapped.

    For a regression task, c and n are the means of two normal densities of the label, which enter the likelihood like
    P(t | UP) and P(t | not UP), without a bound. Its prediction is the expectation over both states.

    The paper's settings are ``alpha=0.1, prediction="joint", likelihood="marginal"``. The defaults are the most
    accurate settings (docs/results.md).

    The hidden state network is an MLP on the input features. With ``match`` > 0, a dot product of user and item is
    added to its logit: preference is mostly a match of the two, a product that an MLP is slow to learn.

    Args:
        rep_dim: size H of the task representations.
        spec: layout of the input features, which the hidden state network takes as input.
        alpha: multiplier of the bound in (0, 1]: one number, or a mapping with one per task name.
        bound: what alpha multiplies.
        prediction: the probability used for ranking.
        likelihood: the likelihood that training maximises.
        tower: hidden layer sizes of each tower.
        hidden: layer sizes of the hidden state network; None for one constant P(UP), as an ablation of the network.
        match: number of factors of the user-item dot product in P(UP); 0 for none, as in the paper.
        detach_bound: with the conditional bound, stop the gradient from P(t | not UP) into P(t | UP).
        views: tasks of the same view may depend on each other given the state, in the full likelihood. ``auto`` joins
            tasks whose labels correlate by .3 or more; ``none`` takes all labels as independent, as the paper does;
            a mapping names each view's tasks. See :func:`~dlen.models.label_classes.find_links`.
        states: number of hidden states. With 2, the most frequent task and those in its view depend on a second state,
            W, such as watching, and all others on UP. ``auto`` means 2 if ``views=auto`` finds such tasks. A mapping of
            the names of W and of UP to their tasks chooses them. See :mod:`~dlen.models.second_state`.
        initial_up: initial P(UP) of a single state, raised if the training rates require it; ``labels`` starts P(UP),
            P(t | UP) and P(t | not UP) at the two classes that :func:`~dlen.models.label_classes.fit_classes` finds in
            the labels, if they have three views. Two states always start at the labels' classes.
        initial_leak: initial ratio P(t | not UP) / P(t | UP); lowered if the bound requires it. It determines which
            of the two states means preference, and where learning starts.
        dropout: dropout probability in the towers and the hidden state network.

    Raises:
        ValueError: alpha is outside (0, 1] or does not name every task, or an initial value is out of range.
        UnmetNeedError: there is no binary task, whose bound tells which state is UP.
    """

    of_labels = ("views", "privileged")

    def __init__(
        self,
        schema: Schema,
        rep_dim: int,
        spec: FeatureSpec,
        *,
        alpha: float | Mapping[str, float] = 1.0,
        bound: Bound | str = Bound.CONDITIONAL,
        prediction: Ranking | str = Ranking.TOTAL,
        likelihood: Likelihood | str = Likelihood.FULL,
        tower: Sequence[int] = TOWER,
        hidden: Sequence[int] | None = EXPERT,
        match: int = 0,
        detach_bound: bool = False,
        views: str | Mapping[str, Sequence[str]] = "auto",
        states: int | str | Mapping[str, Sequence[str]] = "auto",
        initial_up: float | str = FROM_LABELS,
        initial_leak: float = 0.05,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.detach_bound = detach_bound
        self.bound = choice("bound", bound, Bound)
        self.ranking = choice("prediction", prediction, Ranking)
        self.likelihood = choice("likelihood", likelihood, Likelihood)
        if initial_up != FROM_LABELS and not (is_number(initial_up) and 0 < float(initial_up) <= MOST_UP):
            raise ValueError(f"initial_up must be above 0 and at most {MOST_UP}, or {FROM_LABELS}, got {initial_up!r}")
        if not 0 < initial_leak < 1:
            raise ValueError(f"initial_leak must be above 0 and below 1, got {initial_leak}")
        base = training_rates(schema) if self.bound is Bound.PRIOR else [1.0] * len(schema.tasks)
        ceiling = [a * b for a, b in zip(_alphas(alpha, schema), base, strict=True)]
        self.register_buffer("log_ceiling", torch.tensor(ceiling, dtype=torch.float64).log().float())
        self.log_ceiling: Tensor
        self.register_buffer("dislike", torch.tensor([task.dislike for task in schema.tasks]), persistent=False)
        self.dislike: Tensor
        joint, given = self.likelihood is Likelihood.FULL, given_views(views, schema.task_names)
        links = find_links(schema, given) if joint else []
        self.view_names = view_names(schema, links)
        if not joint and states not in (1, "auto"):
            raise ValueError("states: a second hidden state needs likelihood=full; single labels tell nothing of it")
        if states == "auto" and given is not None:
            states = 1  # who names views says what UP explains
        of_states = tasks_of_states(states, schema, self.view_names)
        classes, self.state_names = None, ("up",)
        if of_states is not None:
            second, held = of_states
            self.state_names = ("up", second)
            self.second_tasks = tuple(name for name, own in zip(schema.task_names, held[0], strict=True) if own)
            links = [link for link in links if not held[0, [link.parent, link.child]].all()]
            switch = switches(held) ^ np.array([task.dislike for task in schema.tasks])
            self.register_buffer("switch", torch.from_numpy(switch), persistent=False)
            self.switch: Tensor
            start = start_of_four(schema, ceiling, self.bound, initial_leak, switch)
        else:
            if initial_up == FROM_LABELS and joint and schema.patterns and len(self.view_names) >= LEAST_VIEWS:
                classes = fit_classes(schema, tuple(links), START_UP, initial_leak)
            wanted = START_UP if initial_up == FROM_LABELS else float(initial_up)
            start = start_of(schema, ceiling, self.bound, wanted, initial_leak, classes)
        self.views = ViewOdds(links, None if classes is None else classes.log_ratios) if links else None
        self.regression = MixtureRegression(schema) if schema.regressions else None
        for index, centre in zip(schema.regressions, centres(schema), strict=True):
            # The expectation is the mean of training, and UP is more.
            start.pairs[index] = (centre + 1 - start.up, centre - start.up)
        self.register_buffer("start_pairs", torch.tensor(start.pairs), persistent=False)
        self.register_buffer("start_states", torch.tensor(start.states), persistent=False)
        self.start_pairs: Tensor
        self.start_states: Tensor
        self.towers = Towers(torch.tensor(start.pairs), rep_dim, tower, dropout)
        self.hidden = None if hidden is None else MLP(spec.width, hidden, dropout)
        self.hidden_output = nn.Linear(self.hidden.out_dim if self.hidden else 0, len(start.states))
        self.hidden_output.bias.data.copy_(self.start_states)
        self.privileged = PrivilegedViews(schema) if joint and schema.views else None
        self.match = make_match(spec, match, len(start.states))

    def forward(self, representations: Tensor, features: Features) -> Predictions:
        """Predict all tasks, with the hidden state."""
        c, n = self.towers(representations).unbind(2)  # (B, T) each
        c = add_first_order(c, features)
        x = features.flat
        states = self.hidden_output(x[:, :0] if self.hidden is None else self.hidden(x))
        if self.match is not None:
            states = states + self.match(features.fields)
        predictions = self.mixture(c, n, at_least_float32(states))
        if self.privileged is not None and predictions.latent is not None:
            predictions.latent.evidence = self.privileged(features.first_order)
        return predictions

    def mixture(self, c: Tensor, n: Tensor, states: Tensor) -> Predictions:
        """Apply equations (1) to (10).

        Args:
            c: (B, T) logits of P(t | UP).
            n: (B, T) logits of P(t | not UP) within its bound.
            states: (B, 1) logits of P(UP); or (B, 3) of P(W), P(UP | W) and P(UP | not W), with a second state W.
        """
        log_c, log_not_c = F.logsigmoid(c), F.logsigmoid(-c)  # (8)
        log_n = self.log_ceiling.to(n.dtype) + F.logsigmoid(n)  # (9), (10), within the bound of (5) to (7)
        if self.bound is Bound.CONDITIONAL:
            log_n = log_n + (log_c.detach() if self.detach_bound else log_c)
        on, off = (log_c, log_not_c), (log_n, log1mexp(log_n))
        if len(self.state_names) == 1:
            second, (log_up, log_not_up) = None, (F.logsigmoid(states), F.logsigmoid(-states))  # (2)
            conditionals = *self._swap_dislikes(on[0], off[0]), *self._swap_dislikes(on[1], off[1])
        else:
            second, (log_up, log_not_up) = second_state(states, self.switch, on, off)
            conditionals = second.conditionals_of_up()
        given_up, given_not_up, not_given_up, not_given_not_up = conditionals
        with_up, without = given_up + log_up, given_not_up + log_not_up  # (4)
        log_p = torch.logaddexp(with_up, without)  # (1)
        log_q = torch.logaddexp(not_given_up + log_up, not_given_not_up + log_not_up)
        joint = torch.where(self.dislike, without, with_up)
        latent = Latent(log_up[:, 0], log_not_up[:, 0], *conditionals, joint, second=second)
        latent.views = None if self.views is None else self.views()
        if self.regression is not None:
            latent.values = self.regression(c, n, latent)
            columns, expected = latent.values.columns, latent.values.expected - self.regression.centres
            log_p = log_p.index_copy(1, columns, F.logsigmoid(expected))
            log_q = log_q.index_copy(1, columns, F.logsigmoid(-expected))
            joint = joint.index_copy(1, columns, F.logsigmoid(expected))
        score = joint if self.ranking is Ranking.JOINT else log_p
        return Predictions(log_p, log_q, score, latent, values=latent.values)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters of the hidden state network, the match and the views, and the deviations of regression tasks."""
        parts = (self.hidden, self.hidden_output, self.match, self.regression, self.views, self.privileged)
        modules = [m for m in parts if m is not None]
        return [p for module in modules for p in module.parameters()]

    def _swap_dislikes(self, strong: Tensor, bounded: Tensor) -> tuple[Tensor, Tensor]:
        """Order a pair of (B, T) values as (UP, not UP): swap them for dislike tasks."""
        return torch.where(self.dislike, bounded, strong), torch.where(self.dislike, strong, bounded)

    def loss(
        self,
        predictions: Predictions,
        labels: Tensor,
        mask: Tensor,
        weights: Tensor,
        row_weights: Tensor | None = None,
        bins: Tensor | None = None,
    ) -> Tensor:
        """Cross entropies of equation (1), or the joint likelihood of all labels, as set by ``likelihood``."""
        if self.likelihood is Likelihood.MARGINAL:
            return super().loss(predictions, labels, mask, weights, row_weights)
        assert predictions.latent is not None
        latent, of_labels, rows = predictions.latent, mask * weights, None
        if row_weights is not None:
            of_labels, rows = of_labels * row_weights[:, 1:], row_weights[:, 0]
        if bins is None:
            return joint_loss(latent, labels, of_labels, rows)
        known = replace(latent, evidence=tuple(evidence.detach() for evidence in latent.evidence))
        return joint_loss(known, labels, of_labels, rows, bins) + self._density_loss(latent, labels, mask, rows, bins)

    def _density_loss(self, latent: Latent, labels: Tensor, mask: Tensor, rows: Tensor | None, bins: Tensor) -> Tensor:
        """Negative log-likelihood of the bins, given a state whose probability follows from the labels alone.

        The densities are fitted to what UP meant at the start, before the network and the bins. Fitted together with
        it, they would decide what UP means: a play time says more of its user and item than rare labels say of UP.
        """
        with torch.no_grad():
            c, n = self.start_pairs[None].unbind(2)
            start = self.mixture(c, n, self.start_states[None]).latent
            assert start is not None
            odds = start.posterior_log_odds(labels, mask)
        of_up, of_not_up = latent.log_evidence(labels, mask, bins)
        nll = -torch.logaddexp(F.logsigmoid(odds) + of_up, F.logsigmoid(-odds) + of_not_up)
        return nll.mean() if rows is None else weighted_mean(nll, rows)

    def task_losses(
        self, predictions: Predictions, labels: Tensor, mask: Tensor, row_weights: Tensor | None = None
    ) -> Tensor:
        """Cross entropies of equation (1)."""
        if self.likelihood is Likelihood.FULL:
            raise ValueError(
                "DLEN's full likelihood is a single loss for all tasks and cannot be balanced; set "
                "model.head.likelihood=marginal"
            )
        return super().task_losses(predictions, labels, mask, row_weights)


class MixtureRegression(nn.Module):
    """The regression tasks of DLEN's head: a normal density of the standardised label in each state.

    Args:
        schema: schema with at least one regression task.

    Raises:
        UnmetNeedError: there is no binary task.
    """

    columns: Tensor
    centres: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        if not schema.binary.tasks:
            raise UnmetNeedError("dlen needs a task of 0 and 1 besides its regressions; use another model")
        self.register_buffer("columns", torch.tensor(schema.regressions), persistent=False)
        self.register_buffer("centres", torch.tensor(centres(schema)), persistent=False)
        self.log_deviation = nn.Parameter(torch.zeros(len(schema.regressions)))

    def forward(self, c: Tensor, n: Tensor, latent: Latent) -> MixtureValues:
        """Take the means from the (B, T) outputs of all towers."""
        up, not_up = (outputs.index_select(1, self.columns) for outputs in (c, n))
        return MixtureValues(self.columns, latent.log_up, latent.log_not_up, up, not_up, self.log_deviation)


def joint_loss(
    latent: Latent, labels: Tensor, mask: Tensor, rows: Tensor | None = None, bins: Tensor | None = None
) -> Tensor:
    """Mean negative log-likelihood of all labels of an impression jointly, with the hidden state summed out.

        -log( P(UP) prod_t P(y_t | UP) + P(not UP) prod_t P(y_t | not UP) )

    The sum of cross entropies of equation (1) treats labels separately. This loss also uses which labels occur
    together: a positive of one task shows that the negatives next to it are habit, not dislike. Its gradient is that
    of expectation maximisation with exact posteriors.

    Args:
        labels: (B, T) 0 or 1; standardised for a regression task.
        mask: (B, T) weight of each label, the exponent of its probability; 0 ignores it.
        rows: (B,) weight of each row, a factor of its log-likelihood; None if all are 1.
        bins: (B, V) bins of what is known only afterwards, :attr:`Batch.views`; None without any.

    Returns:
        Scalar, in nats per impression.
    """
    nll = -torch.logaddexp(*latent.log_with_labels(labels, mask, bins))
    return nll.mean() if rows is None else weighted_mean(nll, rows)


def _alphas(alpha: float | Mapping[str, float], schema: Schema) -> list[float]:
    """Alpha of each task; 1 for a regression, which has no bound."""
    tasks = schema.binary.task_names
    if isinstance(alpha, Mapping):
        if set(alpha) != set(tasks):
            raise ValueError(f"alpha must name every task ({', '.join(tasks)}), got {', '.join(alpha)}")
        values = [alpha.get(t, 1.0) for t in schema.task_names]
    else:
        values = [alpha] * len(schema.tasks)
    for value in values:
        if not is_number(value) or not 0 < value <= 1:
            raise ValueError(f"alpha must be above 0 and at most 1, got {value!r}")
    return values
