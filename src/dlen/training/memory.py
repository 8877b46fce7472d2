"""Refuses a training whose embedding table does not fit into memory, before anything is allocated or written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from dlen.data.store import Store
from dlen.devices import local_processes, usable_gpus
from dlen.errors import UserError
from dlen.limits import groups, read
from dlen.models.baseline import Baseline
from dlen.models.model import Model
from dlen.nn.embedding import EmbeddingTable
from dlen.training.building import build_model
from dlen.training.configs import build
from dlen.training.optimizers import RowAdagrad, RowOptimizer, parts_of
from dlen.training.run_folder import one_of_many

_MEMINFO = Path("/proc/meminfo")
# Names in each version of control groups: limit, use, and pages of files, which can be reclaimed
_CGROUPS = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
}
_SCALE = {"bf16-true": 0.5, "16-true": 0.5, "64-true": 2.0}  # of the bytes of a number, by precision


def check_memory(config: DictConfig, store: Store) -> None:
    """Raise UserError if the table and the state of its optimiser need more memory than is free.

    Only what is certain counts: neither gradients, which are sparse, nor batches, nor the other parameters. So a
    training that passes may still run out of memory, and none that could run is refused.
    """
    with torch.device("meta"):
        model = build_model(config, store)
    if isinstance(model, Baseline):
        return
    try:
        optimizer = build(config.optimizer, "optimizer")(model)
    except (TypeError, ValueError):  # refused by check_optimizer
        return
    table, state = table_bytes(model), state_bytes(optimizer)
    gpus = usable_gpus(config.trainer.accelerator)
    here, nodes = local_processes(config.trainer), config.trainer.num_nodes
    copies = 1 if one_of_many() or "LOCAL_RANK" in os.environ else here  # those that this process stands for
    share = copies / (here * nodes) if config.sharding else copies  # of the table, in the memory of this machine
    scale = _SCALE.get(str(config.trainer.precision), 1.0)
    if gpus:
        number = _gpu(config.trainer.devices)
        if number < gpus:
            on_gpu = scale * (table + state) * (1 / (here * nodes) if config.sharding else 1)
            _refuse_above(free_on_gpu(number), on_gpu, f"on GPU {number}", model, optimizer, config)
        needed = 0.0 if config.sharding else share * table  # it is made on the CPU
    else:
        needed = scale * share * (table + state)
    _refuse_above(free_memory(), needed, "on this machine", model, optimizer, config)


def table_bytes(model: Model) -> int:
    """Bytes of the embedding tables of a model, which may be on the device ``meta``."""
    return sum(m.weight.nbytes for m in model.modules() if isinstance(m, EmbeddingTable))


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of what an optimiser keeps for embedding tables, once all of their rows were updated."""
    return sum(part.state_bytes() for part in parts_of(optimizer) if isinstance(part, RowOptimizer))


def free_memory() -> int:
    """Bytes of the machine's memory that this process can still get, including swap and within its cgroup's limits."""
    lines = (line.split() for line in read(_MEMINFO).splitlines())
    amounts = {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines if len(line) > 1}
    if "MemAvailable" not in amounts:  # not Linux
        return 2**63
    return min([amounts["MemAvailable"] + amounts.get("SwapFree", 0), *_free_in_cgroups()])


def _free_in_cgroups() -> Iterator[int]:
    """What is free in each cgroup of the process and its parents that has a limit."""
    for group, version in groups("memory"):
        limit, use, reclaimable = _CGROUPS[version]
        most, used = read(group / limit).strip(), read(group / use).strip()
        if most.isdigit() and used.isdigit():
            entries = (entry.split() for entry in read(group / "memory.stat").splitlines())
            files = sum(int(entry[1]) for entry in entries if entry[0] in reclaimable)
            yield max(int(most) - int(used) + files, 0)


def free_on_gpu(number: int) -> int:
    """Bytes of a GPU's memory that this process can still get."""
    unused = torch.cuda.memory_reserved(number) - torch.cuda.memory_allocated(number)
    return int(torch.cuda.mem_get_info(number)[0]) + unused


def _gpu(devices: object) -> int:
    """Number of the GPU of this process."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen: Sequence[int] = list(devices) if OmegaConf.is_list(devices) else []  # type: ignore[call-overload]
    return chosen[rank] if rank < len(chosen) else rank


def _refuse_above(free: int, needed: float, where: str, model: Model, optimizer: Optimizer, config: DictConfig) -> None:
    """Raise UserError if more is needed than is free."""
    if needed <= free:
        return
    most = max(model.schema.owners, key=lambda field: field.vocab_size)
    ids, table, state = model.schema.num_embeddings, table_bytes(model), state_bytes(optimizer)
    parts = parts_of(optimizer)
    ways = ["lower model.embedding.dim"]
    ways += [
        "raise data.min_count"
        if "min_count" in config.data
        else f"set min_count or hash of {most.name} in the table's YAML"
    ]
    ways += [] if any(isinstance(part, RowAdagrad) for part in parts) else ["use optimizer=adagrad, which keeps less"]
    ways += [] if config.sharding else ["split the table over several devices by sharding=rows"]
    raise UserError(
        f"config model.embedding.dim: the embedding table of {ids:,} ids takes {_gigabytes(table)} and the state of "
        f"its optimiser {_gigabytes(state)}, which is {_gigabytes(needed)} {where}, where {_gigabytes(free)} are free; "
        f"most ids are of field {most.name}, {most.vocab_size:,}: {', '.join(ways[:-1])}, or {ways[-1]}"
    )


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:,.2f} GB"
