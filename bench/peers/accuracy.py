"""torch-rechub on one prepared data set, with its own trainer and loader. Run by bench/accuracy.py.

python accuracy.py MODEL ARRAYS.npz SEED BATCH EPOCHS SCORES.npy     # writes (test rows, tasks) log-odds
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models.multi_task import MMOE, PLE
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import PredictDataset, TorchDataset

EXPERT, TOWER, DIM, PATIENCE = [256, 128, 64], [64, 32], 16, 3


def features_of(data: dict[str, Any]) -> list[Any]:
    """One feature per field, with embedding vectors of our length."""
    found: list[Any] = [SparseFeature(f"f{i}", vocab_size=int(n), embed_dim=DIM) for i, n in enumerate(data["sizes"])]
    found += [
        SequenceFeature(f"b{i}", vocab_size=int(n) + 1, embed_dim=DIM, pooling="mean", padding_idx=0)
        for i, n in enumerate(data["bag_sizes"])
    ]
    return found + [DenseFeature(f"n{i}") for i in range(data["train_numeric"].shape[1])]


def columns_of(data: dict[str, Any], split: str) -> dict[str, Any]:
    """A split in the format of its data generator. Lists are padded with id 0; their own ids start at 1."""
    ids, bags, numeric = (data[f"{split}_{part}"] for part in ("ids", "bags", "numeric"))
    found = {f"f{i}": ids[:, i].astype(np.int64) for i in range(ids.shape[1])}
    found |= {f"b{i}": bags[:, i].astype(np.int64) for i in range(bags.shape[1])}
    return found | {f"n{i}": numeric[:, i] for i in range(numeric.shape[1])}


def mean_auc(labels: Any, scores: Any) -> float:
    """Mean over the tasks with both classes."""
    known = [i for i in range(labels.shape[1]) if 0 < labels[:, i].mean() < 1]
    return float(np.mean([roc_auc_score(labels[:, i], scores[:, i]) for i in known]))


def main() -> None:
    """Train, keep the epoch with the best mean validation AUC, and write its scores of the test rows."""
    model, path, seed, batch, epochs, out = sys.argv[1:]
    torch.manual_seed(int(seed))
    torch.set_num_threads(1)
    with np.load(path) as file:
        data = dict(file)
    tasks = ["classification"] * data["train_labels"].shape[1]
    expert: dict[str, Any] = {"dims": EXPERT, "activation": "relu"}
    towers: list[dict[str, Any]] = [{"dims": TOWER, "activation": "relu"} for _ in tasks]
    shared, own = int(data["shared_experts"]), int(data["task_experts"])
    features = features_of(data)
    if model == "mmoe":
        net = MMOE(features, tasks, int(data["num_experts"]), expert, towers)
    else:
        net = PLE(features, tasks, 2, own, shared, expert, towers)
    splits = {name: (columns_of(data, name), data[f"{name}_labels"]) for name in ("train", "validation", "test")}
    train = DataLoader(TorchDataset(*splits["train"]), batch_size=int(batch), shuffle=True)
    validation, test = (DataLoader(PredictDataset(splits[s][0]), batch_size=16384) for s in ("validation", "test"))
    trainer = MTLTrainer(net, tasks, n_epoch=int(epochs))
    best, waited, weights = 0.0, 0, None
    for _ in range(int(epochs)):
        trainer.train_one_epoch(train)
        found = mean_auc(splits["validation"][1], np.array(trainer.predict(net, validation)))
        if found > best:
            best, waited, weights = found, 0, copy.deepcopy(net.state_dict())
        elif (waited := waited + 1) >= PATIENCE:
            break
    net.load_state_dict(weights)
    p = np.clip(np.array(trainer.predict(net, test), np.float64), 1e-7, 1 - 1e-7)
    np.save(out, np.log(p / (1 - p)).astype(np.float32))


if __name__ == "__main__":
    main()
