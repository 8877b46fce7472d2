"""Targets: the rows that train a task, the rows that evaluate it, and the joint events of funnels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dlen.schema import Schema


class Targets:
    """Implements ``observed_where`` and ``train_on`` as tensor operations.

    The K measured targets are the T tasks, followed by the joint events of funnels, such as ``ctcvr``.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.joints = [t for t in schema.tasks if t.joint]
        self._on_all = [(index, t.name) for index, t in enumerate(schema.tasks) if t.train_on == "all"]
        self.names = [*schema.task_names, *(t.joint for t in self.joints)]

    def measured(self, labels: Tensor) -> Tensor:
        """(B, T) labels -> (B, T) 1 where a row evaluates a task: its label is known and its parents are positive."""
        known, happened = ~labels.isnan(), labels == 1
        parents = {index: list(self.schema.chain(task.name))[1:] for index, task in enumerate(self.schema.tasks)}
        of_children = {
            index: torch.stack([known[:, index], *(happened[:, parent] for parent in chain)]).all(0)
            for index, chain in parents.items()
            if chain
        }
        return _replaced(known, of_children).to(labels.dtype)

    def trained(self, labels: Tensor) -> Tensor:
        """(B, T) labels -> (B, T) 1 where a row trains a task."""
        return _replaced(self.measured(labels), {index: self._joint(labels, name)[1] for index, name in self._on_all})

    def training_labels(self, labels: Tensor) -> Tensor:
        """(B, T) labels -> (B, T) training labels: with ``train_on: all``, the task jointly with its parents.

        Missing labels become 0; they do not train anything.
        """
        return _replaced(labels.nan_to_num(), {index: self._joint(labels, name)[0] for index, name in self._on_all})

    def labels(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) labels -> (B, K) labels and (B, K) mask of all measured targets."""
        joint = [self._joint(labels, t.name) for t in self.joints]
        happened = torch.stack([*labels.nan_to_num().unbind(1), *(event for event, _ in joint)], 1)
        mask = torch.stack([*self.measured(labels).unbind(1), *(decided for _, decided in joint)], 1)
        return happened, mask

    def _joint(self, labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """(B,) 1 where a task and all of its parents are positive, and (B,) 1 where the labels decide it.

        One negative label decides it even if others are missing.
        """
        # one column at a time: a list of columns would be sent to a GPU in every step, which waits for it
        chain = torch.stack([labels[:, index] for index in self.schema.chain(name)], 1)
        happened = (chain == 1).all(1)
        decided = happened | (chain == 0).any(1)
        return happened.to(labels.dtype), decided.to(labels.dtype)

    def log_probabilities(self, log_p: Tensor) -> Tensor:
        """(B, T) log-probabilities of the tasks -> (B, K) of all measured targets.

        A task trained on rows where its parent is positive predicts a conditional probability, so the probability of
        its joint event is the product along the chain. A task trained on all rows already predicts the joint event.
        """
        columns = list(log_p.unbind(1))
        for task in self.joints:
            total = torch.zeros_like(columns[0])
            for index in self.schema.chain(task.name):
                total = total + log_p[:, index]
                if self.schema.tasks[index].train_on == "all":
                    break
            columns.append(total)
        return torch.stack(columns, 1)

    def is_probability(self) -> list[bool]:
        """For each measured target, whether its scores are also its probabilities.

        A conversion head trained on all impressions ranks the clicked rows, but its probability is that of ``ctcvr``.
        A regression task has none.
        """
        tasks = [
            not t.is_regression and (t.observed_where is None or t.train_on == "observed") for t in self.schema.tasks
        ]
        return tasks + [True] * len(self.joints)


def _replaced(columns: Tensor, others: Mapping[int, Tensor]) -> Tensor:
    """(B, T) columns, some of which are replaced by others, (B,) each."""
    if not others:
        return columns
    return torch.stack([others.get(index, column) for index, column in enumerate(columns.unbind(1))], 1)
