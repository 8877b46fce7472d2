"""What a model predicts for a whole split, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from dlen.data.loader import BatchLoader
from dlen.data.store import Split, Store
from dlen.errors import UserError
from dlen.models.ranker import Ranker
from dlen.schema import Kind
from dlen.training.run import build_model, open_run


@dataclass(frozen=True, slots=True)
class SplitScores:
    """N rows in stored order, T tasks.

    Attributes:
        log_p: (N, T) log-probabilities of the tasks, float32.
        log_up: (N,) log P(UP); None for a model without hidden state.
        labels: (N, T) as logged.
        users: (N,) ids; None where the data name no user.
        known: (N,) whether training has seen the user.
    """

    log_p: Tensor
    log_up: Tensor | None
    labels: Tensor
    users: Tensor | None
    known: Tensor


def score_split(folder: Path, split: str) -> SplitScores:
    """Predict a split with a run's best checkpoint, as :func:`score` does.

    Raises:
        UserError: the folder is no finished run, or the data are not those of the run.
    """
    config, store = open_run(folder)
    return score(load_model(folder, config, store), store.split(split), config.loader.eval_batch_size)


def load_model(folder: Path, config: DictConfig, store: Store, name: str = "best") -> Ranker:
    """A run's model in evaluation mode, on the CPU.

    Args:
        folder: of the run.
        config: of the run.
        store: its data.
        name: of the checkpoint.

    Raises:
        UserError: there is no such checkpoint.
    """
    checkpoint = folder / "checkpoints" / f"{name}.ckpt"
    if not checkpoint.exists():
        raise UserError(f"{checkpoint}: no such checkpoint; the run has not ended")
    model = build_model(config, store)
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    return model.eval()


def score(model: Ranker, split: Split, batch_size: int = 16384) -> SplitScores:
    """Predict every row of a split, in evaluation mode. Memory: 8 T + 16 bytes for each row.

    Args:
        model: trained, on the CPU.
        split: of the model's data.
        batch_size: rows at a time.
    """
    schema = model.schema
    ids = [f.name for f in schema.of_kind(Kind.ID)]
    column = ids.index(schema.user) if schema.user in ids else None
    log_p, log_up, labels, users = [], [], [], []
    model.eval()
    with torch.inference_mode():
        for batch in BatchLoader(split, batch_size, shuffle=False):
            predictions = model(batch)
            log_p.append(predictions.log_p)
            log_up.extend([] if predictions.latent is None else [predictions.latent.log_up])
            labels.append(batch.labels)
            users.extend([] if column is None else [batch.ids[:, column].long()])
    of_users = torch.cat(users) if users else None
    known = torch.ones(len(split), dtype=torch.bool)
    if of_users is not None:
        known = of_users.ne(schema.offsets[str(schema.user)])  # all unknown users have the first id
    return SplitScores(torch.cat(log_p), torch.cat(log_up) if log_up else None, torch.cat(labels), of_users, known)
