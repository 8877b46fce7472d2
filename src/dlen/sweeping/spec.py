"""What the coordinator of a study passes to its workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spec:
    """All that a worker needs, as plain values. The storage is passed in the environment.

    Attributes:
        name: name of the study.
        folder: folder of the study.
        conf: folder of Hydra's configs.
        common: overrides of all trials.
        space: ``sweep.space``.
        tasks: tasks of the data.
        objectives: direction of each metric, by key.
        sampler: name and further arguments.
        pruner: name and further arguments.
        first: training steps before the first validation.
        steps: training steps of a whole trial.
        seed: seed of the samplers.
        seeds: training runs per trial, one per seed.
        trials: wanted number of trials.
        retries: how often a trial that died is retried.
        devices: devices per trial, with one process each.
        fusion: a finished run whose ranking score is searched, and how; None if trials train a model.
        trust: packages, in addition to dlen, whose classes the config of that run may name.
        until: no trial starts after this time, in seconds since the epoch; None for no limit.
    """

    name: str
    folder: str
    conf: str
    common: list[str]
    space: dict[str, Any]
    tasks: list[str]
    objectives: dict[str, str]
    sampler: tuple[str, dict[str, Any]]
    pruner: tuple[str, dict[str, Any]]
    first: int
    steps: int
    seed: int
    seeds: int
    trials: int
    retries: int
    devices: int
    fusion: dict[str, Any] | None
    trust: list[str]
    until: float | None

    def prunable(self, seed: int) -> bool:
        """Whether training on this seed reports validations: only with a single objective, and on the first seed."""
        return len(self.objectives) == 1 and seed == 0 and self.pruner[0] != "wilcoxon"
