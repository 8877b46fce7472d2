"""Cost of id dropout and first-order terms, as a share of the time of a training step.

python bench/id_dropout.py          # about three minutes on 2 cores
python bench/id_dropout.py rounds=1 rows=200000
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import islice

from common import in_turn, median_and_spread, ratio, report
from loops import ours, repeated, timed
from shapes import Shape, aliccp_table, feed

from dlen.batch import Batch
from dlen.models import MMoE
from dlen.nn.id_dropout import IdDropout

STEPS = 60


def dropout_alone(shape: Shape, batch_size: int) -> float:
    """Rows per second of id replacement only, on batches already in memory."""
    store = shape.store()
    dropout = IdDropout(store.schema, store.counts)
    batches = list(islice(repeated(store.split("train"), batch_size), STEPS))

    def replace(batch: Batch) -> None:
        dropout(batch)

    return timed(replace, batches, STEPS - 10)


def step_alone(shape: Shape, batch_size: int, *, first_order: bool) -> float:
    """Rows per second of whole steps without id dropout."""
    store = shape.store()
    model = MMoE(store.schema, num_experts=shape.experts, first_order=first_order)
    return ours(store, model, batch_size, STEPS)


def main() -> None:
    """Measure both shapes in turn and report."""
    asked = dict(a.split("=") for a in sys.argv[1:])
    rounds, count = int(asked.get("rounds", 5)), int(asked.get("rows", 1_000_000))
    rows = []
    for shape in (aliccp_table(count), feed(count)):
        for batch in (1024, 4096):
            parts = {
                "step": partial(step_alone, shape, batch, first_order=True),
                "without": partial(step_alone, shape, batch, first_order=False),
                "id dropout": partial(dropout_alone, shape, batch),
            }
            found = in_turn(parts, rounds)
            rows.append(
                {
                    "shape": shape.name,
                    "batch": batch,
                    "steps, samples/s": median_and_spread(found["step"]),
                    "id dropout, samples/s": median_and_spread(found["id dropout"]),
                    "its share of a step": ratio(found["step"], found["id dropout"]),
                    "speed with first-order terms": ratio(found["step"], found["without"]),
                }
            )
    report("id_dropout", rows)


if __name__ == "__main__":
    main()
