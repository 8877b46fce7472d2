"""LightGBM: gradient-boosted trees on out-of-fold rates, a model for each task."""

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
    """Gradient-boosted trees (Ke et al. 2017), the baseline that networks on tables are measured against.

    Inputs are those of :class:`RateEncoder`, and beside them the ids of small fields as categories. Boosting of a task
    ends when the log loss of its validation rows has not improved for ``early_stopping`` rounds: the log loss is
    defined where a rare task has no positives in the validation, and probabilities are measured and multiplied along
    funnels, which AUC does not look at. Rows that do not train a task are left out of its model.

    Memory: 4 bytes for each input of each training row while LightGBM sorts them into bins, then about 1 byte.

    Args:
        schema: fields and tasks.
        num_leaves: of each tree.
        learning_rate: factor of each tree.
        rounds: most trees of a task.
        early_stopping: rounds without a better log loss after which boosting ends.
        min_data_in_leaf: fewest training rows of a leaf.
        min_sum_hessian_in_leaf: least sum of p (1 - p) over a leaf's rows, about the positives that a rare task is
            expected to have there.
        feature_fraction: share of the inputs that each tree may use.
        categories: largest vocabulary, unknown included, of an id field that enters as categories too.
        smoothing: rows at the prior's rate that are added to those of each id.
        folds: parts of the training rows for out-of-fold rates.

    Raises:
        ValueError: a setting is out of its range, or the library is not installed.
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
        first = [schema.offsets[fields[column].name] for column in self.categorical]
        self.register_buffer("first_ids", torch.tensor(first, dtype=torch.int32), persistent=False)
        self.first_ids: Tensor
        for task in range(len(schema.tasks)):  # the text of a fitted model, which holds numbers and nothing to execute
            self.register_buffer(f"trees{task}", torch.zeros(0, dtype=torch.uint8))
        self._boosters: list[Any] | None = None

    def inputs(self, batch: Batch) -> Tensor:
        """(B, F) inputs of rows that are not among those of training."""
        return self._with_categories(batch, self.encoder(batch))

    def _with_categories(self, batch: Batch, encoded: Tensor) -> Tensor:
        """The inputs with the ids of small fields behind them."""
        return torch.cat([encoded, (batch.ids[:, self.categorical] - self.first_ids).float()], 1)

    def logits(self, batch: Batch) -> Tensor:
        """(B, T) float32 log-odds."""
        inputs, threads = self.inputs(batch).cpu().numpy(), torch.get_num_threads()
        found = [booster.predict(inputs, raw_score=True, num_threads=threads) for booster in self.boosters()]
        return torch.from_numpy(np.stack(found, 1).astype(np.float32)).to(batch.numeric.device)

    def boosters(self) -> list[Any]:
        """The ``lightgbm.Booster`` of each task."""
        import lightgbm

        if self._boosters is None:
            self._boosters = [lightgbm.Booster(model_str=text) for text in self._texts()]
        return self._boosters

    def _texts(self) -> list[str]:
        """The model of each task as LightGBM writes it."""
        return [bytes(getattr(self, f"trees{t}").cpu().numpy()).decode() for t in range(len(self.schema.tasks))]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._boosters = None

    def size(self) -> dict[str, float]:
        """Rates and counts of ids, values of leaves, and trees."""
        leaves = [
            int(count) for text in self._texts() for count in re.findall(r"^num_leaves=(\d+)$", text, re.MULTILINE)
        ]
        return {
            "model/dense_parameters": sum(leaves),
            "model/embedding_parameters": self.encoder.table.numel(),
            "model/trees": len(leaves),
        }

    def fit(self, train: Rows, validation: Rows, seed: int) -> None:
        """Fit every task; arguments as :meth:`Baseline.fit`."""
        sums = self.encoder.fit(train, seed)
        rows = _Matrix(self, train, sums)
        held_out = _Matrix(self, validation, None)
        settings = {
            **self.settings,
            "objective": "binary",
            "metric": "binary_logloss",
            "seed": seed % 2**31,
            "deterministic": True,
            "force_row_wise": True,  # else LightGBM measures which way is faster, and the two add in another order
            "feature_pre_filter": False,
            "num_threads": torch.get_num_threads(),
            "verbosity": -1,
        }
        rows.bin(settings, None)
        held_out.bin(settings, rows)
        for task in range(len(self.schema.tasks)):
            text = self._boost(task, settings, rows, held_out)
            self._buffers[f"trees{task}"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        self._boosters = None

    def _boost(self, task: int, settings: dict[str, Any], rows: _Matrix, held_out: _Matrix) -> str:
        """One task's fitted model as LightGBM's text."""
        import lightgbm

        with Stage(f"lightgbm: {self.schema.task_names[task]}", self.rounds, "rounds") as stage:
            callbacks: list[Any] = [lambda _: stage.advance(1)]
            watched = [held_out.of_task(task)] if held_out.mask[:, task].any() else []
            if watched:
                callbacks.append(lightgbm.early_stopping(self.early_stopping, verbose=False))
            booster = lightgbm.train(settings, rows.of_task(task), self.rounds, valid_sets=watched, callbacks=callbacks)
        return str(booster.model_to_string(num_iteration=booster.best_iteration))


class _Matrix:
    """The encoded rows of a split, for all tasks.

    Attributes:
        inputs: (N, F) float32; None once LightGBM has binned them.
        labels: (N, T) bool.
        mask: (N, T) bool, which rows train a task.

    Args:
        model: whose inputs are made.
        rows: of the split.
        sums: where they are those of training.
    """

    def __init__(self, model: LightGBM, rows: Rows, sums: FoldSums | None) -> None:
        learned = [(examples.labels.bool(), examples.mask.bool()) for examples in rows()]
        self.labels, self.mask = (torch.cat([part[i] for part in learned]).numpy() for i in (0, 1))
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
        """Sort the inputs into LightGBM's bins, once for all tasks; ``like``: training rows, whose bins are taken."""
        import lightgbm

        self.binned = lightgbm.Dataset(
            self.inputs,
            label=self.labels[:, 0],
            reference=None if like is None else like.binned,
            categorical_feature=self.categorical,
            params=settings,
        ).construct()
        self.inputs = None

    def of_task(self, task: int) -> Any:
        """The ``lightgbm.Dataset`` of the rows that train a task."""
        self.binned.set_label(self.labels[:, task])
        used = np.flatnonzero(self.mask[:, task])
        return self.binned if len(used) == len(self.labels) else self.binned.subset(used).construct()
