"""Logistic: logistic regression on one-hot ids, rates and numeric fields, one model per task."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlen.batch import Batch
from dlen.checks import positive, whole
from dlen.models.baseline import Baseline
from dlen.models.examples import Rows
from dlen.models.heads import refuse_regression
from dlen.models.rates import FoldSums, RateEncoder, row_of_value
from dlen.nn.embedding import EmbeddingTable, bag_divisors
from dlen.progress import Stage
from dlen.schema import Schema


class Logistic(Baseline):
    """Logistic regression with an L2 penalty: a linear baseline without feature interactions.

    Every id has one coefficient per task; the values of a multi-valued field are weighted according to its pooling.
    The standardised inputs of :class:`RateEncoder` are added as further features. For each task, the penalty decreases
    from the largest value of ``l2`` until the validation log loss gets worse. Rows that do not train a task are
    excluded from its model. Memory: 12 bytes per id and input of each training row.

    Args:
        l2: candidate penalties: factors of half the sum of squared coefficients, added to the log loss summed over
            all rows.
        iterations: maximum number of L-BFGS steps per penalty.
        smoothing: pseudo-rows at the prior rate that are added to each id's counts.
        folds: number of folds for out-of-fold rates of the training rows.

    Raises:
        ValueError: a setting is out of range, or the library is not installed.
        UnmetNeedError: the data have a regression task.
    """

    name, library = "logistic", "sklearn"

    def __init__(
        self,
        schema: Schema,
        *,
        l2: Sequence[float] = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0),
        iterations: int = 200,
        smoothing: float = 20.0,
        folds: int = 5,
    ) -> None:
        super().__init__(schema)
        refuse_regression(schema, self.name)
        if not isinstance(l2, list | tuple) or not l2:
            raise ValueError(f"l2 must be a list of numbers above 0, got {l2!r}")
        self.l2 = sorted((positive("l2", value) for value in l2), reverse=True)  # each fit starts from the last one
        self.iterations = whole("iterations", iterations, 1)
        self.encoder = RateEncoder(schema, smoothing, folds)
        tasks = len(schema.tasks)
        self.ids = EmbeddingTable(schema, tasks, std=0.0).requires_grad_(False)  # T coefficients per id
        self.register_buffer("mean", torch.zeros(self.encoder.width))
        self.register_buffer("scale", torch.ones(self.encoder.width))
        self.register_buffer("coefficients", torch.zeros(self.encoder.width, tasks))
        self.register_buffer("intercept", torch.zeros(tasks))
        self.mean: Tensor
        self.scale: Tensor
        self.coefficients: Tensor
        self.intercept: Tensor

    def logits(self, batch: Batch) -> Tensor:
        """Compute the (B, T) float32 log-odds."""
        tasks = len(self.schema.tasks)
        of_ids = self.ids(batch)[:, : (self.ids.num_single + self.ids.num_bags) * tasks]
        standardised = (self.encoder(batch) - self.mean) / self.scale
        return of_ids.view(len(batch), -1, tasks).sum(1) + standardised @ self.coefficients + self.intercept

    def size(self) -> dict[str, float]:
        """Number of coefficients; those of ids are counted together with their rates and counts."""
        return {
            "model/dense_parameters": self.coefficients.numel() + self.intercept.numel(),
            "model/embedding_parameters": self.ids.weight.numel() + self.encoder.table.numel(),
        }

    def fit(self, train: Rows, validation: Rows, seed: int) -> None:
        """Fit every task. Takes the arguments of :meth:`Baseline.fit`."""
        sums = self.encoder.fit(train, seed)
        inputs, labels, mask, weights = self._matrix(train, sums)
        held_out, held_labels, held_mask, held_weights = self._matrix(validation, None)
        for task, name in enumerate(self.schema.task_names):
            rows, held_rows = np.flatnonzero(mask[:, task]), np.flatnonzero(held_mask[:, task])
            with Stage(f"logistic: {name}", len(self.l2), "penalties") as stage:
                of_task = inputs if len(rows) == len(mask) else inputs[rows]
                learned = (of_task, labels[rows, task], None if weights is None else weights[rows, task])
                of_held = None if held_weights is None else held_weights[held_rows, task]
                best = self._best(learned, (held_out[held_rows], held_labels[held_rows, task], of_held), stage)
            coefficients, self.intercept[task] = torch.from_numpy(best[:-1]), float(best[-1])
            self.ids.weight.data[:, task] = coefficients[: self.schema.num_embeddings]
            self.coefficients[:, task] = coefficients[self.schema.num_embeddings :]

    def _best(self, learned: tuple[Any, Any, Any], held: tuple[Any, Any, Any], stage: Stage) -> Any:
        """Return the (columns + 1,) float32 coefficients and intercept for the best penalty.

        Args:
            learned: inputs, labels and weights of the training rows; the weights are None if all are 1.
            held: the same of the validation rows.
        """
        from sklearn.linear_model import LogisticRegression

        # Gradients are those of the mean loss. With a tolerance that ignores the number of rows, the warm start would
        # already count as converged, and the coefficients of rare ids would never change.
        model = LogisticRegression(max_iter=self.iterations, warm_start=True, tol=min(1e-4, 1 / len(learned[1])))
        best, least = None, math.inf
        for penalty in self.l2:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # convergence warnings
                model.set_params(C=1 / penalty).fit(*learned)
            loss = _log_loss(model.decision_function(held[0]), *held[1:]) if len(held[1]) else 0.0
            stage.advance(1)
            if best is not None and loss >= least:
                break
            best, least = np.append(model.coef_[0], model.intercept_).astype(np.float32), loss
        return best

    def _matrix(self, rows: Rows, sums: FoldSums | None) -> tuple[Any, Any, Any, Any]:
        """Return the (N, R + F) sparse inputs, and (N, T) labels, mask and weights, None if all are 1, of a split.

        ``sums`` is given for the training rows only, which are encoded out of fold.
        """
        from scipy.sparse import csr_array, hstack, vstack

        one_hot, dense, labels, mask, weights, first = [], [], [], [], [], 0
        for examples in rows():
            batch = examples.batch
            one_hot.append(self._one_hot(batch))
            dense.append(self.encoder(batch) if sums is None else self.encoder.out_of_fold(batch, first, sums))
            labels.append(examples.labels.bool())
            mask.append(examples.mask.bool())
            weights += [] if examples.weights is None else [examples.weights]
            first += len(batch)
        numbers = torch.cat(dense)
        if sums is not None:
            self.mean.copy_(numbers.mean(0, dtype=torch.float64))
            deviation = numbers.double().std(0, correction=0)
            self.scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0))
        numbers = (numbers - self.mean) / self.scale
        inputs = hstack([vstack(one_hot), csr_array(numbers.double().numpy())], format="csr")
        of_labels = torch.cat(weights).numpy() if weights else None
        return inputs, torch.cat(labels).numpy(), torch.cat(mask).numpy(), of_labels

    def _one_hot(self, batch: Batch) -> Any:
        """(B, R) sparse matrix: 1 for each single id, and the pooling weight of each value of multi-valued fields."""
        from scipy.sparse import csr_array

        lengths = batch.bag_lengths
        row = torch.arange(len(batch))
        divisors = bag_divisors(batch, self.ids.mean).flatten() if len(lengths) else torch.ones(0)
        weights = batch.bag_weights / torch.repeat_interleave(divisors, lengths.flatten())
        rows = torch.cat([row[:, None].expand_as(batch.ids).flatten(), row_of_value(batch)])
        columns = torch.cat([batch.ids.flatten(), batch.bag_ids])
        values = torch.cat([torch.ones(batch.ids.numel()), weights]).double()  # the gradients are too small for float32
        shape = (len(batch), self.schema.num_embeddings)
        return csr_array((values.numpy(), (rows.numpy(), columns.numpy())), shape)


def _log_loss(logits: Any, labels: Any, weights: Any) -> float:
    return float(np.average(np.logaddexp(0, np.where(labels, -logits, logits)), weights=weights))
