"""Labels of a table: read from expressions, counted by split, and turned into tasks with their rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from dlen.data.columns import MISSING, Array
from dlen.data.sources.cells import numbers, refuse
from dlen.data.sources.expression import read_label
from dlen.data.sources.table_paths import SPLITS
from dlen.data.sources.table_spec import TableSpec, TaskSpec, expression
from dlen.errors import UserError
from dlen.schema import Task, TaskKind

_LARGEST = 1e12  # label of a regression; its square, summed over all rows of a log, stays finite in 32 bits
_ROUNDING = 1e-12  # relative to the numbers; a smaller deviation is rounding error of a constant


class Labels:
    """The labels of a table's tasks.

    Args:
        spec: spec of the table.

    Attributes:
        expressions: the parsed label of each task.
        regressions: names of the regression tasks.
    """

    def __init__(self, spec: TableSpec) -> None:
        self.spec = spec
        self.expressions = {name: expression(spec, name) for name in spec.tasks}
        self.regressions = [name for name, task in spec.tasks.items() if task.is_regression]
        self._observed = {name: expression(spec, name, "observed") for name, t in spec.tasks.items() if t.observed}
        self._chains = [self._chain(name) for name in spec.tasks]

    def _chain(self, name: str) -> list[int]:
        """Column indices of a task and of its ``observed_where`` ancestors, nearest first."""
        names, chain = list(self.spec.tasks), [name]
        while (parent := self.spec.tasks[chain[-1]].observed_where) is not None:
            if parent in chain:
                circle = " -> ".join([*chain, parent])
                raise UserError(f"{self.spec.path}: tasks.{name}.observed_where: forms a circle ({circle}); break it")
            chain.append(parent)
        return [names.index(n) for n in chain]

    def inputs(self) -> list[tuple[str, str]]:
        """Columns from which labels are computed, or whether they are observed, with the task name."""
        parsed = [*self.expressions.items(), *self._observed.items()]
        return [(column, name) for name, label in parsed for column in label.columns]

    def read(self, frame: pl.DataFrame, path: Path) -> Array:
        """(n, T) 0, 1 or MISSING; 0 for the number of a regression task."""
        labels = np.stack([self._read(name, frame, path) for name in self.expressions], 1)
        for place, name in enumerate(self.expressions):
            if name in self._observed:
                is_observed = read_label(frame, path, f"tasks.{name}.observed", self._observed[name], self.spec.path)
                labels[is_observed != 1, place] = MISSING
        return labels

    def _read(self, name: str, frame: pl.DataFrame, path: Path) -> Array:
        if name in self.regressions:
            return np.where(np.isnan(self._numbers(name, frame, path)), MISSING, 0).astype(np.uint8)
        return read_label(frame, path, f"task {name}", self.expressions[name], self.spec.path)

    def _numbers(self, name: str, frame: pl.DataFrame, path: Path) -> Array:
        """(n,) float64 labels of a regression task; nan for an empty cell."""
        (column,) = self.expressions[name].columns
        cells = numbers(frame, column, path)
        why = f"beyond {_LARGEST:g}, the most for tasks.{name}; use a larger unit, or an empty cell if it is unknown"
        refuse(frame, cells.abs() > _LARGEST, column, path, why)
        if self.spec.tasks[name].loss == "weighted_logistic":
            refuse(
                frame, cells < 0, column, path, f"below 0, but the loss of tasks.{name}, weighted_logistic, needs sizes"
            )
        return cells.fill_null(np.nan).to_numpy()

    def values(self, frame: pl.DataFrame, path: Path, labels: Array) -> Array | None:
        """(n, R) numbers of the regression tasks, nan where ``labels`` (n, T) are MISSING; None without such tasks."""
        if not self.regressions:
            return None
        places = [list(self.expressions).index(name) for name in self.regressions]
        numbers_of = np.stack([self._numbers(name, frame, path) for name in self.regressions], 1)
        return np.where(labels[:, places] == MISSING, np.nan, numbers_of)

    def observed(self, labels: Array) -> Array:
        """(n, T) whether a row measures a task: its label is present, and its ancestors are 1."""
        chains = self._chains
        return np.stack([(labels[:, task] != MISSING) & (labels[:, above] == 1).all(1) for task, *above in chains], 1)

    def determined(self, labels: Array) -> Array:
        """(n, T) whether the labels determine if a task and all its ancestors happened."""
        chains = [labels[:, chain] for chain in self._chains]
        return np.stack([(chain == 1).all(1) | (chain == 0).any(1) for chain in chains], 1)


class Tally:
    """Counts of the labels of all rows.

    Attributes:
        counts: (split, task, label) observed rows.
        missing: (T,) rows without the label of a task.
        positive: (T,) weight of the training rows that are positives of a task.
        observed: (T,) weight of the training rows that measure a task.
        determined: (T,) weight of the training rows that determine whether a task and its ancestors happened.
        sums: (2, R) weighted sums of the transformed labels of the regression tasks and of their squares, over the
            training rows that measure them.
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        num_tasks = len(labels.spec.tasks)
        self.counts = np.zeros((len(SPLITS), num_tasks, 2), np.int64)
        self.missing = np.zeros(num_tasks, np.int64)
        self.positive, self.observed, self.determined = np.zeros((3, num_tasks))
        tasks = list(labels.spec.tasks)
        self.places = [tasks.index(name) for name in labels.regressions]  # of the regression tasks
        self.sums = np.zeros((2, len(self.places)))

    def add(
        self,
        where: Array,
        labels: Array,
        observed: Array,
        weights: Array | None = None,
        values: Array | None = None,
    ) -> None:
        """Count rows.

        Args:
            where: (n,) split of each row.
            labels: (n, T) 0, 1 or MISSING.
            observed: (n, T) whether each label is observed.
            weights: (n, 1 + T) weights of rows and labels; None if all are 1.
            values: (n, R) labels of the regression tasks; None without such tasks.
        """
        self.missing += (labels == MISSING).sum(axis=0)
        training = where == 0
        weight = np.ones((1, 1)) if weights is None else (weights[:, 1:] * weights[:, :1])[training].astype(np.float64)
        self.positive += (weight * (observed & (labels == 1))[training]).sum(axis=0)
        self.observed += (weight * observed[training]).sum(axis=0)
        self.determined += (weight * self.labels.determined(labels[training])).sum(axis=0)
        if values is not None:
            seen = observed[training][:, self.places]
            counts = np.broadcast_to(weight, (len(seen), len(self.labels.spec.tasks)))[:, self.places] * seen
            numbers_of = self._transformed(np.where(seen, values[training], 0.0))
            self.sums += (counts * numbers_of).sum(axis=0), (counts * numbers_of**2).sum(axis=0)
        for split, task in np.ndindex(self.counts.shape[:2]):
            rows = (where == split) & observed[:, task]
            self.counts[split, task] += np.bincount(labels[rows, task], minlength=2)

    def merge(self, other: Tally) -> None:
        """Add the rows that another one counted."""
        for name in ("counts", "missing", "positive", "observed", "determined", "sums"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def _transformed(self, values: Array) -> Array:
        """(n, R) labels of the regression tasks after their ``transform``."""
        log = [self.labels.spec.tasks[name].transform == "log1p" for name in self.labels.regressions]
        return np.where(log, np.sign(values) * np.log1p(np.abs(values)), values)

    def check(self) -> None:
        """Raise UserError if a split has no rows, or a task has only one class in a split or no weight in training."""
        spec = self.labels.spec
        for split, counts in zip(SPLITS, self.counts, strict=True):
            if counts.sum() == 0:
                raise UserError(f"{spec.path}: split: no rows are left for {split}; change the split")
            for name, (negatives, positives) in zip(spec.tasks, counts, strict=True):
                if negatives and (positives or name in self.labels.regressions):
                    continue
                absent = "positives" if negatives else "negatives" if positives else "observed rows"
                if split == "train" or not spec.split.allow_one_class:
                    absent = "observed rows" if name in self.labels.regressions else absent
                    raise UserError(
                        f"{spec.path}: task {name} has no {absent} in {split} ({negatives + positives} rows): change "
                        "the split, drop the task" + (", or set split.allow_one_class" if split != "train" else "")
                    )
        for name, positive, observed in zip(spec.tasks, self.positive, self.observed, strict=True):
            if name in self.labels.regressions:
                self._scale(name)
            elif not 0 < positive < observed:
                absent = "negatives" if positive else "positives"
                raise UserError(f"{spec.path}: task {name}: all {absent} in train have weight 0; change the weights")

    def _scale(self, name: str) -> tuple[float, float]:
        """Mean and deviation by which a regression task is standardised; UserError for a constant label."""
        place = self.labels.regressions.index(name)
        weight = self.observed[self.places[place]]
        mean, square = (self.sums[:, place] / weight).tolist() if weight else (0.0, 0.0)
        variance = square - mean**2
        if variance <= _ROUNDING * square:
            raise UserError(
                f"{self.labels.spec.path}: task {name}: all training rows with weight have the same label, or labels "
                "that differ by less than a millionth of their size; drop the task, or subtract a constant from them"
            )
        return (0.0, mean) if self.labels.spec.tasks[name].loss == "weighted_logistic" else (mean, variance**0.5)

    def _regression(self, name: str, spec: TaskSpec) -> Task:
        mean, deviation = self._scale(name)
        return Task(
            name,
            0.5,
            spec.observed_where,
            weight=_factor(spec),
            kind=TaskKind.REGRESSION,
            loss=spec.loss,
            transform=spec.transform,
            mean=mean,
            deviation=deviation,
        )

    def schema_tasks(self) -> tuple[Task, ...]:
        """The tasks of the schema, with their rates in the training rows."""
        tasks = []
        training = zip(self.labels.spec.tasks.items(), self.positive, self.observed, self.determined, strict=True)
        for (name, spec), positive, observed, determined in training:
            if spec.is_regression:
                tasks.append(self._regression(name, spec))
                continue
            over_all = spec.train_on == "all" and spec.observed_where
            rate = positive / (determined if over_all else observed)
            rules = (spec.observed_where, spec.train_on, spec.joint, _factor(spec), spec.dislike)
            tasks.append(Task(name, float(rate), *rules))
        return tuple(tasks)


def _factor(spec: TaskSpec) -> float:
    """Constant factor of a task's loss."""
    return 1.0 if isinstance(spec.weight, str) else spec.weight
