"""Measures: every figure of a validation or test pass, under its fixed key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import Metric, PearsonCorrCoef

from dlen.batch import Batch
from dlen.errors import UserError
from dlen.metrics import CalibrationError, CalibrationRatio, ExactAUC, HistogramAUC, LogLoss, MTLGain
from dlen.models.heads import Ranking
from dlen.models.predictions import Latent, Predictions
from dlen.nn.logspace import log1mexp, log_odds
from dlen.schema import Schema
from dlen.training.targets import Targets

AUC_KINDS = ("auto", "histogram", "exact")
EXACT_ROWS = 1_000_000  # up to here `auto` is exact: at most 9 MB for each target
PREFERS, UP = "prefers", "up"  # a simulator's truth: the drawn hidden state, and its probability


@dataclass(slots=True)
class Figures:
    """What a pass measured.

    Attributes:
        values: by key, such as ``auc/click``; only the defined ones.
        undefined: the reason for each key that has no value.
    """

    values: dict[str, float]
    undefined: dict[str, str]


class Measures(nn.Module):
    """All metrics of one pass over one split.

    Keys: ``auc/T``, ``logloss/T``, ``calibration/T``, ``ece/T`` for each target T, ``auc/mean`` over the tasks,
    ``gain/T`` and ``gain/mean`` beside a base run; for DLEN ``auc_total/T`` or ``auc_joint/T`` (the probability
    that does not rank), ``auc/up_any``; on simulated data ``auc/up_truth``, ``corr/up_truth`` and ``oracle/T``.

    Args:
        schema: of the data.
        auc: ``histogram`` (constant memory), ``exact``, or ``auto``: exact up to a million rows.
        rows: of the split.
        ranking: for DLEN, which of its probabilities ranks; None for other models.
        base: AUC by target of the run to compare with.
    """

    def __init__(
        self,
        schema: Schema,
        auc: str = "auto",
        rows: int = 0,
        ranking: Ranking | None = None,
        base: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.targets = Targets(schema)
        self.ranking = ranking
        self.num_tasks = len(schema.tasks)
        names = self.targets.names
        if auc == "auto":
            auc = "exact" if rows <= EXACT_ROWS else "histogram"
        self.auc = _make_auc(auc, len(names))
        self.logloss, self.ratio = LogLoss(len(names)), CalibrationRatio(len(names))
        self.ece = CalibrationError(len(names))
        base_values = [(base or {}).get(n, math.nan) for n in names]
        self.gain = MTLGain(self.auc, base_values) if base else None
        self.other_auc = _make_auc(auc, len(names)) if ranking else None
        truth = list(schema.truth)
        self.has_truth = PREFERS in truth and UP in truth
        self.prefers, self.up = (truth.index(n) if self.has_truth else -1 for n in (PREFERS, UP))
        self.oracle_names = [n for n in names if n in truth]
        self.oracle_columns = [truth.index(n) for n in self.oracle_names]
        self.oracle = _make_auc(auc, len(self.oracle_names) + 2) if self.has_truth else None
        self.up_auc = _make_auc(auc, 1 + self.has_truth) if ranking else None
        self.up_corr = PearsonCorrCoef() if ranking and self.has_truth else None

    def update(self, predictions: Predictions, batch: Batch) -> None:
        """Add the rows of one batch."""
        labels, mask = self.targets.labels(batch.labels)
        scores = self.targets.log_probabilities(predictions.log_score)
        log_p = self.targets.log_probabilities(predictions.log_p)
        # The heads give the complement of the tasks; that of the joint events follows from their probability.
        log_q = torch.cat([predictions.log_q, log1mexp(log_p[:, self.num_tasks :])], 1)
        (self.gain or self.auc).update(log_odds(scores), labels, mask)
        self.logloss.update(log_p, log_q, labels, mask)
        self.ratio.update(log_p, labels, mask)
        self.ece.update(log_p, labels, mask)
        any_positive = batch.labels.amax(1, keepdim=True)
        if predictions.latent is not None:
            self._update_latent(predictions, batch, labels, mask, any_positive)
        if self.oracle is not None:
            self._update_oracle(batch, labels, mask, any_positive)

    def _update_latent(
        self, predictions: Predictions, batch: Batch, labels: Tensor, mask: Tensor, any_positive: Tensor
    ) -> None:
        latent = predictions.latent
        assert isinstance(latent, Latent)
        assert self.other_auc is not None
        assert self.up_auc is not None
        other = predictions.log_p if self.ranking is Ranking.JOINT else latent.log_joint
        self.other_auc.update(log_odds(self.targets.log_probabilities(other)), labels, mask)
        up = (latent.log_up - latent.log_not_up)[:, None]
        if self.up_corr is None:
            self.up_auc.update(up, any_positive)
            return
        truth = batch.truth[:, [self.prefers]]
        self.up_auc.update(up.expand(-1, 2), torch.cat([any_positive, truth], 1))
        self.up_corr.update(latent.log_up.exp(), batch.truth[:, self.up])

    def _update_oracle(self, batch: Batch, labels: Tensor, mask: Tensor, any_positive: Tensor) -> None:
        assert self.oracle is not None
        known = [self.targets.names.index(n) for n in self.oracle_names]
        scores = torch.cat([batch.truth[:, self.oracle_columns], batch.truth[:, [self.up, self.up]]], 1)
        wanted = torch.cat([labels[:, known], any_positive, batch.truth[:, [self.prefers]]], 1)
        everywhere = torch.ones_like(any_positive).expand(-1, 2)
        self.oracle.update(torch.logit(scores), wanted, torch.cat([mask[:, known], everywhere], 1))

    def compute(self) -> Figures:
        """All figures so far, over all processes."""
        names = self.targets.names
        counts = (self.logloss.rows.clone(), self.ratio.observed.clone())  # of this process, for the reasons
        columns = {"auc": _column(self.auc), "logloss": _column(self.logloss)}
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
                f"the predictions of {', '.join(broken)} are not numbers: training has diverged; lower optimizer.lr "
                "and optimizer.embedding_lr, and look for extreme values in numeric fields"
            )
        figures = Figures({}, {})
        for key, column in columns.items():
            for index, name in enumerate(names):
                self._put(figures, f"{key}/{name}", float(column[index]), index, counts)
        self._means(figures)
        if self.up_auc is not None:
            keys = ["auc/up_any", "auc/up_truth"] if self.has_truth else ["auc/up_any"]
            _put_all(figures, keys, _column(self.up_auc))
        if self.up_corr is not None:
            _put_all(figures, ["corr/up_truth"], _column(self.up_corr))
        if self.oracle is not None:
            ceilings = [*self.oracle_names, "up_any", "up_truth"]
            _put_all(figures, [f"oracle/{n}" for n in ceilings], _column(self.oracle))
        return figures

    def _put(self, figures: Figures, key: str, value: float, index: int, counts: tuple[Tensor, Tensor]) -> None:
        rows, positives = (int(c[index]) for c in counts)
        measure = key.split("/")[0]
        if measure in ("logloss", "calibration", "ece") and not self.targets.is_probability()[index]:
            joint = self.targets.schema.tasks[index].joint
            figures.undefined[key] = f"trained on all rows, so the probability is that of {joint}"
        elif not math.isnan(value):
            figures.values[key] = value
        elif measure == "gain" and not math.isnan(figures.values.get(f"auc/{key.split('/')[1]}", math.nan)):
            figures.undefined[key] = "the base run has no such figure"
        else:
            what = "no rows" if rows == 0 else "no positives" if positives == 0 else "no negatives"
            figures.undefined[key] = f"{what} among {rows} observed rows"

    def _means(self, figures: Figures) -> None:
        for measure in ("auc", "gain"):
            found = [figures.values.get(f"{measure}/{t}") for t in self.targets.names[: self.num_tasks]]
            defined = [v for v in found if v is not None]
            if defined:
                figures.values[f"{measure}/mean"] = sum(defined) / len(defined)

    def reset(self) -> None:
        """Forget all rows."""
        for metric in self.children():
            metric.reset()  # type: ignore[operator]


def _make_auc(kind: str, num_targets: int) -> HistogramAUC | ExactAUC:
    return ExactAUC(num_targets) if kind == "exact" else HistogramAUC(num_targets)


def _column(metric: Metric) -> Tensor:
    """(K,) values; torchmetrics gives a single one without its dimension."""
    values: Tensor = metric.compute().reshape(-1)
    return values


def _put_all(figures: Figures, keys: list[str], values: Tensor) -> None:
    for key, value in zip(keys, values.tolist(), strict=True):
        if math.isnan(value):
            figures.undefined[key] = "only one class in this split"
        else:
            figures.values[key] = value
