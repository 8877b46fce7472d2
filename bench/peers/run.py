"""One peer library on one shape, with its own trainer. Run by bench/train.py with the Python of bench/peers/.venv.

python run.py LIBRARY MODEL ARRAYS.npz BATCH ROWS     # prints one line of JSON
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch

EXPERT, TOWER, DIM = [256, 128, 64], [64, 32], 16


def rechub(model: str, data: dict[str, Any], batch: int) -> float:
    """Seconds per epoch of torch-rechub's MTLTrainer with its own data loader."""
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.multi_task import MMOE, PLE
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    ids, labels, sizes = data["ids"], data["labels"], data["sizes"]
    features = [SparseFeature(f"f{i}", vocab_size=int(size), embed_dim=DIM) for i, size in enumerate(sizes)]
    tasks = ["classification"] * labels.shape[1]
    expert: dict[str, Any] = {"dims": EXPERT, "activation": "relu"}
    towers: list[dict[str, Any]] = [{"dims": TOWER, "activation": "relu"} for _ in tasks]
    shared, own = int(data["shared_experts"]), int(data["task_experts"])
    if model == "mmoe":
        net = MMOE(features, tasks, shared, expert, towers)
    else:
        net = PLE(features, tasks, 2, own, shared, expert, towers)
    columns = {f"f{i}": ids[:, i].astype(np.int64) for i in range(ids.shape[1])}
    loader, _, _ = DataGenerator(columns, labels).generate_dataloader(
        x_val=columns, y_val=labels, x_test=columns, y_test=labels, batch_size=batch
    )
    trainer = MTLTrainer(net, tasks, optimizer_params={"lr": 1e-3}, n_epoch=1)
    started = time.perf_counter()
    trainer.train_one_epoch(loader)
    return time.perf_counter() - started


def deepctr(model: str, data: dict[str, Any], batch: int) -> float:
    """Seconds per epoch of DeepCTR-Torch's fit, without its metrics and its L2 over whole tables."""
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models.multitask import MMOE, PLE

    ids, labels, sizes = data["ids"], data["labels"], data["sizes"]
    columns = [SparseFeat(f"f{i}", vocabulary_size=int(size), embedding_dim=DIM) for i, size in enumerate(sizes)]
    num_tasks, shared, own = labels.shape[1], int(data["shared_experts"]), int(data["task_experts"])
    common: dict[str, Any] = {
        "expert_dnn_hidden_units": EXPERT,
        "gate_dnn_hidden_units": (),
        "tower_dnn_hidden_units": TOWER,
        "l2_reg_embedding": 0,
        "l2_reg_linear": 0,
        "task_types": ["binary"] * num_tasks,
        "task_names": [f"t{i}" for i in range(num_tasks)],
    }
    if model == "mmoe":
        net = MMOE(columns, num_experts=shared, **common)
    else:
        net = PLE(columns, shared_expert_num=shared, specific_expert_num=own, num_levels=2, **common)
    net.compile("adam", loss=["binary_crossentropy"] * num_tasks, metrics=[])
    inputs = {f"f{i}": ids[:, i] for i in range(ids.shape[1])}
    started = time.perf_counter()
    net.fit(inputs, labels.astype(np.float32), batch_size=batch, epochs=1, verbose=0)
    return time.perf_counter() - started


def main() -> None:
    """Read the arrays, train one epoch on the first ROWS rows, and print the rate."""
    library, model, path, batch, rows = sys.argv[1:]
    torch.manual_seed(0)
    with np.load(path) as file:
        data = dict(file)
    data["ids"], data["labels"] = data["ids"][: int(rows)], data["labels"][: int(rows)]
    seconds = (rechub if library == "torch-rechub" else deepctr)(model, data, int(batch))
    print(json.dumps({"samples/s": len(data["ids"]) / seconds}))


if __name__ == "__main__":
    main()
