"""One peer library on one shape, with its own trainer. Run by the benches with the Python of bench/peers/.venv.

python run.py train|evaluate LIBRARY MODEL ARRAYS.npz BATCH ROWS [FUXICTR]     # prints one line of JSON

FuxiCTR's package lacks the multi-task models of its repository, so it is used from a copy of that, the folder FUXICTR.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

EXPERT, TOWER, DIM = [256, 128, 64], [64, 32], 16

Parts = dict[str, Callable[[], object]]  # what trains one epoch, and what evaluates, both on the whole data


def rechub(model: str, data: dict[str, Any], batch: int) -> Parts:
    """torch-rechub's MTLTrainer with its own data loader."""
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
    return {"train": lambda: trainer.train_one_epoch(loader), "evaluate": lambda: trainer.evaluate(net, loader)}


def deepctr(model: str, data: dict[str, Any], batch: int) -> Parts:
    """DeepCTR-Torch's fit, without its metrics and its L2 over whole tables, and its evaluate with the AUC."""
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models.multitask import MMOE, PLE

    ids, labels, sizes = data["ids"], data["labels"].astype(np.float32), data["sizes"]
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

    def evaluate() -> None:
        net.metrics = net._get_metrics(["auc"])
        net.evaluate(inputs, labels, batch)

    return {"train": lambda: net.fit(inputs, labels, batch_size=batch, epochs=1, verbose=0), "evaluate": evaluate}


def fuxictr(model: str, data: dict[str, Any], batch: int) -> Parts:
    """FuxiCTR's trainer with its own data loader, without the regularisation of its examples."""
    repository = Path(sys.argv[7])
    name = {"mmoe": "MMoE", "ple": "PLE"}[model]
    sys.path[:0] = [str(repository), str(repository / "model_zoo/multitask" / name / "src")]
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader

    ids, labels, sizes = data["ids"], data["labels"], data["sizes"]
    features = FeatureMap("bench", "")
    for i, size in enumerate(sizes):
        features.features[f"f{i}"] = {"type": "categorical", "source": "", "vocab_size": int(size)}
    features.labels = [f"t{i}" for i in range(labels.shape[1])]
    features.num_fields, features.total_features = len(sizes), int(sizes.sum())
    features.set_column_index()
    tasks, shared, own = labels.shape[1], int(data["shared_experts"]), int(data["task_experts"])
    experts = {"num_experts": shared} if model == "mmoe" else {"num_shared_experts": shared}
    experts |= {} if model == "mmoe" else {"num_specific_experts": own, "num_layers": 2}
    columns = {f"f{i}": ids[:, i].astype(np.int64) for i in range(ids.shape[1])}
    columns |= {f"t{i}": labels[:, i].astype(np.int64) for i in range(tasks)}
    net = getattr(import_module(name), name)(
        features,
        task=["binary_classification"] * tasks,
        num_tasks=tasks,
        embedding_dim=DIM,
        expert_hidden_units=EXPERT,
        gate_hidden_units=[],
        tower_hidden_units=TOWER,
        loss=["binary_crossentropy"] * tasks,
        optimizer="adam",
        metrics=["AUC"],
        model_root="",
        verbose=0,
        **experts,
    )
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/rows.npz", **columns)  # type: ignore[arg-type]
        loader = NpzDataLoader(features, f"{folder}/rows.npz", batch_size=batch, shuffle=True, num_workers=0)
    net._max_gradient_norm, net._stop_training, net._total_steps = 10.0, False, 0  # as its fit sets them
    net._eval_steps = len(loader) + 1  # no validation
    return {"train": lambda: net.train_epoch(loader), "evaluate": lambda: net.evaluate(loader)}


def main() -> None:
    """Read the arrays, train or evaluate one epoch on the first ROWS rows, and print the rate."""
    what, library, model, path, batch, rows = sys.argv[1:7]
    torch.manual_seed(0)
    with np.load(path) as file:
        data = dict(file)
    data["ids"], data["labels"] = data["ids"][: int(rows)], data["labels"][: int(rows)]
    libraries = {"torch-rechub": rechub, "DeepCTR-Torch": deepctr, "FuxiCTR": fuxictr}
    part = libraries[library](model, data, int(batch))[what]
    started = time.perf_counter()
    part()
    print(json.dumps({"rows/s": len(data["ids"]) / (time.perf_counter() - started)}))


if __name__ == "__main__":
    main()
