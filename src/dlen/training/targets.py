"""Targets: which rows train a task, which rows measure it, and what is measured over all rows of a funnel."""

from __future__ import annotations

import torch
from torch import Tensor

from dlen.schema import Schema


class Targets:
    """The rules of ``observed_where`` and ``train_on`` as tensor operations.

    Measured targets are the tasks themselves, then the joint events of funnels such as ``ctcvr``.

    Args:
        schema: gives the tasks.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.joints = [t for t in schema.tasks if t.joint]
        self.names = [*schema.task_names, *(t.joint for t in self.joints)]

    def measured(self, labels: Tensor) -> Tensor:
        """(B, T) labels -> (B, T) 1 where a row measures a task."""
        columns = []
        for task in self.schema.tasks:
            parents = list(self.schema.chain(task.name))[1:]
            columns.append(labels[:, parents].prod(1) if parents else torch.ones_like(labels[:, 0]))
        return torch.stack(columns, 1)

    def trained(self, labels: Tensor) -> Tensor:
        """(B, T) labels -> (B, T) 1 where a row trains a task."""
        everywhere = torch.tensor([t.train_on == "all" for t in self.schema.tasks], device=labels.device)
        return torch.where(everywhere, 1.0, self.measured(labels))

    def training_labels(self, labels: Tensor) -> Tensor:
        """(B, T) labels -> (B, T) what each head learns: with ``train_on: all``, the task together with its parents."""
        columns = [
            labels[:, list(self.schema.chain(t.name))].prod(1) if t.train_on == "all" else labels[:, i]
            for i, t in enumerate(self.schema.tasks)
        ]
        return torch.stack(columns, 1)

    def labels(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) labels -> (B, K) labels and (B, K) mask of all measured targets."""
        joint = [labels[:, list(self.schema.chain(t.name))].prod(1) for t in self.joints]
        mask = self.measured(labels)
        every = torch.ones(len(labels), len(joint), device=labels.device)
        return torch.stack([*labels.unbind(1), *joint], 1), torch.cat([mask, every], 1)

    def log_probabilities(self, log_p: Tensor) -> Tensor:
        """(B, T) log-probabilities of the tasks -> (B, K) of all measured targets.

        A task trained on the rows where its parent is positive is conditional, so its joint event has the product
        of probabilities along the chain. A task trained on all rows already predicts the joint event.
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
        """For each measured target, whether the scores are its probability and not only rank it.

        A conversion head trained on all impressions ranks the clicked rows, but what it predicts is ``ctcvr``.
        """
        tasks = [t.observed_where is None or t.train_on == "observed" for t in self.schema.tasks]
        return tasks + [True] * len(self.joints)
