"""What the coordinator of a study tells its workers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spec:
    """All that a worker has to know, as plain values; the storage comes by the environment.

    Attributes:
        name: of the study.
        folder: of the study.
        conf: folder of Hydra's configs.
        common: overrides of all trials.
        space: ``sweep.space``.
        tasks: of the data.
        objectives: key of a figure to its direction.
        sampler: name and further arguments.
        pruner: name and further arguments.
        first: training steps before the first validation.
        steps: of a whole trial.
        seed: of the samplers.
        seeds: trainings of each trial.
        trials: wanted number.
        retries: how often a trial that died is tried again.
        devices: of each trial, one process for each.
        fusion: a finished run whose ranking score is searched, and how; None where trials train.
        trust: packages whose classes the config of that run may name beside those of dlen.
        until: no trial begins after this time, in seconds since the epoch; None for no limit.
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

    def to_json(self) -> str:
        """For a worker's command line."""
        return json.dumps(asdict(self))

    def prunable(self, seed: int) -> bool:
        """Whether the training on this seed reports its validations: one objective's, and of the first seed alone."""
        return len(self.objectives) == 1 and seed == 0 and self.pruner[0] != "wilcoxon"
