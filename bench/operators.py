"""Operator calls of a training step: counts, which no other program on the machine can disturb, and times by threads.

python bench/operators.py                     # about 15 minutes
python bench/operators.py shapes=feed models=mmoe

Counts every ATen call of a step of 1,024 rows, those that a call makes itself included. Times are those of the calls
alone, for one thread and one per core: the least of several rounds, as other programs only add to them.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import Any

import lightning as L
import torch
from common import DATA, ROOT, report
from hydra import initialize_config_dir
from lightning.pytorch.callbacks import Callback
from loops import bare_step, make_model, repeated
from shapes import Shape, aliccp_table, feed
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from dlen.overrides import compose_train, register_resolvers
from dlen.training.fit import fit

BATCH, ROWS = 1024, 60_000
WARM_UP, STEPS = 5, 5
PARTS = ("loader", "embedding", "backbone", "head", "backward", "optimiser")
ROUNDS, TIMED = 5, 40
GROUPS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "casts and copies": ("copy_", "_to_copy", "cat", "stack", "contiguous", "clone"),
    "table: rows, sorting, sums": ("index_select", "embedding", "index_add_", "index_copy_", "sort", "_unique2"),
    "dense Adam": ("_fused_adam_",),
}
OTHER, CALLS = "other operators", "calls outside of operators"
ENGINE, OPTIMIZER = "autograd::engine", "Optimizer."  # what torch itself calls these parts


def part_of(event: FunctionEvent) -> str:
    """The part of a step in which a call was made."""
    parent: FunctionEvent | None = event
    while parent is not None:
        if parent.name in PARTS:
            return parent.name
        if parent.name.startswith((ENGINE, OPTIMIZER)):
            return "backward" if parent.name.startswith(ENGINE) else "optimiser"
        parent = parent.cpu_parent
    return "targets, loss"


def counted(profiler: profile) -> Counter[str]:
    """ATen calls by part."""
    return Counter(part_of(event) for event in profiler.events() if event.name.startswith("aten::"))


def label(module: nn.Module, name: str) -> None:
    """Record the calls of a module's forward passes under ``name``."""
    open_records: list[record_function] = []

    def begin(*_: Any) -> None:
        open_records.append(record_function(name))
        open_records[-1].__enter__()

    def end(*_: Any) -> None:
        open_records.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end)


def bare(shape: Shape, name: str) -> Counter[str]:
    """Calls of :data:`STEPS` steps of a bare loop, by part."""
    store = shape.store()
    model = make_model(name, store.schema, shape)
    for part in ("embedding", "backbone", "head"):
        label(getattr(model, part), part)
    step, batches = bare_step(model), iter(repeated(store.split("train"), BATCH))
    for _ in range(WARM_UP):
        step(next(batches))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(STEPS):
            with record_function("loader"):
                batch = next(batches)
            step(batch)
    return counted(profiler)


def times(shape: Shape, name: str, threads: int) -> Counter[str]:
    """Milliseconds of a step of a bare loop by group, without what the calls of a group call themselves."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    store = shape.store()
    step, batches = bare_step(make_model(name, store.schema, shape)), iter(repeated(store.split("train"), BATCH))
    for _ in range(4 * WARM_UP):
        step(next(batches))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(TIMED):
            step(next(batches))
    torch.set_num_threads(before)
    found: Counter[str] = Counter()
    for event in profiler.key_averages():
        names = [g for g, operators in GROUPS.items() if event.key.removeprefix("aten::") in operators]
        group = names[0] if names else OTHER if event.key.startswith("aten::") else CALLS
        found[group] += event.self_cpu_time_total / 1000 / TIMED
    return found


def by_threads(shape: Shape, model: str) -> list[dict[str, Any]]:
    """One line for each group of operators: its time with one thread and with one per core."""
    most = torch.get_num_threads()
    rounds = {n: [times(shape, model, n) for _ in range(ROUNDS)] for n in (1, most)}
    best = {n: {g: min(r[g] for r in all_) for g in (*GROUPS, OTHER, CALLS)} for n, all_ in rounds.items()}
    best |= {n: groups | {"all": min(r.total() for r in rounds[n])} for n, groups in best.items()}
    where = {"shape": shape.name, "model": model}
    return [
        where
        | {"what": group, "one thread, ms": f"{best[1][group]:.2f}", f"{most} threads, ms": f"{best[most][group]:.2f}"}
        | {"times": f"{best[1][group] / best[most][group]:.2f}"}
        for group in best[1]
    ]


class Count(Callback):
    """Counts the calls of :data:`STEPS` whole steps of a training."""

    def __init__(self) -> None:
        self.profiler = profile(activities=[ProfilerActivity.CPU])
        self.calls = 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Start and stop counting."""
        if trainer.global_step == WARM_UP:
            self.profiler.__enter__()
        elif trainer.global_step == WARM_UP + STEPS:
            self.profiler.__exit__(None, None, None)
            self.calls = counted(self.profiler).total()


def whole(shape: Shape, name: str) -> int:
    """Calls of :data:`STEPS` steps of train.py that neither sample gradient conflict nor write their loss."""
    count = Count()
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"model={name}", *shape.data, f"data_dir={DATA}", f"run_dir={folder}/run"]
        settings += [f"loader.batch_size={BATCH}", f"trainer.max_steps={WARM_UP + STEPS}", "trainer.max_epochs=-1"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose_train([*settings, "+trainer.limit_val_batches=1"])
        with ExitStack() as held:
            fit(config, held, lambda _: [count], checkpoints=False)
    return count.calls


def main() -> None:
    """Count what the arguments request, and report."""
    asked = dict(a.split("=") for a in sys.argv[1:])
    shapes = {"aliccp": partial(aliccp_table, ROWS), "feed": partial(feed, ROWS)}
    register_resolvers()
    rows, timed = [], []
    for name in asked.get("shapes", "feed,aliccp").split(","):
        for model in asked.get("models", "mmoe,dlen,ple").split(","):
            shape = shapes[name]()
            timed += by_threads(shape, model)
            calls = bare(shape, model)
            counts = {part: calls[part] / STEPS for part in (*PARTS, "targets, loss")}
            counts |= {"bare loop": calls.total() / STEPS, "train.py": whole(shape, model) / STEPS}
            rows.append({"shape": shape.name, "model": model} | {part: f"{n:,.0f}" for part, n in counts.items()})
    report("operators", rows)
    report("operators_threads", timed)


if __name__ == "__main__":
    main()
