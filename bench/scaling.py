"""A cost model of training and evaluation, fitted to short measurements and checked against a longer run.

python bench/scaling.py                  # about 15 minutes on 2 cores
python bench/scaling.py 400000 2         # rows of the check, rounds

Seconds per row = a * FLOPs of the linear layers + b * ids + c * ids * dimension + d / batch.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, report, run
from loops import forward_alone, make_model, ours
from scipy.optimize import nnls
from shapes import Shape, aliccp_table, feed
from torch import nn

from dlen.models import Ranker

ROWS = 1_000_000
STEPS = 40
DIMS = (8, 16, 32)


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: the cost of a row and its causes.

    Attributes:
        what: train or evaluate.
        flops: FLOPs of the linear layers per row, forward only, or forward and backward.
        ids: number of ids per row.
        dim: embedding dimension.
        batch: rows per batch.
        seconds: seconds per row.
    """

    what: str
    flops: float
    ids: int
    dim: int
    batch: int
    seconds: float

    def terms(self) -> list[float]:
        """The factors of the four coefficients."""
        return [self.flops, self.ids, self.ids * self.dim, 1 / self.batch]


def flops(model: Ranker) -> float:
    """Multiplications and additions of one forward pass per row."""
    layers = [m for m in (*model.backbone.modules(), *model.head.modules()) if isinstance(m, nn.Linear)]
    return float(sum(2 * layer.in_features * layer.out_features for layer in layers))


def points(shape: Shape, name: str, rounds: int) -> list[Point]:
    """Measurements of one shape and model at two batch sizes and all dimensions."""
    store, found = shape.store(), []
    for dim in DIMS:
        for batch in (1024, 4096):
            model = make_model(name, store.schema, shape, dim=dim)
            forward, ids = flops(model), len(store.schema.fields)
            parts: dict[str, Callable[[], float]] = {
                "train": partial(ours, store, model, batch, STEPS, "32-true"),
                "evaluate": partial(forward_alone, store.split("validation"), model, batch),
            }
            for what, part in parts.items():
                rate = statistics.median(part() for _ in range(rounds))
                factor = 3 if what == "train" else 1
                found.append(Point(what, factor * forward, ids, dim, batch, 1 / rate))
                print(f"{shape.name} {name} dim {dim} batch {batch}: {what} {rate:,.0f} rows/s", file=sys.stderr)
    return found


def fit(found: list[Point]) -> tuple[np.ndarray[Any, Any], float]:
    """Non-negative coefficients with the smallest relative error, and the median error."""
    terms, seconds = np.array([p.terms() for p in found]), np.array([p.seconds for p in found])
    coefficients, _ = nnls(terms / seconds[:, None], np.ones(len(found)))
    return coefficients, float(np.median(abs(terms @ coefficients / seconds - 1)))


def check(rows: int, coefficients: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Predicted and measured seconds of an epoch of train.py with this many rows."""
    shape, batch = feed(rows), 4096
    store = shape.store()
    model = make_model("mmoe", store.schema, shape)
    training = len(store.split("train"))
    one = Point("train", 3 * flops(model), len(store.schema.fields), 16, batch, 0.0)
    predicted = training * float(np.dot(one.terms(), coefficients))
    with tempfile.TemporaryDirectory() as folder:
        settings = ["model=mmoe", *shape.data, f"data_dir={DATA}", f"run_dir={folder}/run", "trainer.max_epochs=1"]
        run(["train.py", *settings, f"loader.batch_size={batch}", "trainer.precision=32-true"])
        taken = json.loads((Path(folder) / "run" / "metrics.json").read_text())["fit/seconds"]
    return {"training rows": f"{training:,}", "predicted, s": f"{predicted:.0f}", "taken, s": f"{taken:.0f}"}


def main() -> None:
    """Fit, check, and report."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    found = [
        point
        for shape in (aliccp_table(ROWS), feed(ROWS))
        for name in ("mmoe", "ple")
        for point in points(shape, name, rounds)
    ]
    table, fitted = [], {}
    for what in ("train", "evaluate"):
        coefficients, error = fit([p for p in found if p.what == what])
        fitted[what] = coefficients
        a, b, c, d = coefficients
        row = {"what": what, "GFLOP/s": f"{1e-9 / a:.0f}" if a else "", "ns for an id": f"{1e9 * b:.1f}"}
        row |= {"ns for a number of an id's vector": f"{1e9 * c:.2f}", "ms for a batch": f"{1e3 * d:.2f}"}
        table.append(row | {"median error": f"{error:.0%}"})
    report("scaling", table)
    report("scaling_check", [check(rows, fitted["train"])])


if __name__ == "__main__":
    main()
