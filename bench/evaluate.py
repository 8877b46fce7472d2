"""Rows per second of a test pass with all metrics compared with forward passes only, and latency of 200 candidates.

python bench/evaluate.py
python bench/evaluate.py rounds=1 fuxictr=FOLDER     # FuxiCTR as well, from a copy of its repository
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from beside import check_peers, peers
from common import compared, in_turn, report
from loops import forward_alone, make_model
from shapes import Shape, aliccp_table, feed

from dlen.data.store import Store
from dlen.models import Ranker
from dlen.training.datamodule import RankingDataModule
from dlen.training.module import RankingModule

ROWS = 1_000_000
BATCH = 16_384
CANDIDATES = 200
REQUESTS = 200
PEER_ROWS = 20 * BATCH


def full_pass(store: Store, model: Ranker) -> float:
    """Test rows per second with every metric, through Lightning as in train.py and evaluate.py."""
    rows = len(store.split("train"))
    module = RankingModule(model, None, "auto", {"test": rows}, by_user=True)
    data = RankingDataModule(store, BATCH, BATCH, 0, "train")
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    started = time.perf_counter()
    trainer.test(module, datamodule=data, verbose=False)
    return rows / (time.perf_counter() - started)


def evaluation(shape: Shape, name: str, rounds: int, fuxictr: str) -> list[dict[str, Any]]:
    """Measure a test pass with and without metrics, and MMoE's of the peers, with AUC alone."""
    store = shape.store()
    model = make_model(name, store.schema, shape)
    parts: dict[str, Callable[[], float]] = {
        "forward alone": lambda: forward_alone(store.split("train"), model, BATCH),
        "with all metrics": lambda: full_pass(store, model),
    }
    if name == "mmoe":
        parts |= peers("evaluate", name, shape.arrays(), BATCH, PEER_ROWS, fuxictr)
    found = in_turn(parts, rounds)
    where = {"shape": shape.name, "model": name}
    return compared(found, "forward alone", "rows/s", "against forward alone", where)


def latency(shape: Shape, name: str) -> dict[str, Any]:
    """Milliseconds per request, in PyTorch on one thread."""
    store = shape.store()
    model = make_model(name, store.schema, shape).eval()
    batch = store.split("train").batch(torch.arange(CANDIDATES))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    taken = []
    with torch.inference_mode():
        for _ in range(REQUESTS):
            started = time.perf_counter()
            model(batch)
            taken.append(1000 * (time.perf_counter() - started))
    torch.set_num_threads(threads)
    p99 = statistics.quantiles(taken, n=100)[98]
    row: dict[str, Any] = {"shape": shape.name, "model": name, "candidates": CANDIDATES}
    return row | {"median ms, PyTorch, one thread": f"{statistics.median(taken):.2f}", "p99 ms": f"{p99:.2f}"}


def main() -> None:
    """Measure both shapes with MMoE and DLEN."""
    asked = dict(a.split("=") for a in sys.argv[1:])
    rounds, fuxictr = int(asked.get("rounds", 3)), asked.get("fuxictr", "")
    check_peers()
    warnings.filterwarnings("ignore")
    shapes = [aliccp_table(ROWS), feed(ROWS)]
    pairs = [(shape, name) for shape in shapes for name in ("mmoe", "dlen")]
    report("evaluate", [row for shape, name in pairs for row in evaluation(shape, name, rounds, fuxictr)])
    report("latency", [latency(shape, name) for shape in shapes for name in ("mmoe", "ple", "dlen")])


if __name__ == "__main__":
    main()
