"""Cost of each task balancing method: samples per second of training steps, compared with the weighted sum.

python bench/balancing.py 3
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from common import compared, in_turn, report
from loops import make_model, repeated, timed
from shapes import Shape, feed

from dlen.batch import Batch
from dlen.data.store import Store
from dlen.training.balancing import (
    FAMO,
    Balancer,
    DynamicWeightAverage,
    Fixed,
    GeometricMean,
    GradNorm,
    SmoothTchebycheff,
    Surgery,
    Uncertainty,
)
from dlen.training.module import RankingModule
from dlen.training.optimizers import adam

STEPS = 30
BATCH = 4096
AGGREGATORS = ("UPGrad", "PCGrad", "GradVac", "MGDA", "IMTLG", "AlignedMTL")


def steps(store: Store, shape: Shape, make: Callable[[], Balancer]) -> float:
    """Samples per second of MMoE."""
    made = make()
    module = RankingModule(
        make_model("mmoe", store.schema, shape), partial(adam, lr=1e-3, embedding_lr=1e-3), balancer=made
    )
    optimizer: Any = module.configure_optimizers()

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        module.backward(module.training_step(batch, 0))
        optimizer.step()

    return timed(step, repeated(store.split("train"), BATCH), STEPS)


def main() -> None:
    """Measure every balancing method, and some aggregators."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    shape = feed(1_000_000)
    store = shape.store()
    kinds: dict[str, Callable[[], Balancer]] = {
        "fixed": Fixed,
        "uncertainty": Uncertainty,
        "dwa": DynamicWeightAverage,
        "famo": FAMO,
        "tchebycheff": SmoothTchebycheff,
        "geometric_mean": GeometricMean,
        "gradnorm": GradNorm,
        **{f"surgery, {name}": partial(Surgery, name) for name in AGGREGATORS},
        "surgery, FairGrad": partial(Surgery, "FairGrad", alpha=2.0),
    }
    found = in_turn({name: partial(steps, store, shape, make) for name, make in kinds.items()}, rounds)
    where = {"model": f"MMoE, {shape.experts} experts, {len(store.schema.tasks)} tasks"}
    report("balancing", compared(found, "fixed", "samples/s", "against fixed", where))


if __name__ == "__main__":
    main()
