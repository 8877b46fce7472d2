"""LightGBM: gradient-boosted trees on out-of-fold rates, one model per task."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlen.batch import Batch
from dlen.checks import positive, whole
from dlen.models.baseline import Baseline
from dlen.models.examples import Rows
from dlen.models.rates import FoldSums, RateEncoder
from dlen.progress import Stage
from dlen.schema import Kind, Schema


class LightGBM(Baseline):
    """Gradient-boosted trees (Ke et al. 2017), the standard baseline for networks on tabular data.

    The inputs are those of :class:`RateEncoder`, plus the ids of small fields as categorical features. Boosting of a
    task stops when its validation log loss has not improved for ``early_stopping`` rounds. The criterion is log loss
    rather than AUC for two reasons: it is defined even if a rare task has no validation positives, and it covers the
    probabilities themselves, which are evaluated and multiplied along funnels. Rows that do not train a task are
    excluded from its model. A regression task is fitted by squared error, or by Huber's loss if that is its ``loss``.

    Memory: 4 bytes per input of each training row while LightGBM bins them, then about 1 byte.

    Args:
        num_leaves: maximum number of leaves per tree.
        learning_rate: shrinkage factor of each tree.
        rounds: maximum number of trees per task.
        early_stopping: number of rounds without a better validation log loss before boosting stops.
        min_data_in_leaf: minimum number of training rows per leaf.
        min_sum_hessian_in_leaf: minimum sum of p (1 - p) over a leaf's rows; for a rare task about the number of
            positives expected in the leaf.
        feature_fraction: fraction of the inputs that each tree may use.
        categories: largest vocabulary size, unknown included, of id fields that are also used as categorical features.
        smoothing: pseudo-rows at the prior rate that are added to each id's counts.
        folds: number of folds for out-of-fold rates of the training rows.

    Raises:
        ValueError: a setting is out of range, or the library is not installed.
    """

    name, library = "lightgbm", "lightgbm"

    def __init__(
        self,
        schema: Schema,
        *,
        num_leaves: int = 31,
        learning_rate: float = 0.05,
        rounds: int = 1000,
        early_stopping: int = 50,
        min_data_in_leaf: int = 50,
        min_sum_hessian_in_leaf: float = 5.0,
        feature_fraction: float = 0.5,
        categories: int = 256,
        smoothing: float = 20.0,
        folds: int = 5,
    ) -> None:
        super().__init__(schema)
        self.rounds = whole("rounds", rounds, 1, 100_000)
        self.early_stopping = whole("early_stopping", early_stopping, 1)
        self.settings: dict[str, Any] = {
            "num_leaves": whole("num_leaves", num_leaves, 2, 131_072),
            "learning_rate": positive("learning_rate", learning_rate, 1.0),
            "min_data_in_leaf": whole("min_data_in_leaf", min_data_in_leaf, 1),
            "min_sum_hessian_in_leaf": positive("min_sum_hessian_in_leaf", min_sum_hessian_in_leaf),
            "feature_fraction": positive("feature_fraction", feature_fraction, 1.0),
        }
        self.encoder = RateEncoder(schema, smoothing, folds)
        most = whole("categories", categories, 0, 100_000)
        fields = schema.of_kind(Kind.ID)
        self.categorical = [column for column, field in enumerate(fields) if field.vocab_size <= most]
        first_ids = [schema.offsets[fields[column].name] for column in self.categorical]
        self.register_buffer("first_ids", torch.tensor(first_ids, dtype=torch.int32), persistent=False)
        self.first_ids: Tensor
        for task in range(len(schema.tasks)):  # a fitted model as text: numbers only, nothing executable
            self.register_buffer(f"trees{task}", torch.zeros(0, dtype=torch.uint8))
        self._boosters: list[Any] | None = None

    def inputs(self, batch: Batch) -> Tensor:
        """Compute the (B, F) inputs of rows that are not training rows."""
        return self._with_categories(batch, self.encoder(batch))

    def _with_categories(self, batch: Batch, encoded: Tensor) -> Tensor:
        """Append the ids of small fields to the encoded inputs."""
        return torch.cat([encoded, (batch.ids[:, self.categorical] - self.first_ids).float()], 1)

    def logits(self, batch: Batch) -> Tensor:
        """Compute the (B, T) float32 log-odds; the standardised prediction of a regression task."""
        inputs, threads = self.inputs(batch).cpu().numpy(), torch.get_num_threads()
        logits = [booster.predict(inputs, raw_score=True, num_threads=threads) for booster in self.boosters()]
        return torch.from_numpy(np.stack(logits, 1).astype(np.float32)).to(batch.numeric.device)

    def boosters(self) -> list[Any]:
        """Return the ``lightgbm.Booster`` of each task."""
        import lightgbm

        if self._boosters is None:
            self._boosters = [lightgbm.Booster(model_str=text) for text in self._texts()]
        return self._boosters

    def _texts(self) -> list[str]:
        """The model of each task in LightGBM's text format."""
        return [bytes(getattr(self, f"trees{t}").cpu().numpy()).decode() for t in range(len(self.schema.tasks))]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._boosters = None

    def size(self) -> dict[str, float]:
        """Numbers of leaf values, of rates and counts of ids, and of trees."""
        leaves = [
            int(count) for text in self._texts() for count in re.findall(r"^num_leaves=(\d+)$", text, re.MULTILINE)
        ]
        return {
            "model/dense_parameters": sum(leaves),
            "model/embedding_parameters": self.encoder.table.numel(),
            "model/trees": len(leaves),
        }

    def fit(self, train: Rows, validation: Rows, seed: int) -> None:
        """Fit every task. Takes the arguments of :meth:`Baseline.fit`."""
        sums = self.encoder.fit(train, seed)
        rows = _Matrix(self, train, sums)
        held_out = _Matrix(self, validation, None)
        settings = {
            **self.settings,
            "seed": seed % 2**31,
            "deterministic": True,
            "force_row_wise": True,  # else LightGBM picks the faster layout, and the two sum in different orders
            "feature_pre_filter": False,
            "num_threads": torch.get_num_threads(),
            "verbosity": -1,
        }
        rows.bin(settings, None)
        held_out.bin(settings, rows)
        for task in range(len(self.schema.tasks)):
            text = self._boost(task, {**settings, **self._objective(task)}, rows, held_out)
            self._buffers[f"trees{task}"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        self._boosters = None

    def _objective(self, task: int) -> dict[str, str]:
        """LightGBM's objective of a task, and the validation metric that stops the boosting."""
        if not self.schema.tasks[task].is_regression:
            return {"objective": "binary", "metric": "binary_logloss"}
        loss = "huber" if self.schema.tasks[task].loss == "huber" else "l2"
        return {"objective": loss, "metric": loss}

    def _boost(self, task: int, settings: dict[str, Any], rows: _Matrix, held_out: _Matrix) -> str:
        """Fit one task and return its model in LightGBM's text format."""
        import lightgbm

        with Stage(f"lightgbm: {self.schema.task_names[task]}", self.rounds, "rounds") as stage:
            callbacks: list[Any] = [lambda _: stage.advance(1)]
            valid_sets = [held_out.of_task(task)] if held_out.mask[:, task].any() else []
            if valid_sets:
                callbacks.append(lightgbm.early_stopping(self.early_stopping, verbose=False))
            booster = lightgbm.train(
                settings, rows.of_task(task), self.rounds, valid_sets=valid_sets, callbacks=callbacks
            )
        return str(booster.model_to_string(num_iteration=booster.best_iteration))


class _Matrix:
    """The encoded rows of a split, for all tasks.

    Attributes:
        inputs: (N, F) float32; None once LightGBM has binned them.
        labels: (N, T) bool; float32 if there are regression tasks.
        mask: (N, T) bool, True where a row trains a task.
        weights: (N, T) float32 weight of each label; None if all are 1.

    Args:
        sums: fold sums for out-of-fold encoding of training rows; None for other splits.
    """

    def __init__(self, model: LightGBM, rows: Rows, sums: FoldSums | None) -> None:
        kind = torch.float32 if model.schema.regressions else torch.bool
        targets = [(examples.labels.to(kind), examples.mask.bool(), examples.weights) for examples in rows()]
        labels, mask, weights = zip(*targets, strict=True)
        self.labels, self.mask = torch.cat(labels).numpy(), torch.cat(mask).numpy()
        self.weights = None if weights[0] is None else torch.cat(weights).numpy()
        width = model.encoder.width + len(model.categorical)
        self.inputs: NDArray[np.float32] | None = np.empty((len(self.labels), width), np.float32)
        self.categorical = list(range(model.encoder.width, width))
        first = 0
        for examples in rows():
            batch = examples.batch
            encoded = model.encoder(batch) if sums is None else model.encoder.out_of_fold(batch, first, sums)
            self.inputs[first : first + len(batch)] = model._with_categories(batch, encoded).numpy()
            first += len(batch)
        self.binned: Any = None

    def bin(self, settings: dict[str, Any], like: _Matrix | None) -> None:
        """Bin the inputs once for all tasks; ``like`` is the training matrix whose bins are reused."""
        import lightgbm

        self.binned = lightgbm.Dataset(
            self.inputs,
            label=np.ascontiguousarray(self.labels[:, 0]),
            reference=None if like is None else like.binned,
            categorical_feature=self.categorical,
            params=settings,
        ).construct()
        self.inputs = None

    def of_task(self, task: int) -> Any:
        """Return the ``lightgbm.Dataset`` of the rows that train a task."""
        self.binned.set_label(np.ascontiguousarray(self.labels[:, task]))
        if self.weights is not None:
            self.binned.set_weight(np.ascontiguousarray(self.weights[:, task]))
        used = np.flatnonzero(self.mask[:, task])
        return self.binned if len(used) == len(self.labels) else self.binned.subset(used).construct()
