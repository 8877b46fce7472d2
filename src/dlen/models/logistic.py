"""Logistic: logistic regression on one-hot ids, rates and numbers, a model for each task."""

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
from dlen.models.rates import FoldSums, RateEncoder, row_of_value
from dlen.nn.embedding import EmbeddingTable, bag_divisors
from dlen.progress import Stage
from dlen.schema import Schema


class Logistic(Baseline):
    """Logistic regression with an L2 penalty: what the inputs are worth one by one, without interactions.

    Every id has a coefficient for each task, and the values of a multi-valued field share theirs as its pooling says.
    Beside them stand the inputs of :class:`RateEncoder`, standardised. The penalty of a task falls from the largest of
    ``l2`` until the log loss of its validation rows gets worse. Rows that do not train a task are left out of its
    model. Memory: 12 bytes for each id and each input of each training row.

    Args:
        schema: fields and tasks.
        l2: penalties to choose from: factors of half the squared coefficients beside the summed log loss of all rows.
        iterations: most steps of L-BFGS for each penalty.
        smoothing: rows at the prior's rate that are added to those of each id.
        folds: parts of the training rows for out-of-fold rates.

    Raises:
        ValueError: a setting is out of its range, or the library is not installed.
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
        if not isinstance(l2, list | tuple) or not l2:
            raise ValueError(f"l2 must be a list of numbers above 0, got {l2!r}")
        self.l2 = sorted((positive("l2", value) for value in l2), reverse=True)  # each begins where the last one ended
        self.iterations = whole("iterations", iterations, 1)
        self.encoder = RateEncoder(schema, smoothing, folds)
        tasks = len(schema.tasks)
        self.ids = EmbeddingTable(schema, tasks, std=0.0).requires_grad_(False)  # coefficients: a vector of T for each
        self.register_buffer("mean", torch.zeros(self.encoder.width))
        self.register_buffer("scale", torch.ones(self.encoder.width))
        self.register_buffer("coefficients", torch.zeros(self.encoder.width, tasks))
        self.register_buffer("intercept", torch.zeros(tasks))
        self.mean: Tensor
        self.scale: Tensor
        self.coefficients: Tensor
        self.intercept: Tensor

    def logits(self, batch: Batch) -> Tensor:
        """(B, T) float32 log-odds."""
        tasks = len(self.schema.tasks)
        of_ids = self.ids(batch)[:, : (self.ids.num_single + self.ids.num_bags) * tasks]
        standardised = (self.encoder(batch) - self.mean) / self.scale
        return of_ids.view(len(batch), -1, tasks).sum(1) + standardised @ self.coefficients + self.intercept

    def size(self) -> dict[str, float]:
        """Coefficients of ids, with their rates and counts, and of the other inputs."""
        return {
            "model/dense_parameters": self.coefficients.numel() + self.intercept.numel(),
            "model/embedding_parameters": self.ids.weight.numel() + self.encoder.table.numel(),
        }

    def fit(self, train: Rows, validation: Rows, seed: int) -> None:
        """Fit every task; arguments as :meth:`Baseline.fit`."""
        sums = self.encoder.fit(train, seed)
        inputs, labels, mask = self._matrix(train, sums)
        held_out, held_labels, held_mask = self._matrix(validation, None)
        for task, name in enumerate(self.schema.task_names):
            used, held = np.flatnonzero(mask[:, task]), np.flatnonzero(held_mask[:, task])
            with Stage(f"logistic: {name}", len(self.l2), "penalties") as stage:
                few = inputs if len(used) == len(mask) else inputs[used]
                best = self._best(few, labels[used, task], held_out[held], held_labels[held, task], stage)
            coefficients, self.intercept[task] = torch.from_numpy(best[:-1]), float(best[-1])
            self.ids.weight.data[:, task] = coefficients[: self.schema.num_embeddings]
            self.coefficients[:, task] = coefficients[self.schema.num_embeddings :]

    def _best(self, inputs: Any, labels: Any, held_out: Any, held_labels: Any, stage: Stage) -> Any:
        """(columns + 1,) float32 coefficients and intercept of the best penalty."""
        from sklearn.linear_model import LogisticRegression

        # Gradients are of the mean loss: a tolerance that does not fall with the rows would take the last penalty's
        # coefficients for those of the next, and never look at rare ids.
        model = LogisticRegression(max_iter=self.iterations, warm_start=True, tol=min(1e-4, 1 / len(labels)))
        best, least = None, math.inf
        for penalty in self.l2:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of steps that were not enough
                model.set_params(C=1 / penalty).fit(inputs, labels)
            loss = _log_loss(model.decision_function(held_out), held_labels) if len(held_labels) else 0.0
            stage.advance(1)
            if best is not None and loss >= least:
                break
            best, least = np.append(model.coef_[0], model.intercept_).astype(np.float32), loss
        return best

    def _matrix(self, rows: Rows, sums: FoldSums | None) -> tuple[Any, Any, Any]:
        """The (N, R + F) sparse inputs of a split, (N, T) labels and (N, T) mask; ``sums``: for those of training."""
        from scipy.sparse import csr_array, hstack, vstack

        one_hot, dense, labels, mask, first = [], [], [], [], 0
        for examples in rows():
            batch = examples.batch
            one_hot.append(self._one_hot(batch))
            dense.append(self.encoder(batch) if sums is None else self.encoder.out_of_fold(batch, first, sums))
            labels.append(examples.labels.bool())
            mask.append(examples.mask.bool())
            first += len(batch)
        numbers = torch.cat(dense)
        if sums is not None:
            self.mean.copy_(numbers.mean(0, dtype=torch.float64))
            deviation = numbers.double().std(0, correction=0)
            self.scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0))
        numbers = (numbers - self.mean) / self.scale
        inputs = hstack([vstack(one_hot), csr_array(numbers.double().numpy())], format="csr")
        return inputs, torch.cat(labels).numpy(), torch.cat(mask).numpy()

    def _one_hot(self, batch: Batch) -> Any:
        """(B, R) sparse: 1 for each single id, and the weights of multi-valued fields' values as their pooling says."""
        from scipy.sparse import csr_array

        lengths = batch.bag_lengths
        row = torch.arange(len(batch))
        divisors = bag_divisors(batch, self.ids.mean).flatten() if len(lengths) else torch.ones(0)
        weights = batch.bag_weights / torch.repeat_interleave(divisors, lengths.flatten())
        rows = torch.cat([row[:, None].expand_as(batch.ids).flatten(), row_of_value(batch)])
        columns = torch.cat([batch.ids.flatten(), batch.bag_ids])
        values = torch.cat([torch.ones(batch.ids.numel()), weights]).double()  # for gradients that small
        shape = (len(batch), self.schema.num_embeddings)
        return csr_array((values.numpy(), (rows.numpy(), columns.numpy())), shape)


def _log_loss(logits: Any, labels: Any) -> float:
    return float(np.logaddexp(0, np.where(labels, -logits, logits)).mean())
