"""Measures: all metrics of a validation or test pass, under fixed keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from dlen.batch import Batch
from dlen.errors import UserError
from dlen.label_scale import LabelScale
from dlen.metric_names import MEASURES
from dlen.metrics import (
    ByUser,
    CalibrationError,
    CalibrationRatio,
    ExactAUC,
    HistogramAUC,
    LogLoss,
    MTLGain,
    NormalizedEntropy,
    RegressionErrors,
)
from dlen.metrics.by_user import NDCG_AT
from dlen.metrics.functional import EXACT_ROWS, auc_weight, mean_of_defined
from dlen.models.heads import Ranking
from dlen.models.predictions import Predictions
from dlen.nn.logspace import log1mexp, log_odds
from dlen.nn.processes import total
from dlen.schema import Schema
from dlen.targets import Targets
from dlen.training.latent import PREFERS, UP, HiddenFigures, LatentMeasures
from dlen.training.own_metrics import OwnMeasures, OwnMetric

_ROC_POINTS = 101  # maximum number of points of a stored curve


@dataclass(slots=True)
class Figures:
    """The metrics of a pass.

    Attributes:
        values: defined metrics by key, such as ``auc/click``.
        undefined: reason for each key without a value.
        hidden: data for a plot of DLEN's hidden state; None for other models.
        curves: curves by target; test pass only.
    """

    values: dict[str, float]
    undefined: dict[str, str]
    hidden: HiddenFigures | None = None
    curves: dict[str, Curves] = field(default_factory=dict)


@dataclass(slots=True)
class Curves:
    """ROC curve and reliability diagram of one target.

    Attributes:
        roc: (2, P) false positive and true positive rates at falling thresholds; empty if one class is absent.
        reliability: (3, G) sums of rows, probabilities and labels in groups of equal size and rising probability; None
            if the score is not a probability of the target.
    """

    roc: Tensor
    reliability: Tensor | None


class Measures(nn.Module):
    """All metrics of one pass over one split.

    Keys:
        - ``auc/T``, ``logloss/T``, ``ne/T``, ``calibration/T`` and ``ece/T`` for each target T.
        - ``auc/mean`` over tasks, and ``auc/weighted`` with the weights of
          :func:`dlen.metrics.functional.auc_weight`.
        - ``logloss/labels`` of all labels of a row jointly: dependent through DLEN's hidden state, independent for
          other models.
        - ``gauc/T``, ``ndcg@10/T`` and ``users_without_auc/T`` with ``by_user``.
        - ``gain/T`` and ``gain/mean`` with a base run.
        - ``oracle/T`` on simulated data.
        - ``rmse/T``, ``mae/T``, ``xauc/T`` and ``spearman/T`` of each regression task, and ``xauc/mean``; see
          :class:`dlen.metrics.RegressionErrors`. All other keys are of the binary tasks.
        - For DLEN, ``auc_total/T`` or ``auc_joint/T`` (the probability not used for ranking), and the keys of
          :class:`LatentMeasures`.

    Args:
        auc: ``histogram`` (constant memory), ``exact``, or ``auto``: exact up to 2^18 rows.
        rows: number of rows of the split.
        ranking: DLEN's probability used for ranking; None for other models.
        base: AUC by target of the base run.
        by_user: also compute ranking metrics within each user's rows, if the schema names a user. Rows of users that
            are not in the training rows are excluded.
        own: the user's own metrics by name, for the keys ``NAME/T`` and ``NAME/mean``.
        states: names of the hidden states of a model with ``ranking``.
    """

    def __init__(
        self,
        schema: Schema,
        auc: str = "auto",
        rows: int = 0,
        ranking: Ranking | None = None,
        base: Mapping[str, float] | None = None,
        by_user: bool = False,
        own: Mapping[str, OwnMetric] | None = None,
        states: Sequence[str] = (UP,),
    ) -> None:
        super().__init__()
        self.values = ValueMeasures(schema, auc) if schema.regressions else None
        schema = schema.binary
        self.targets = Targets(schema)
        self.own = OwnMeasures(own, self.targets.names) if own else None
        self.ranking = ranking
        self.num_tasks = len(schema.tasks)
        names = self.targets.names
        if auc == "auto":
            auc = "exact" if rows <= EXACT_ROWS else "histogram"
        self.auc = _make_auc(auc, len(names))
        self.logloss, self.ratio = LogLoss(len(names)), CalibrationRatio(len(names))
        self.labels_loss = MeanMetric(nan_strategy="ignore")
        self.ece, self.entropy = CalibrationError(len(names)), NormalizedEntropy(len(names))
        self.user_column = schema.user_column if by_user else None
        self.unknown_user = 0 if self.user_column is None else schema.offsets[str(schema.user)]
        self.by_user = None if self.user_column is None else ByUser(len(names))
        base_values = [(base or {}).get(n, math.nan) for n in names]
        self.gain = MTLGain(self.auc, base_values) if base else None
        self.other_auc = _make_auc(auc, len(names)) if ranking else None
        self.latent = LatentMeasures(schema, exact=auc == "exact", states=states) if ranking else None
        truth = list(schema.truth)
        self.oracle_names = [n for n in names if n in truth]
        self.oracle_columns = [truth.index(n) for n in self.oracle_names]
        self.up_column = truth.index(UP) if UP in truth else None
        self.prefers_column = truth.index(PREFERS) if PREFERS in truth else None
        ceilings = len(self.oracle_names) + 2 * (self.up_column is not None)
        self.oracle = _make_auc(auc, ceilings) if self.oracle_names else None
        self.interactions = [i for i, t in enumerate(schema.tasks) if not t.dislike]

    def update(self, predictions: Predictions, batch: Batch) -> None:
        """Add the rows of one batch."""
        if self.values is not None:
            predictions, batch = self.values.update(predictions, batch)
            if not self.targets.names:
                return
        labels, mask = self.targets.labels(batch.labels)
        scores = self.targets.log_probabilities(predictions.log_score)
        log_p = self.targets.log_probabilities(predictions.log_p)
        # Heads return complements for the tasks only; those of joint events are computed from their probabilities.
        log_q = torch.cat([predictions.log_q, log1mexp(log_p[:, self.num_tasks :])], 1)
        (self.gain or self.auc).update(log_odds(scores), labels, mask)
        self.logloss.update(log_p, log_q, labels, mask)
        self.labels_loss.update(self._labels_loss(predictions, batch))
        self.ratio.update(log_p, labels, mask)
        self.ece.update(log_p, labels, mask)
        self.entropy.update(log_p, log_q, labels, mask)
        if self.own is not None:
            self.own.update(log_p, labels, mask)
        if self.by_user is not None:
            if len(batch.users):
                users, nobody = batch.users, 0
            else:  # all users not seen in training share one id
                users, nobody = batch.ids[:, self.user_column], self.unknown_user
            self.by_user.update(scores, labels, mask * (users != nobody)[:, None], users)
        if predictions.latent is not None:
            assert self.latent is not None
            assert self.other_auc is not None
            self.latent.update(predictions.latent, batch)
            other = predictions.log_p if self.ranking is Ranking.JOINT else predictions.latent.log_joint
            self.other_auc.update(log_odds(self.targets.log_probabilities(other)), labels, mask)
        if self.oracle is not None:
            self._update_oracle(batch, labels, mask)

    def _labels_loss(self, predictions: Predictions, batch: Batch) -> Tensor:
        """(B,) joint negative log-likelihood of the labels of a row that train a task."""
        labels, mask = self.targets.training_labels(batch.labels), self.targets.trained(batch.labels)
        if predictions.latent is not None:
            return -torch.logaddexp(*predictions.latent.log_with_labels(labels, mask))
        return -(torch.where(labels.bool(), predictions.log_p, predictions.log_q) * mask).sum(1)

    def _update_oracle(self, batch: Batch, labels: Tensor, mask: Tensor) -> None:
        assert self.oracle is not None
        known = [self.targets.names.index(n) for n in self.oracle_names]
        scores, wanted, mask = batch.truth[:, self.oracle_columns], labels[:, known], mask[:, known]
        if self.up_column is not None and self.prefers_column is not None:
            any_interaction = batch.labels[:, self.interactions].amax(1, keepdim=True)
            up = batch.truth[:, [self.up_column]].expand(-1, 2)
            scores = torch.cat([scores, up], 1)
            wanted = torch.cat([wanted, any_interaction, batch.truth[:, [self.prefers_column]]], 1)
            mask = torch.cat([mask, torch.ones_like(up)], 1)
        self.oracle.update(torch.logit(scores), wanted, mask)

    def compute(self) -> Figures:
        """Return all metrics so far, over all processes."""
        figures = Figures({}, {})
        if self.targets.names:
            self._compute_binary(figures)
        if self.values is not None:
            _put_all(figures, self.values.compute(), "too few rows, or all alike")
        return figures

    def _compute_binary(self, figures: Figures) -> None:
        names = self.targets.names
        counts = (self.logloss.rows.clone(), self.ratio.observed.clone())  # of this process, to give reasons
        columns = {"auc": _column(self.auc), "logloss": _column(self.logloss), "ne": _column(self.entropy)}
        columns |= {"calibration": _column(self.ratio), "ece": _column(self.ece)}
        if self.gain is not None:
            columns["gain"] = self.gain.compute()[:-1]
        if self.other_auc is not None:
            key = "auc_total" if self.ranking is Ranking.JOINT else "auc_joint"
            columns[key] = _column(self.other_auc)
        broken = [n for n, value in zip(names, columns["logloss"].tolist(), strict=True) if math.isnan(value)]
        broken = [n for n in broken if counts[0][names.index(n)] > 0]
        if broken:
            raise UserError(
                f"the predictions of {', '.join(broken)} are NaN: training has diverged; lower optimizer.lr and "
                "optimizer.embedding_lr, and check numeric fields for extreme values"
            )
        for key, column in columns.items():
            for index, name in enumerate(names):
                self._put(figures, f"{key}/{name}", float(column[index]), index, counts)
        self._means(figures, *(total(c).tolist() for c in counts))
        _put_all(figures, {"logloss/labels": float(self.labels_loss.compute())}, "no rows")
        if self.by_user is not None:
            for name, of_users in zip(names, self.by_user.compute(), strict=True):
                _put_all(figures, {f"gauc/{name}": of_users.gauc}, "no user has both classes")
                _put_all(figures, {f"ndcg@{NDCG_AT}/{name}": of_users.ndcg}, "no user has a positive")
                figures.values[f"users_without_auc/{name}"] = of_users.left_out / max(of_users.users, 1)
        if self.own is not None:
            _put_all(figures, self.own.compute(), "not defined on these rows")
        if self.latent is not None:
            values, figures.hidden = self.latent.compute()
            _put_all(figures, values)
        if self.oracle is not None:
            ceilings = [*self.oracle_names, *(("up_any", "up_truth") if self.up_column is not None else ())]
            _put_all(figures, dict(zip([f"oracle/{n}" for n in ceilings], _column(self.oracle).tolist(), strict=True)))

    def _put(self, figures: Figures, key: str, value: float, index: int, counts: tuple[Tensor, Tensor]) -> None:
        rows, positives = (int(c[index]) for c in counts)
        measure = key.split("/")[0]
        if measure in ("logloss", "ne", "calibration", "ece") and not self.targets.is_probability()[index]:
            joint = self.targets.schema.tasks[index].joint
            figures.undefined[key] = f"trained on all rows, so the probability is that of {joint}"
        elif not math.isnan(value):
            figures.values[key] = value
        elif measure == "gain" and not math.isnan(figures.values.get(f"auc/{key.split('/')[1]}", math.nan)):
            figures.undefined[key] = "the base run has no such metric"
        else:
            absent = "no rows" if rows == 0 else "no positives" if positives == 0 else "no negatives"
            figures.undefined[key] = f"{absent} among {rows} observed rows"

    def _means(self, figures: Figures, rows: list[float], positives: list[float]) -> None:
        tasks = self.targets.names[: self.num_tasks]
        for measure in ("auc", "gain"):
            mean = mean_of_defined(figures.values.get(f"{measure}/{t}", math.nan) for t in tasks)
            if not math.isnan(mean):
                figures.values[f"{measure}/mean"] = mean
        weights = [auc_weight(p, n - p) for n, p in zip(rows, positives, strict=True)]
        weighed = [
            (figures.values[f"auc/{t}"], w)
            for t, w in zip(tasks, weights, strict=False)
            if f"auc/{t}" in figures.values
        ]
        if weighed:
            figures.values["auc/weighted"] = sum(v * w for v, w in weighed) / sum(w for _, w in weighed)

    def curves(self) -> dict[str, Curves]:
        """Return the curves of each target, over all processes."""
        if not self.targets.names:
            return {}
        columns = zip(self.auc.roc(_ROC_POINTS), self.ece.reliability(), self.targets.is_probability(), strict=True)
        return {
            name: Curves(roc, reliability if probability else None)
            for name, (roc, reliability, probability) in zip(self.targets.names, columns, strict=True)
        }

    def reset(self) -> None:
        """Discard all rows."""
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()


class ValueMeasures(nn.Module):
    """All metrics of the regression tasks, and the way from all tasks to the binary ones.

    Args:
        schema: schema with at least one regression task.
        auc: ``exact`` keeps all rows, as for the AUC.
    """

    binary: Tensor

    def __init__(self, schema: Schema, auc: str) -> None:
        super().__init__()
        self.targets, self.scale = Targets(schema), LabelScale(schema)
        self.names = [schema.tasks[index].name for index in schema.regressions]
        binary = [index for index, task in enumerate(schema.tasks) if not task.is_regression]
        self.register_buffer("binary", torch.tensor(binary, dtype=torch.int64), persistent=False)
        self.errors = RegressionErrors(len(self.names), None if auc == "exact" else EXACT_ROWS)

    def update(self, predictions: Predictions, batch: Batch) -> tuple[Predictions, Batch]:
        """Add the rows of a batch. Returns its predictions and labels of the binary tasks only.

        Raises:
            UserError: the head predicts no numbers.
        """
        if predictions.values is None:
            raise UserError(f"the model predicts no number for {', '.join(self.names)}; set Predictions.values")
        columns = self.scale.columns
        mask = self.targets.measured(batch.labels).index_select(1, columns)
        labels, expected = batch.labels.index_select(1, columns), predictions.values.expected
        self.errors.update(self.scale(expected), self.scale(labels), mask)
        return predictions.only(self.binary), replace(batch, labels=batch.labels.index_select(1, self.binary))

    def compute(self) -> dict[str, float]:
        """Values by ``MEASURE/TASK``, and ``xauc/mean``; nan if undefined."""
        table = self.errors.compute().tolist()
        values = {
            f"{m}/{t}": v for t, row in zip(self.names, table, strict=True) for m, v in zip(MEASURES, row, strict=True)
        }
        rows = self.errors.rows.tolist()
        broken = [t for t, n in zip(self.names, rows, strict=True) if n and not math.isfinite(values[f"rmse/{t}"])]
        if broken:
            raise UserError(
                f"the predictions of {', '.join(broken)} are not finite: training has diverged; lower optimizer.lr and "
                "optimizer.embedding_lr, and check numeric fields for extreme values"
            )
        return values | {"xauc/mean": mean_of_defined(values[f"xauc/{t}"] for t in self.names)}


def _make_auc(kind: str, num_targets: int) -> HistogramAUC | ExactAUC:
    return ExactAUC(num_targets) if kind == "exact" else HistogramAUC(num_targets)


def _column(metric: Metric) -> Tensor:
    """(K,) values of a metric; torchmetrics drops the dimension for a single value."""
    values: Tensor = metric.compute().reshape(-1)
    return values


def _put_all(figures: Figures, values: Mapping[str, float], reason: str = "only one class in this split") -> None:
    for key, value in values.items():
        if math.isnan(value):
            figures.undefined[key] = reason
        else:
            figures.values[key] = value
