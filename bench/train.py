"""Samples per second of train.py against a bare PyTorch loop with the same model, optimiser and batches.

python bench/train.py            # 1 M generated Ali-CCP rows, three rounds
python bench/train.py 100000 1   # fewer rows, one round
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import ROOT, median_and_spread, report, run

from dlen.batch import Batch
from dlen.data.loader import BatchLoader
from dlen.data.prepare import prepare
from dlen.data.sources.aliccp_demo import AliCCPDemo
from dlen.data.store import Split, Store
from dlen.models import DLEN
from dlen.models.backbones import MMoEBackbone
from dlen.training.optimizers import adam
from dlen.training.targets import Targets

STEPS = 150


def through_lightning(rows: int, batch_size: int) -> float:
    """train.py as a user runs it, with logging and metrics; the rate leaves its validation passes out."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ["model=dlen", "data=aliccp_demo", f"data.rows={rows}", f"run_dir={folder}/run"]
        settings += [f"loader.batch_size={batch_size}", f"trainer.max_steps={STEPS}", "trainer.max_epochs=-1"]
        run(["train.py", *settings])
        metrics: dict[str, Any] = json.loads((Path(folder) / "run" / "metrics.json").read_text())
    return float(metrics["fit/samples_per_second"])


def bare_loop(store: Store, batches: Iterable[Batch]) -> float:
    """The same model and optimiser in a loop of a few lines."""
    torch.manual_seed(0)
    model = DLEN(store.schema, backbone=partial(MMoEBackbone, num_experts=2))
    optimizer = adam(model, lr=1e-3, embedding_lr=1e-3)
    targets, weights = Targets(store.schema), torch.ones(len(store.schema.tasks))
    rows, started = 0, time.perf_counter()
    for step, batch in enumerate(batches):
        if step == STEPS:
            break
        optimizer.zero_grad()
        labels, mask = targets.training_labels(batch.labels), targets.trained(batch.labels)
        loss = model.head.loss(model(batch), labels, mask, weights)
        loss.backward()
        optimizer.step()
        rows += len(batch)
    return rows / (time.perf_counter() - started)


def repeated(split: Split, batch_size: int) -> Iterable[Batch]:
    """The loader's batches, over as many epochs as STEPS takes."""
    loader = BatchLoader(split, batch_size, shuffle=True)
    while True:
        yield from loader


def main() -> None:
    """Measure both batch sizes in turn and report."""
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    store = prepare(AliCCPDemo(str(ROOT / "data/aliccp_demo/raw"), rows=size), ROOT / "data")
    rows = []
    for batch_size in (1024, 4096):
        found: dict[str, list[float]] = {"train.py": [], "bare loop": [], "bare loop, batches in memory": []}
        for _ in range(rounds):
            split = store.split("train")
            found["bare loop"].append(bare_loop(store, repeated(split, batch_size)))
            ready = [batch for batch, _ in zip(repeated(split, batch_size), range(STEPS), strict=False)]
            found["bare loop, batches in memory"].append(bare_loop(store, ready))
            found["train.py"].append(through_lightning(size, batch_size))
        base = statistics.median(found["bare loop"])
        for name, rates in found.items():
            row = {"batch": batch_size, "what": name, "samples/s": median_and_spread(rates)}
            rows.append(row | {"against the bare loop": f"{statistics.median(rates) / base:.3f}"})
    report("train", rows)


if __name__ == "__main__":
    main()
