"""Samples per second of train.py compared with bare loops, peer libraries and the machine's matrix multiplication.

python bench/train.py                                          # all, about 40 minutes on 2 cores
python bench/train.py rounds=1 shapes=feed models=mmoe batches=4096
python bench/train.py fuxictr=FOLDER                           # FuxiCTR as well, from a copy of its repository
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from beside import check_peers, peers
from common import DATA, in_turn, median_and_spread, ratio, report, run
from loops import as_peers_do, make_model, matmul_limit, ours
from shapes import Shape, aliccp_table, feed

PEER_STEPS = 20  # few because they are slow
STEPS = 150
ROWS = 1_000_000
BASE = "bare loop, our parts"
WHOLE = "train.py, with validation and checkpoints"


def through_lightning(shape: Shape, model: str, batch: int, rates: dict[str, list[float]] | None = None) -> float:
    """train.py as a user runs it. Returns its rate without its four validations and their checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"model={model}", "model/interaction=none", *shape.data]  # as the peers' models
        settings += [f"data_dir={DATA}", f"run_dir={folder}/run"]
        steps = 4 * STEPS * 4096 // batch  # the first steps are slow: Adam's moments are allocated, memory is mapped
        settings += [f"loader.batch_size={batch}", f"trainer.max_steps={steps}", "trainer.max_epochs=-1"]
        run(["train.py", *settings, f"trainer.val_check_interval={steps // 4}"])
        metrics: dict[str, Any] = json.loads((Path(folder) / "run" / "metrics.json").read_text())
    rows = metrics["fit/samples_per_second"] * metrics["fit/seconds"]
    if rates is not None:
        seconds = sum(metrics[f"fit/{part}seconds"] for part in ("", "validation_", "checkpoint_"))
        rates[WHOLE].append(rows / seconds)
    return float(metrics["fit/samples_per_second"])


def measure(shape: Shape, model: str, batch: int, rounds: int, fuxictr: str) -> list[dict[str, Any]]:
    """All rates of one shape, model and batch size, measured in turn.

    Args:
        fuxictr: folder with FuxiCTR's repository; empty to leave FuxiCTR out.
    """
    store, arrays = shape.store(), shape.arrays()
    limited = make_model(model, store.schema, shape)
    validated: dict[str, list[float]] = {WHOLE: []}
    parts: dict[str, Callable[[], float]] = {
        BASE: lambda: ours(store, make_model(model, store.schema, shape), batch, STEPS),
        "bare loop, our parts, 32 bits": lambda: ours(
            store, make_model(model, store.schema, shape), batch, STEPS, "32-true"
        ),
        "train.py": partial(through_lightning, shape, model, batch, validated),
        "bare loop as peers write it": lambda: as_peers_do(store, shape, model, batch, STEPS // 5),
        "matrix products alone": lambda: matmul_limit(limited, limited.spec.width, batch),
    }
    if model == "mmoe":
        parts["bare loop, one more expert"] = lambda: ours(
            store, make_model("mmoe", store.schema, shape, 1), batch, STEPS
        )
        parts["bare loop, DLEN"] = lambda: ours(store, make_model("dlen", store.schema, shape), batch, STEPS)
    parts |= peers("train", model, arrays, batch, batch * PEER_STEPS, fuxictr)
    found = in_turn(parts, rounds) | validated
    where = {"shape": shape.name, "model": model, "batch": batch}
    return [
        where
        | {
            "what": name,
            "samples/s": median_and_spread(rates),
            "train.py is x times": ratio(found["train.py"], rates),
        }
        for name, rates in found.items()
    ]


def main() -> None:
    """Measure what the arguments request, and report."""
    asked = dict(a.split("=") for a in sys.argv[1:])
    rounds = int(asked.get("rounds", 3))
    check_peers()
    shapes = {"aliccp": partial(aliccp_table, ROWS), "feed": partial(feed, ROWS)}
    rows = []
    for name in asked.get("shapes", "aliccp,feed").split(","):
        for batch in asked.get("batches", "1024,4096").split(","):
            for model in asked.get("models", "mmoe,ple").split(","):
                rows += measure(shapes[name](), model, int(batch), rounds, asked.get("fuxictr", ""))
    report("train", rows)


if __name__ == "__main__":
    main()
