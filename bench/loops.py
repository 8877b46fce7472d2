"""Bare training loops: ours without Lightning, a loop like that of peer libraries, and matrix multiplications only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from shapes import Shape
from torch import Tensor, nn
from torch.nn import functional as F

from dlen.allocator import keep_freed_memory
from dlen.batch import Batch
from dlen.data.loader import BatchLoader
from dlen.data.split import Split
from dlen.data.store import Store
from dlen.models import DLEN, PLE, MMoE, Ranker
from dlen.models.backbones import MMoEBackbone
from dlen.schema import Schema
from dlen.targets import Targets
from dlen.training.building import choose_precision
from dlen.training.optimizers import adam

DIM = 16
WARM_UP = 3


def make_model(
    name: str, schema: Schema, shape: Shape, more_experts: int = 0, dim: int = DIM, *, first_order: bool = True
) -> Ranker:
    """One of our models at the paper's size for this shape, without cross layers, which the peers' models lack."""
    experts = shape.experts + more_experts
    same: dict[str, Any] = {"embedding_dim": dim, "interaction": None, "first_order": first_order}
    if name == "dlen":
        return DLEN(schema, backbone=partial(MMoEBackbone, num_experts=experts), **same)
    if name == "ple":
        return PLE(schema, shared_experts=experts, task_experts=shape.task_experts, **same)
    return MMoE(schema, num_experts=experts, **same)


def repeated(split: Split, batch_size: int) -> Iterable[Batch]:
    """Infinite shuffled batches."""
    loader = BatchLoader(split, batch_size, shuffle=True)
    while True:
        yield from loader


def timed(step: Callable[[Batch], None], batches: Iterable[Batch], steps: int) -> float:
    """Samples per second over ``steps`` steps after a warm-up."""
    rows, started = 0, 0.0
    for number, batch in enumerate(batches):
        if number == WARM_UP:
            rows, started = 0, time.perf_counter()
        step(batch)
        rows += len(batch)
        if number + 1 == WARM_UP + steps:
            break
    return rows / (time.perf_counter() - started)


def bare_step(model: Ranker, precision: str = "auto") -> Callable[[Batch], None]:
    """A training step of our model and optimiser without Lightning, at the precision that train.py chooses."""
    half = (choose_precision("cpu") if precision == "auto" else precision) == "bf16-mixed"
    keep_freed_memory()
    optimizer = adam(model, lr=1e-3, embedding_lr=1e-3)
    targets, weights = Targets(model.schema), torch.ones(len(model.schema.tasks))

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        labels, mask = targets.training_labels(batch.labels), targets.trained(batch.labels)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model.head.loss(model(batch), labels, mask, weights)
        loss.backward()
        optimizer.step()

    return step


def ours(store: Store, model: Ranker, batch_size: int, steps: int, precision: str = "auto") -> float:
    """Samples per second of :func:`bare_step` with our loader."""
    return timed(bare_step(model, precision), repeated(store.split("train"), batch_size), steps)


def forward_alone(split: Split, model: Ranker, batch_size: int) -> float:
    """Rows per second of forward passes only, over a split in stored order."""
    model.eval()
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in BatchLoader(split, batch_size, shuffle=False):
            model(batch)
    return len(split) / (time.perf_counter() - started)


class DenseEmbeddings(nn.Module):
    """One nn.Embedding per field with dense gradients, as in most public implementations."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(f.vocab_size, DIM) for f in schema.fields)
        offsets = [schema.offsets[f.name] for f in schema.fields]
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int32))
        self.offsets: Tensor
        self.out_dim = DIM * len(offsets)

    def forward(self, batch: Batch) -> Tensor:
        """(B, F * DIM)."""
        ids = batch.ids - self.offsets
        return torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)], 1)


def as_peers_do(store: Store, shape: Shape, name: str, batch_size: int, steps: int) -> float:
    """The same network on :class:`DenseEmbeddings`, with dense Adam for all parameters."""
    model = make_model(name, store.schema, shape, first_order=False)
    model.embedding = DenseEmbeddings(store.schema)  # type: ignore[assignment]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        log_p = model(batch).log_p
        F.binary_cross_entropy(log_p.exp(), batch.labels).backward()
        optimizer.step()

    return timed(step, repeated(store.split("train"), batch_size), steps)


def matmul_limit(model: Ranker, in_dim: int, batch_size: int, repeats: int = 10) -> float:
    """Samples per second if training consisted only of the matrix products of the linear layers.

    Each layer costs one product forward and two backward. The gradient of the input is counted for every layer because
    the embeddings need it.
    """
    parts = [part for part in (model.interaction, model.backbone, model.head) if part is not None]
    layers = [m for part in parts for m in part.modules() if isinstance(m, nn.Linear)]
    shapes = [(layer.in_features, layer.out_features) for layer in layers if layer.in_features]
    tensors = [
        (torch.randn(batch_size, a), torch.randn(batch_size, b), torch.randn(a, b), torch.empty(batch_size, b))
        for a, b in shapes
    ]
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        for x, grad, weight, out in tensors:
            torch.mm(x, weight, out=out)
            torch.mm(grad, weight.T)
            torch.mm(x.T, grad)
        best = min(best, time.perf_counter() - started)
    return batch_size / best
