"""The sections of the GPU bench: each yields rows of results and runs in a process of its own."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import ROOT
from gpu_parts import (
    Operations,
    Step,
    aliccp_rows,
    aliccp_schema,
    batches,
    dlrm_step,
    graph_or_static,
    make_model,
    make_step,
    milliseconds,
    rate,
    stacked,
    wait,
)
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dlen.batch import Batch
from dlen.data.split import ResidentSplit, Split
from dlen.models import Ranker
from dlen.nn.embedding import EmbeddingTable
from dlen.nn.mlp import MLP
from dlen.training.optimizers import adam

Row = dict[str, Any]
GOAL = 4e6  # rows/s of DLRM on one GPU, and an epoch of Ali-CCP in 10 s
EPOCH = 42_300_135  # training rows of Ali-CCP


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks for.

    Attributes:
        device: where to measure; ``cpu`` runs the same code without graphs.
        rows: rows of the resident data.
        batches: batch sizes.
        models: names of the models.
        seconds: time of each measured loop.
    """

    device: torch.device
    rows: int
    batches: tuple[int, ...]
    models: tuple[str, ...]
    seconds: float

    @property
    def bfloat16(self) -> bool:
        """Whether steps are measured in bfloat16, as ``trainer.precision=auto`` trains on a GPU."""
        return self.device.type == "cuda"


def guarded(row: Row, measure: Callable[[], Row]) -> Row:
    """The row with what ``measure`` finds, or with its error: a failure must not cost the rows after it."""
    try:
        return row | measure()
    except ModuleNotFoundError as error:
        return row | {"skipped": str(error)}
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def correctness(asked: Asked) -> Iterator[Row]:
    """Losses, weights and metrics on the device against the CPU, in 32 bits, and a training that is resumed."""
    torch.set_float32_matmul_precision("highest")
    rows, size, steps = min(asked.rows, 100_000), min(1024, asked.rows // 8), 12
    for bags in (False, True):
        schema = aliccp_schema(bags=bags)
        split = aliccp_rows(schema, rows, asked.device)
        for name in asked.models:
            torch.manual_seed(0)
            start = make_model(name, schema)
            model, losses = _trained("ordinary", start, split, torch.device("cpu"), size, steps)
            for kind in ("ordinary", graph_or_static(asked.device), *(["compiled"] if bags else [])):
                where = {"model": name, "bags": bags, "what": f"{kind} step against the CPU's"}
                compare = _Against(start, model, losses, split, size, steps, kind, asked.device)
                yield guarded(where, compare)
            yield guarded(
                {"model": name, "bags": bags, "what": "metrics of one pass against the CPU's"},
                lambda model=model, split=split: _metrics_against(model, split, asked.device),  # type: ignore[misc]
            )
    yield guarded({"model": name, "what": "resumed"}, lambda: _resumed(start, split, asked.device, size))


def _trained(
    kind: str, start: Ranker, split: Split, device: torch.device, size: int, steps: int
) -> tuple[Ranker, Tensor]:
    model = deepcopy(start).to(device)
    step = make_step(kind, model, ResidentSplit(split, device), size, bfloat16=False)
    losses = [step(index).clone() for index, _ in zip(batches(len(split), size), range(steps), strict=False)]
    return model, torch.stack(losses).cpu()


@dataclass(frozen=True, slots=True)
class _Against:
    """A training on the device, compared with the CPU's."""

    start: Ranker
    model: Ranker
    losses: Tensor
    split: Split
    size: int
    steps: int
    kind: str
    device: torch.device

    def __call__(self) -> Row:
        model, losses = _trained(self.kind, self.start, self.split, self.device, self.size, self.steps)
        of_losses = ((losses - self.losses) / self.losses).abs().max().item()
        pairs = zip(model.parameters(), self.model.parameters(), strict=True)
        moved = zip(self.model.parameters(), self.start.parameters(), strict=True)
        of_weights = sum((a.detach().cpu() - b.detach()).square().sum() for a, b in pairs)
        whole = sum((a.detach() - b.detach()).square().sum() for a, b in moved)
        return {
            "greatest difference of a loss": f"{of_losses:.1e}",
            "weights, of the way they moved": f"{(of_weights / whole) ** 0.5:.1e}",
            "ok": bool(of_losses < 1e-3),
        }


def _metrics_against(model: Ranker, split: Split, device: torch.device) -> Row:
    on_cpu, on_device = (_metrics(model, split, where) for where in (torch.device("cpu"), device))
    differences = {key: abs(value - on_device[key]) for key, value in on_cpu.items()}
    worst = max(differences, key=lambda key: differences[key])
    return {
        "metrics": len(differences),
        "greatest difference": f"{differences[worst]:.1e} ({worst})",
        "ok": on_cpu.keys() == on_device.keys() and differences[worst] < 1e-3,
    }


def _metrics(model: Ranker, split: Split, device: torch.device) -> dict[str, float]:
    from dlen.training.measures import Measures  # needs Hydra

    model = deepcopy(model).to(device).eval()
    measures = Measures(model.schema, rows=len(split), ranking=model.ranking, states=model.state_names).to(device)
    resident = ResidentSplit(split, device)
    with torch.inference_mode():
        for index in torch.arange(len(split)).split(8192):
            batch = resident.batch(index)
            measures.update(model(batch), batch)
    values: dict[str, float] = measures.compute().values
    return values


def _resumed(start: Ranker, split: Split, device: torch.device, size: int) -> Row:
    """Six steps, and three that are saved and loaded by new objects for three more."""
    resident = ResidentSplit(split, device)
    order = [index for index, _ in zip(batches(len(split), size), range(6), strict=False)]
    whole = deepcopy(start).to(device)
    step = make_step("ordinary", whole, resident, size, bfloat16=False)
    wanted = [step(index).item() for index in order]
    first = deepcopy(start).to(device)
    step = make_step("ordinary", first, resident, size, bfloat16=False)
    found = [step(index).item() for index in order[:3]]
    saved = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": step.optimizer.state_dict()}, saved)
    saved.seek(0)
    state = torch.load(saved, map_location="cpu", weights_only=True)
    second = deepcopy(start).to(device)
    second.load_state_dict(state["model"])
    step = make_step("ordinary", second, resident, size, bfloat16=False)
    step.optimizer.load_state_dict(state["optimizer"])
    found += [step(index).item() for index in order[3:]]
    worst = max(abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True))
    return {"greatest difference of a loss": f"{worst:.1e}", "ok": worst < 1e-3}


def speed(asked: Asked) -> Iterator[Row]:
    """Samples/s of training on resident data at each batch size, and one whole epoch at the fastest."""
    schema = aliccp_schema(bags=False)
    started = time.perf_counter()
    split = aliccp_rows(schema, asked.rows, asked.device)
    drawn = time.perf_counter()
    resident = ResidentSplit(split, asked.device)
    wait(asked.device)
    yield {
        "what": "rows drawn and moved to the device",
        "rows": len(split),
        "GB": split.bytes / 1e9,
        "seconds to draw": drawn - started,
        "seconds to move": time.perf_counter() - drawn,
    }
    for size in asked.batches:
        row: Row = {"what": "row numbers alone", "batch": size}
        yield row | _of_goal(rate(split.count_values, len(split), size, torch.device("cpu"), asked.seconds / 2))
        row = {"what": "batches alone", "batch": size}
        yield row | _of_goal(rate(resident.batch, len(split), size, asked.device, asked.seconds / 2))
    best: tuple[float, str, str, int] = (0.0, "", "", 0)
    for name in asked.models:
        for kind in (graph_or_static(asked.device), "ordinary"):
            for size in asked.batches:
                where: Row = {"model": name, "what": f"{kind} step", "batch": size}
                row = guarded(where, _Speed(asked, resident, name, kind, size))
                if row.get("samples/s", 0.0) > best[0]:
                    best = (row["samples/s"], name, kind, size)
                yield row
    bags = ResidentSplit(aliccp_rows(aliccp_schema(bags=True), min(asked.rows, 1_000_000), asked.device), asked.device)
    for kind in (graph_or_static(asked.device), "ordinary"):
        for size in asked.batches[:2]:
            row = {"model": asked.models[0], "what": f"{kind} step, six multi-valued fields", "batch": size}
            yield guarded(row, _Speed(asked, bags, asked.models[0], kind, size))
    if best[0]:
        yield guarded({"what": "a whole epoch", "model": best[1], "step": best[2]}, lambda: _epoch(resident, *best[1:]))


def _of_goal(found: float) -> Row:
    return {"samples/s": found, "seconds for an epoch of Ali-CCP": EPOCH / found, "of the goal": found / GOAL}


@dataclass(frozen=True, slots=True)
class _Speed:
    """The rate of one kind of step, and the most memory that it takes."""

    asked: Asked
    split: ResidentSplit
    name: str
    kind: str
    size: int

    def __call__(self) -> Row:
        device, on_gpu = self.asked.device, self.asked.device.type == "cuda"
        before = 0
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        model = make_model(self.name, aliccp_schema(bags=self.split.host.table.bag_lengths.shape[1] > 0)).to(device)
        step = make_step(self.kind, model, self.split, self.size, bfloat16=self.asked.bfloat16)
        started = time.perf_counter()
        step(next(batches(len(self.split), self.size)))
        wait(device)
        first = time.perf_counter() - started
        row = {"seconds of the first step": first} | _of_goal(
            rate(step, len(self.split), self.size, device, self.asked.seconds)
        )
        if on_gpu:
            row["MiB beside the rows"] = (torch.cuda.max_memory_allocated() - before) / 2**20
        return row


def _epoch(resident: ResidentSplit, name: str, kind: str, size: int) -> Row:
    device = resident.device
    model = make_model(name, aliccp_schema(bags=False)).to(device)
    step = make_step(kind, model, resident, size, bfloat16=device.type == "cuda")
    step(next(batches(len(resident), size)))  # compiles
    wait(device)
    started, mean = time.perf_counter(), torch.zeros((), device=device)
    for index in batches(len(resident), size, epoch=0):
        mean += step(index) * len(index)
    wait(device)
    seconds = time.perf_counter() - started
    return {"batch": size, "rows": len(resident), "seconds": seconds, "mean loss": float(mean) / len(resident)}


def compiled(asked: Asked) -> Iterator[Row]:
    """Samples/s of compiled steps beside those that are not, with the seconds of the first, and an epoch of them."""
    schema = aliccp_schema(bags=False)
    resident = ResidentSplit(aliccp_rows(schema, asked.rows, asked.device), asked.device)
    sizes = asked.batches[:: max(len(asked.batches) - 2, 1)][:2]
    for name in asked.models:
        for size in sizes:
            for kind in (graph_or_static(asked.device), "compiled"):
                row: Row = {"model": name, "what": f"{kind} step", "batch": size}
                yield guarded(row, _Speed(asked, resident, name, kind, size))
    row = {"what": "a whole epoch", "model": asked.models[0], "step": "compiled"}
    yield guarded(row, lambda: _epoch(resident, asked.models[0], "compiled", sizes[-1]))


def experts(asked: Asked) -> Iterator[Row]:
    """Forward and backward passes of E experts one after the other, and with one product for each layer of all."""
    for size in asked.batches[:2]:
        for number in (2, 5, 15):
            torch.manual_seed(0)
            members = [MLP(368, (256, 128, 64)).to(asked.device) for _ in range(number)]
            x = torch.randn(size, 368, device=asked.device, requires_grad=True)
            row = {"experts": number, "batch": size}
            yield guarded(row, _Experts(asked, members, x))


@dataclass(frozen=True, slots=True)
class _Experts:
    """Milliseconds of both ways."""

    asked: Asked
    members: list[MLP]
    x: Tensor

    def __call__(self) -> Row:
        def looped() -> Tensor:
            return torch.stack([expert(self.x) for expert in self.members])

        def together() -> Tensor:
            return stacked(self.members, self.x)

        difference = (looped() - together()).abs().max().item()
        one, all_at_once = (milliseconds(lambda f=f: self._pass(f), self.asked.device) for f in (looped, together))  # type: ignore[misc]
        return {
            "ms one by one": one,
            "ms together": all_at_once,
            "ratio": one / all_at_once,
            "difference": f"{difference:.1e}",
        }

    def _pass(self, forward: Callable[[], Tensor]) -> None:
        with torch.autocast(self.asked.device.type, torch.bfloat16, enabled=self.asked.bfloat16, cache_enabled=False):
            out = forward()
        wanted = [self.x, *(p for expert in self.members for p in expert.parameters())]
        torch.autograd.grad(out.float().sum(), wanted)


def profiled(asked: Asked) -> Iterator[Row]:
    """What a step launches, how long the device is busy, and its longest kernels."""
    schema = aliccp_schema(bags=False)
    split = ResidentSplit(aliccp_rows(schema, min(asked.rows, 4_000_000), asked.device), asked.device)
    for name in asked.models:
        yield guarded({"model": name, "what": "static step"}, lambda name=name: _operations(name, split))  # type: ignore[misc]
    for kind in ("ordinary", graph_or_static(asked.device)):
        for size in asked.batches[:: max(len(asked.batches) - 1, 1)]:
            model = make_model(asked.models[0], schema).to(asked.device)
            step = make_step(kind, model, split, size, bfloat16=asked.bfloat16)
            where = {"model": asked.models[0], "what": f"{kind} step", "batch": size}
            try:
                yield from ({**where, **row} for row in _profile(step, len(split), size, asked.device))
            except Exception as error:
                yield where | {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def _operations(name: str, split: ResidentSplit) -> Row:
    model, order = make_model(name, aliccp_schema(bags=False)).to(split.device), batches(len(split), 64)
    step = make_step("static", model, split, 64, bfloat16=True)
    step(next(order))  # allocates the optimiser's state
    with Operations() as operations:
        step(next(order))
    counts = operations.counts
    return {"operations in bfloat16": counts.total(), "of them casts": counts["_to_copy"]}


def _profile(step: Step, rows: int, size: int, device: torch.device, steps: int = 10, longest: int = 30) -> list[Row]:
    order = [index for index, _ in zip(batches(rows, size), range(8 + steps), strict=False)]
    for index in order[:8]:
        step(index)
    wait(device)
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    started = time.perf_counter()
    with profile(activities=activities) as profiler:
        for index in order[8:]:
            step(index)
        wait(device)
    seconds = time.perf_counter() - started
    events = profiler.key_averages()
    launches = sum(e.count for e in events if "LaunchKernel" in e.key or "GraphLaunch" in e.key)
    kernels = [(e.self_device_time_total, e.count, e.key) for e in events if e.device_type.name == "CUDA"]
    if not on_gpu:
        kernels = [(e.self_cpu_time_total, e.count, e.key) for e in events]
    kernels.sort(reverse=True)
    busy = sum(time_of for time_of, _, _ in kernels) / steps / 1e3
    total = {
        "ms, profiled": seconds / steps * 1e3,
        "ms busy": busy,
        "launches": launches / steps,
        "kernels": sum(count for _, count, _ in kernels) / steps,
    }
    top = [
        {"kernel": key[:90], "times": count / steps, "ms": time_of / steps / 1e3}
        for time_of, count, key in kernels[:longest]
    ]
    return [total, *top]


def evaluation(asked: Asked) -> Iterator[Row]:
    """Rows/s of an evaluation pass: forward passes alone, and with all metrics."""
    schema = aliccp_schema(bags=False)
    rows = min(asked.rows, 4_000_000)
    resident = ResidentSplit(aliccp_rows(schema, rows, asked.device), asked.device)
    for name in asked.models:
        model = make_model(name, schema).to(asked.device).eval()
        for size in asked.batches:
            row = {"model": name, "batch": size}
            yield guarded(row, lambda model=model, size=size: _evaluated(asked, model, resident, size))  # type: ignore[misc]


@torch.inference_mode()
def _evaluated(asked: Asked, model: Ranker, resident: ResidentSplit, size: int) -> Row:
    alone = rate(lambda index: model(resident.batch(index)), len(resident), size, asked.device, asked.seconds)
    try:
        from dlen.training.measures import Measures
    except ModuleNotFoundError as error:
        return {"rows/s, forward alone": alone, "skipped": str(error)}
    measures = Measures(model.schema, "histogram", len(resident), model.ranking, states=model.state_names)
    measures.to(asked.device)

    def measured(index: Tensor) -> None:
        batch: Batch = resident.batch(index)
        measures.update(model(batch), batch)

    with_metrics = rate(measured, len(resident), size, asked.device, asked.seconds)
    return {"rows/s, forward alone": alone, "rows/s, all metrics": with_metrics, "ratio": with_metrics / alone}


def references(asked: Asked) -> Iterator[Row]:
    """Samples/s of a DLRM-style network in a bare loop, and on FBGEMM's table if it is installed."""
    schema = aliccp_schema(bags=False)
    resident = ResidentSplit(aliccp_rows(schema, min(asked.rows, 4_000_000), asked.device), asked.device)
    for fbgemm in (False, True):
        what = "DLRM-style, FBGEMM's table" if fbgemm else "DLRM-style bare loop"
        for size in asked.batches:

            def measure(fbgemm: bool = fbgemm, size: int = size) -> Row:
                step = dlrm_step(schema, resident, bfloat16=asked.bfloat16, fbgemm=fbgemm)
                return _of_goal(rate(step, len(resident), size, asked.device, asked.seconds))

            yield guarded({"what": what, "batch": size}, measure)


def memory(asked: Asked) -> Iterator[Row]:
    """Bytes of the resident rows, and of the table with its optimiser's state."""
    schema = aliccp_schema(bags=False)
    few = aliccp_rows(schema, 1000, asked.device)
    yield {"what": "rows of an epoch of Ali-CCP, one id in each field", "GB": few.bytes / 1000 * EPOCH / 1e9}
    for name in asked.models:
        model = make_model(name, schema)
        dense = sum(p.nbytes for p in model.parameters()) - _table_bytes(model)
        rows = adam(model, lr=1e-3, embedding_lr=1e-3).parts[1]  # type: ignore[attr-defined]
        yield {
            "model": name,
            "GB of the table": _table_bytes(model) / 1e9,
            "GB of its moments": rows.state_bytes() / 1e9,
            "MB of other weights": dense / 1e6,
        }
    if asked.device.type == "cuda":
        free, whole = torch.cuda.mem_get_info()
        yield {"what": "the GPU", "GB free": free / 1e9, "GB": whole / 1e9}


def _table_bytes(model: Ranker) -> int:
    return sum(m.weight.nbytes for m in model.modules() if isinstance(m, EmbeddingTable))


def command(asked: Asked) -> Iterator[Row]:
    """``train.py`` on the device and on the CPU, and one run that is stopped and resumed; needs Polars and Hydra."""
    for module in ("polars", "hydra"):
        if find_spec(module) is None:
            yield {"what": "train.py", "skipped": f"{module} is not installed"}
            return
    with tempfile.TemporaryDirectory() as folder:
        on_gpu = asked.device.type == "cuda"
        wanted: dict[str, float] = {}
        for what, device, steps in (
            ("on the CPU", "cpu", (60,)),
            *([("on the GPU", "gpu", (60,))] if on_gpu else []),
            ("resumed after 30 of 60 steps", "gpu" if on_gpu else "cpu", (30, 60)),
        ):
            try:
                metrics = _train(Path(folder), what.replace(" ", "_"), device, steps)
            except Exception as error:
                yield {"what": f"train.py {what}", "error": str(error)[-300:]}
                return
            wanted = wanted or metrics
            worst = max(abs(metrics[k] - v) for k, v in wanted.items() if k.startswith("test/auc/"))
            yield {
                "what": f"train.py {what}",
                "AUC": metrics["test/auc/mean"],
                "greatest difference of an AUC": f"{worst:.1e}",
                "samples/s": metrics["fit/samples_per_second"],
                "ok": worst < 1e-2,  # products of a GPU in TF32, as train.py sets
            }


def training(asked: Asked) -> Iterator[Row]:
    """Speed of ``train.py`` on the feed, with and without a graph; its validations and checkpoints count apart."""
    on_gpu = asked.device.type == "cuda"
    sizes = (1024, 4096, 16384) if on_gpu else (1024,)
    cells = [(asked.models[0], size, "cuda_graph=auto") for size in sizes]
    if on_gpu:
        cells += [(asked.models[0], 4096, "cuda_graph=false")]
        cells += [(model, 4096, "cuda_graph=auto") for model in asked.models[1:]]
        cells += [(asked.models[0], size, "compile=true") for size in (4096, 16384, 16384)]  # again from torch's cache
    with tempfile.TemporaryDirectory() as folder:
        data = ["data=feed", f"data.rows={2_000_000 if on_gpu else 4 * asked.rows}", f"data_dir={folder}/data"]
        # the first one prepares the data and compiles the kernels
        for number, (model, size, setting) in enumerate([cells[0], *cells]):
            run = Path(folder) / str(number)
            settings = [*data, f"run_dir={run}", f"trainer.accelerator={'gpu' if on_gpu else 'cpu'}", "patience=100"]
            settings += [f"model={model}", f"loader.batch_size={size}", setting, "trainer.max_epochs=5"]
            row = {"model": model, "batch": size, "setting": setting}
            yield guarded(row, partial(_of_training, settings, run))


def _of_training(settings: list[str], run: Path) -> Row:
    from dlen.commands.train import main  # needs Hydra

    shutil.rmtree(run, ignore_errors=True)
    started, arguments, told = time.perf_counter(), sys.argv, io.StringIO()
    sys.argv = [str(ROOT / "train.py"), *settings]
    try:
        with redirect_stderr(told):
            main()
    except SystemExit as error:
        raise RuntimeError(told.getvalue().strip()[-300:]) from error
    finally:
        sys.argv = arguments
    metrics = json.loads((run / "metrics.json").read_text())
    lines = [line for line in told.getvalue().splitlines() if line.startswith("training steps are not")]
    return {
        "samples/s": metrics["fit/samples_per_second"],
        "seconds": metrics["fit/seconds"],
        "of validation": metrics["fit/validation_seconds"],
        "of all": time.perf_counter() - started,
        "AUC": metrics["test/auc/mean"],
        **({"told": lines[0]} if lines else {}),
    }


def _train(folder: Path, name: str, device: str, steps: tuple[int, ...]) -> dict[str, float]:
    run = folder / name
    settings = [
        "data=feed",
        "data.rows=20000",
        f"data_dir={folder}/data",
        f"run_dir={run}",
        f"trainer.accelerator={device}",
    ]
    settings += ["trainer.devices=1", "trainer.precision=32-true", "loader.batch_size=512", "trainer.max_epochs=-1"]
    settings += ["trainer.val_check_interval=10", "id_dropout.k=0"]  # each device draws other numbers
    for number, limit in enumerate(steps):
        more = [f"trainer.max_steps={limit}", *(["ckpt=last"] if number else [])]
        ran = subprocess.run(
            [sys.executable, "train.py", *settings, *more], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if ran.returncode:
            raise RuntimeError(ran.stderr.strip() or ran.stdout.strip())
    metrics: dict[str, float] = json.loads((run / "metrics.json").read_text())
    return metrics


# In this order: what matters most comes first. Seconds that each may take in nine minutes; other limits are shared so.
SECTIONS: dict[str, tuple[Callable[[Asked], Iterator[Row]], int]] = {
    "correctness": (correctness, 60),
    "speed": (speed, 100),
    "compiled": (compiled, 75),
    "profile": (profiled, 30),
    "references": (references, 20),
    "experts": (experts, 10),
    "evaluation": (evaluation, 35),
    "memory": (memory, 12),
    "training": (training, 110),
    "command": (command, 75),
}
