"""Metrics of DLEN's hidden state (distribution, AUCs, calibration), and warnings with a remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, PearsonCorrCoef

from dlen.batch import Batch
from dlen.metrics import CalibrationError, CalibrationRatio, ExactAUC, HiddenState, HistogramAUC
from dlen.metrics.hidden import NEGATIVES, Together
from dlen.models.label_classes import LEAST_VIEWS
from dlen.models.predictions import Latent
from dlen.nn.logspace import log_odds
from dlen.schema import Schema
from dlen.targets import Targets

PREFERS, UP = "prefers", "up"  # simulator columns: the sampled hidden state, and its probability
_LEAST_STD = 0.02
_MOST_SATURATED = 0.95
_MOST_RATIO = 0.8
_DEVIATIONS = 3.0  # half of an interval of a lift: many pairs are looked at
_MOST_LIFT = 1.5  # lower end of a lift from which two tasks should be one view
_SHOWN = 3  # pairs in warnings


@dataclass(frozen=True, slots=True)
class Pair:
    """How often two tasks happen in the same row, beside what the model expects.

    Attributes:
        tasks: names of both tasks.
        lift: observed over expected number of rows; 1 if labels depend on each other only through what the model knows.
        low: lower end of the interval of ``lift``, at three standard deviations.
        high: its upper end.
    """

    tasks: tuple[str, str]
    lift: float
    low: float
    high: float


@dataclass(slots=True)
class HiddenFigures:
    """Data for a plot of the hidden state.

    Attributes:
        tasks: names of the T tasks that are interactions.
        counts: (3, bins) numbers of rows by label pattern and P(UP).
        kinds: (T, 3) shares of the negatives: other positive, silent liking, detest.
        true_kinds: the same shares by the simulator's hidden state; None on real logs.
        pairs: pairs of tasks of which at least one row is expected.
    """

    tasks: list[str]
    counts: Tensor
    kinds: Tensor
    true_kinds: Tensor | None
    pairs: list[Pair]


class LatentMeasures(nn.Module):
    """All metrics of P(UP).

    Keys: ``auc/up_any`` and ``auc/up_DISLIKE``; ``hidden/...``, with ``hidden/auc/T`` of P(UP) against each other task;
    ``leak/T`` and ``negatives/KIND/T``; ``lift/T/T``, the number of rows in which two tasks happen over the number that
    the model expects. With a second hidden state, ``hidden/STATE/auc/T`` and ``hidden/STATE/mean`` of its probability.
    On simulated data also ``auc/up_truth``, ``corr/up_truth``, ``calibration/up_truth``,
    ``ece/up_truth``, ``negatives_true/KIND/T``, and ``corr/STATE_truth``.

    Args:
        schema: schema without regression tasks.
        exact: compute AUC from every score instead of a histogram.
        states: names of the hidden states.
    """

    first: Tensor
    second: Tensor
    disliked: Tensor

    def __init__(self, schema: Schema, *, exact: bool, states: Sequence[str] = (UP,)) -> None:
        super().__init__()
        self.others = nn.ModuleList(StateMeasures(schema, name, exact=exact) for name in states[1:])
        self.targets = Targets(schema)
        truth = list(schema.truth)
        self.has_truth = PREFERS in truth and UP in truth
        self.prefers, self.up = (truth.index(n) if self.has_truth else -1 for n in (PREFERS, UP))
        self.dislikes = [i for i, t in enumerate(schema.tasks) if t.dislike]
        self.register_buffer("disliked", torch.tensor([t.dislike for t in schema.tasks]), persistent=False)
        self.interactions = [i for i, t in enumerate(schema.tasks) if not t.dislike]
        of_tasks = (f"auc/up_{t.name}" if t.dislike else f"hidden/auc/{t.name}" for t in schema.tasks)
        self.names = ["auc/up_any", *of_tasks]
        self.names += ["auc/up_truth"] if self.has_truth else []
        self.auc = ExactAUC(len(self.names)) if exact else HistogramAUC(len(self.names))
        self.state = HiddenState(_relations(schema))
        first, second = torch.combinations(torch.arange(len(schema.tasks))).unbind(1)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        self.together = Together(len(first))
        if self.has_truth:
            self.corr, self.ratio, self.ece = PearsonCorrCoef(), CalibrationRatio(1), CalibrationError(1)

    def any_interaction(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) labels -> (B, 1) whether any interaction happened, and (B, 1) whether the labels decide it.

        Dislikes are not interactions. One positive label decides it even if others are missing.
        """
        if not self.interactions:
            return torch.zeros_like(labels[:, :1]), torch.ones_like(labels[:, :1])
        chosen = labels[:, self.interactions]
        happened = (chosen == 1).any(1, keepdim=True)
        decided = happened | ~chosen.isnan().any(1, keepdim=True)
        return happened.to(labels.dtype), decided.to(labels.dtype)

    def update(self, latent: Latent, batch: Batch) -> None:
        """Add the rows of one batch."""
        labels, mask = self.targets.training_labels(batch.labels), self.targets.trained(batch.labels)
        up, (interacts, decided) = latent.log_up.exp(), self.any_interaction(batch.labels)
        posterior = latent.posterior_log_odds(labels, mask, batch.known_views).sigmoid()
        given = torch.stack([latent.log_given_up, latent.log_given_not_up], 2).exp()
        pattern = interacts[:, 0].long()
        if self.dislikes:
            pattern = torch.where((batch.labels[:, self.dislikes] == 1).any(1), 2, pattern)
        prefers = batch.truth[:, self.prefers] if self.has_truth else None
        self.state.update(up, posterior, given, labels, mask, pattern, prefers)
        self._update_pairs(latent, labels, mask)
        if latent.second is not None:
            for other in self._of_others():
                other.update(latent.second.log_state, batch)
        log_odds = (latent.log_up - latent.log_not_up)[:, None]
        comparisons = [(log_odds, interacts, decided)]
        signs = torch.where(self.disliked, -log_odds, log_odds)
        comparisons.append((signs, batch.labels.nan_to_num(), self.targets.measured(batch.labels)))
        if self.has_truth:
            truth = batch.truth[:, [self.prefers]]
            comparisons.append((log_odds, truth, torch.ones_like(truth)))
            self.corr.update(up, batch.truth[:, self.up])
            everywhere, log_up = torch.ones_like(truth), latent.log_up[:, None]
            self.ratio.update(log_up, truth, everywhere)
            self.ece.update(log_up, truth, everywhere)
        scores, wanted, counted = (torch.cat(columns, 1) for columns in zip(*comparisons, strict=True))
        self.auc.update(scores, wanted, counted)

    def _update_pairs(self, latent: Latent, labels: Tensor, mask: Tensor) -> None:
        (a, b), (known_a, known_b) = ([x.index_select(1, i) for i in (self.first, self.second)] for x in (labels, mask))
        self.together.update(a * b, latent.log_both(self.first, self.second).exp(), known_a * known_b)

    def _of_others(self) -> list[StateMeasures]:
        return list(self.others)  # type: ignore[arg-type]

    def _pairs(self) -> list[Pair]:
        names = self.targets.schema.task_names
        tasks = [(names[a], names[b]) for a, b in zip(self.first.tolist(), self.second.tolist(), strict=True)]
        found = []
        for pair, (observed, expected, deviation) in zip(tasks, self.together.compute().T.tolist(), strict=True):
            if expected >= 1:
                spread = _DEVIATIONS * deviation
                ends = (max(observed - spread, 0.0), observed + spread)
                found.append(Pair(pair, observed / expected, *(end / expected for end in ends)))
        return found

    def compute(self) -> tuple[dict[str, float], HiddenFigures]:
        """Return all metrics so far, nan if undefined, and the data for a plot."""
        values = dict(zip(self.names, self.auc.compute().reshape(-1).tolist(), strict=True))
        if self.has_truth:
            values["corr/up_truth"] = float(self.corr.compute())
            values["calibration/up_truth"] = float(self.ratio.compute())
            values["ece/up_truth"] = float(self.ece.compute())
        state = self.state.compute()
        values |= {f"hidden/{key}": float(state[key]) for key in ("mean", "std", "saturated", "p10", "p50", "p90")}
        names = self.targets.schema.task_names
        tasks = [names[i] for i in self.interactions]
        # The leak of a dislike is its rate given UP: how often it happens although the user prefers the item.
        ratio = [1 / r if i in self.dislikes else r for i, r in enumerate(state["ratio"].reshape(-1).tolist())]
        values |= {f"leak/{n}": r for n, r in zip(names, ratio, strict=True)}
        for prefix, key in (("negatives", "kinds"), ("negatives_true", "true_kinds")):
            if key == "kinds" or self.has_truth:
                for task, row in zip(tasks, state[key][self.interactions].tolist(), strict=True):
                    values |= {f"{prefix}/{kind}/{task}": v for kind, v in zip(NEGATIVES, row, strict=True)}
        true_kinds = state["true_kinds"][self.interactions] if self.has_truth else None
        pairs = self._pairs()
        for other in self._of_others():
            values |= other.compute()
        values |= {"lift/" + "/".join(pair.tasks): pair.lift for pair in pairs}
        return values, HiddenFigures(tasks, state["counts"], state["kinds"][self.interactions], true_kinds, pairs)


class StateMeasures(nn.Module):
    """Metrics of a second hidden state: ``hidden/STATE/auc/T``, ``hidden/STATE/mean`` and ``corr/STATE_truth``.

    Args:
        schema: schema without regression tasks.
        name: name of the state, and of the column with its true probability on simulated data.
        exact: compute AUC from every score instead of a histogram.
    """

    def __init__(self, schema: Schema, name: str, *, exact: bool) -> None:
        super().__init__()
        self.name, self.targets = name, Targets(schema)
        self.column = schema.truth.index(name) if name in schema.truth else None
        self.auc = ExactAUC(len(schema.tasks)) if exact else HistogramAUC(len(schema.tasks))
        self.mean = MeanMetric()
        self.corr = PearsonCorrCoef() if self.column is not None else None

    def update(self, log_state: Tensor, batch: Batch) -> None:
        """Add (B,) log-probabilities of the state for the rows of one batch."""
        scores = log_odds(log_state)[:, None].expand_as(batch.labels)
        self.auc.update(scores, batch.labels.nan_to_num(), self.targets.measured(batch.labels))
        self.mean.update(log_state.exp())
        if self.corr is not None:
            self.corr.update(log_state.exp(), batch.truth[:, self.column])

    def compute(self) -> dict[str, float]:
        """Return all metrics so far, nan if undefined."""
        aucs = zip(self.targets.schema.task_names, self.auc.compute().reshape(-1).tolist(), strict=True)
        values = {f"hidden/{self.name}/auc/{task}": auc for task, auc in aucs}
        values[f"hidden/{self.name}/mean"] = float(self.mean.compute())
        if self.corr is not None:
            values[f"corr/{self.name}_truth"] = float(self.corr.compute())
        return values


def _relations(schema: Schema) -> Tensor:
    """(T, T) 1 where a positive explains a negative: interactions other than the task itself and its parents."""
    relations = torch.zeros(len(schema.tasks), len(schema.tasks))
    for i, task in enumerate(schema.tasks):
        chain = set(schema.chain(task.name))
        for j, other in enumerate(schema.tasks):
            relations[i, j] = float(j not in chain and not other.dislike)
    return relations


def view_warnings(pairs: Sequence[Pair], views: Sequence[Sequence[str]]) -> list[str]:
    """Warnings about labels that the hidden state does not explain.

    Args:
        pairs: pairs of tasks with their lifts.
        views: tasks of each view of the head.
    """
    lines = []
    if 1 < len(views) < LEAST_VIEWS:
        lines.append(
            f"the labels are {len(views)} views of P(UP) ({'; '.join('+'.join(view) for view in views)}), and labels "
            f"identify it from {LEAST_VIEWS} on: it may mean what one task alone does; add a task of another kind"
        )
    view_of = {task: view for view in views for task in view}
    known = [p for p in pairs if p.low > _MOST_LIFT and set(p.tasks) <= view_of.keys()]
    apart = [p for p in known if view_of[p.tasks[0]] is not view_of[p.tasks[1]]]
    for pair in sorted(apart, key=lambda p: -p.low)[:_SHOWN]:
        joined = [*view_of[pair.tasks[0]], *view_of[pair.tasks[1]]]
        others = [view for view in views if len(view) > 1 and not set(view) & set(joined)]
        setting = ",".join(f"{'_'.join(view)}:[{','.join(view)}]" for view in [*others, joined])
        lines.append(
            f"{' and '.join(pair.tasks)} are positive together in {pair.lift:.1f} ({pair.low:.1f} to {pair.high:.1f}) "
            f"times as many rows as P(UP) explains: they share more than it; 'model.head.views={{{setting}}}' says so"
        )
    return lines


def warnings(values: Mapping[str, float], tasks: Sequence[str]) -> list[str]:
    """Warnings about failures of the hidden state, each with a remedy; empty if there are none."""
    mean, std = values["hidden/mean"], values["hidden/std"]
    lines = []
    if std < _LEAST_STD:
        lines.append(
            f"P(UP) is nearly constant ({mean:.3f} with a deviation of {std:.3f}), so the hidden state explains "
            "nothing and DLEN reduces to its backbone: lower model.head.alpha or train longer, or use the backbone "
            "alone if the tasks share no preference"
        )
    elif values["hidden/saturated"] > _MOST_SATURATED:
        share = values["hidden/saturated"]
        lines.append(
            f"P(UP) is saturated: {share:.0%} of the rows are within 0.01 of 0 or 1 and no longer learn; lower "
            "optimizer.lr, or raise model.dropout"
        )
    ignoring = [t for t in tasks if values[f"leak/{t}"] > _MOST_RATIO]
    if ignoring:
        lines.append(
            f"P(t | not UP) is nearly P(t | UP) for {', '.join(ignoring)}: their towers ignore the hidden state; lower "
            "model.head.alpha"
        )
    return lines
