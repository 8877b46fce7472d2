"""Predictions of a model for a whole split, as arrays, and the score that ranks a feed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dlen.batch import Batch
from dlen.data.loader import BatchLoader
from dlen.data.sources.feed import Feed
from dlen.data.split import Split
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.models.model import Model
from dlen.ranking.calibration import Calibration, fit_calibration
from dlen.ranking.fusion import UP, Fusion, Score
from dlen.schema import Schema
from dlen.targets import Targets
from dlen.training.building import build_model
from dlen.training.checkpoints import load_weights

_USERS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class SplitScores:
    """Predictions for N rows in stored order and T tasks.

    Attributes:
        log_p: (N, T) float32 log-probabilities of the tasks.
        log_states: (N, S) log-probabilities of the hidden states, P(UP) first; None for a model without any.
        labels: (N, T) labels as logged.
        users: (N,) user ids; None if the data name no user.
        known: (N,) whether the user occurs in the training data.
    """

    log_p: Tensor
    log_states: Tensor | None
    labels: Tensor
    users: Tensor | None
    known: Tensor


def load_model(folder: Path, config: DictConfig, store: Store, name: str = "best") -> Model:
    """Load a run's model in evaluation mode, on the CPU.

    Args:
        store: prepared data of the run.

    Raises:
        UserError: there is no such checkpoint.
    """
    checkpoint = folder / "checkpoints" / f"{name}.ckpt"
    if not checkpoint.exists():
        raise UserError(f"{checkpoint}: no such checkpoint; the run is not finished")
    model = build_model(config, store)
    load_weights(model, checkpoint)
    return model.eval()


def score(model: Model, split: Split, batch_size: int = 16384) -> SplitScores:
    """Predict every row of a split, in evaluation mode. Takes 8 T + 16 bytes of memory per row.

    Args:
        model: trained model, on the CPU.
        split: split of the model's data.
    """
    schema = model.schema
    column = schema.user_column
    log_p, log_states, labels, users = [], [], [], []
    model.eval()
    with torch.inference_mode():
        for batch in BatchLoader(split, batch_size, shuffle=False):
            predictions = model(batch)
            log_p.append(predictions.log_p)
            log_states.extend([] if predictions.log_states is None else [predictions.log_states])
            labels.append(batch.labels)
            users.extend([] if column is None else [batch.ids[:, column].long()])
    of_users = torch.cat(users) if users else None
    known = torch.ones(len(split), dtype=torch.bool)
    if of_users is not None:
        known = of_users.ne(schema.offsets[str(schema.user)])  # all unknown users share the first id
    return SplitScores(torch.cat(log_p), _joined(log_states), torch.cat(labels), of_users, known)


def score_pairs(model: Model, source: Feed, users: NDArray[Any], hour: int) -> tuple[Tensor, Tensor | None]:
    """Predict every pair of U users and all I items of a simulator.

    Args:
        model: model trained on the simulator's data.
        users: (U,) user numbers.

    Returns:
        (U I, T) log-probabilities, grouped by user, and (U I, S) of the hidden states or None.
    """
    offsets, tasks = model.schema.offsets, len(model.schema.tasks)
    log_p, log_states = [], []
    with torch.inference_mode():
        for first in range(0, len(users), _USERS_AT_ONCE):
            of_users = [source.pairs(int(u), hour, offsets) for u in users[first : first + _USERS_AT_ONCE]]
            ids = torch.from_numpy(np.concatenate(of_users))
            predictions = model(Batch.of_ids(ids, torch.zeros(len(ids), tasks)))
            log_p.append(predictions.log_p)
            log_states.extend([] if predictions.log_states is None else [predictions.log_states])
    return torch.cat(log_p), _joined(log_states)


def _joined(parts: Sequence[Tensor]) -> Tensor | None:
    return torch.cat(list(parts)) if parts else None


def read_fusion(node: DictConfig) -> Fusion:
    """Read the fusion settings of a config.

    Raises:
        UserError: a setting is wrong.
    """
    settings: Any = OmegaConf.to_container(node, resolve=True)
    try:
        return Fusion(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"config fusion: {error}") from None


def make_scores(fusions: Sequence[Fusion], model: Model, store: Store, key: str = "fusion") -> list[Score]:
    """Build a model's scores, with probabilities calibrated on the validation split where requested.

    Args:
        fusions: settings of each score. The model is calibrated once for all of them.
        store: data of the model.
        key: config key of the settings, for error messages.

    Raises:
        UserError: a weight names an unknown task, the model has no P(UP) but a score needs it, or calibration fails.
    """
    schema = model.schema
    try:
        weights = [f.for_tasks(schema.task_names, [task.dislike for task in schema.tasks]) for f in fusions]
    except ValueError as error:
        raise UserError(f"config {key}: {error}") from None
    if any(fusion.needs_up for fusion in fusions) and model.ranking is None:
        raise UserError(f"config {key}.up: the model has no P(UP); set it and {key}.floor to 0")
    states = []
    for fusion in fusions:
        known = model.state_names or (UP,)
        if fusion.state not in known:
            raise UserError(
                f"config {key}.state: the model has no hidden state {fusion.state!r}; its states are {', '.join(known)}"
            )
        states.append(known.index(fusion.state))
    calibration = None
    if any(fusion.calibrate for fusion in fusions):
        calibration = calibrate(score(model, store.split("validation")), schema)
    parts = zip(fusions, weights, states, strict=True)
    return [Score(f, w, calibration if f.calibrate else None, state) for f, w, state in parts]


def calibrate(scores: SplitScores, schema: Schema) -> Calibration:
    """Calibrate a model's tasks on its predictions for held-out rows.

    Raises:
        UserError: for a task, higher predictions go with fewer positives.
    """
    measured = Targets(schema).measured(scores.labels)
    measured[:, schema.regressions] = 0  # a number has no rate to be calibrated to
    try:
        return fit_calibration(scores.log_p, scores.labels, measured)
    except ValueError as error:
        raise UserError(f"config fusion.calibrate: {error}; set it to false, or train longer") from None
