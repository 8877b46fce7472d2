"""Parts of the GPU bench: rows of Ali-CCP's shape made on the device, steps, DLRM-style references, stacked experts."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from common import ALICCP_SIZES
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dlen.batch import Batch
from dlen.data.columns import Columns
from dlen.data.shuffle import permute
from dlen.data.split import ResidentSplit, Split, split_of
from dlen.models import DLEN, PLE, MMoE, Ranker
from dlen.models.backbones import MMoEBackbone
from dlen.models.features import Features
from dlen.nn.mlp import MLP
from dlen.schema import Field, Kind, Schema, Task
from dlen.targets import Targets
from dlen.training.optimizers import adam
from dlen.training.static_step import StaticStep

DIM = 16
LISTS = ("109_14", "110_14", "127_14", "150_14", "210", "853")  # the fields of Ali-CCP with several values
LONGEST = 20  # values of such a field
DECIDING = ("101", "205", "206")  # fields whose ids decide the labels
_WARM_UP = 5
_AHEAD = 8
_CHUNK = 1 << 16


def aliccp_schema(*, bags: bool) -> Schema:
    """Ali-CCP's 23 fields and its funnel; with one id in each field, or with six multi-valued fields."""
    names = [name for name in ALICCP_SIZES if not (bags and name in LISTS)]
    lists = [name for name in ALICCP_SIZES if bags and name in LISTS]
    fields = [Field(f"f{n}", Kind.ID, "user" if n < "2" else "item", ALICCP_SIZES[n]) for n in names]
    fields += [Field(f"f{n}", Kind.IDS, "user" if n < "2" else "item", ALICCP_SIZES[n]) for n in lists]
    tasks = (Task("ctr", 0.04), Task("cvr", 0.1, observed_where="ctr", joint="ctcvr"))
    return Schema(tuple(fields), tasks, user="f101")


def aliccp_rows(schema: Schema, rows: int, device: torch.device, seed: int = 0) -> Split:
    """Rows in memory, drawn on the device, which takes seconds for 42 M. Half of the ids are log-uniform."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(name: str, number: int) -> Tensor:
        size = schema.rows(name).stop - schema.offsets[name]
        uniform = torch.rand(number, generator=generator, device=device)
        popular = torch.rand(number, generator=generator, device=device) < 0.5
        ids = torch.where(popular, uniform.mul(float(np.log(size))).exp() - 1, uniform * size)
        return ids.long().clamp(max=size - 1).int() + schema.offsets[name]

    names = [f.name for f in schema.of_kind(Kind.ID)]
    ids = torch.empty(rows, len(names), dtype=torch.int32, device=device)
    for column, name in enumerate(names):
        ids[:, column] = draw(name, rows)
    deciding = torch.stack([ids[:, names.index(f"f{n}")] for n in DECIDING])
    logit = torch.sin(7.3 * deciding).sum(0) - 3.5
    click = torch.rand(rows, generator=generator, device=device) < torch.sigmoid(logit)
    buy = click & (torch.rand(rows, generator=generator, device=device) < torch.sigmoid(logit + 2))
    labels = torch.stack([click, buy], 1).to(torch.uint8)
    lists = [f.name for f in schema.of_kind(Kind.IDS)]
    lengths = torch.randint(0, LONGEST + 1, (rows, len(lists)), generator=generator, device=device)
    owner = torch.arange(len(lists), device=device).repeat(rows).repeat_interleave(lengths.flatten())
    values = torch.zeros(len(owner), dtype=torch.int32, device=device)
    for column, name in enumerate(lists):
        values[owner == column] = draw(name, int((owner == column).sum()))
    of_singles, of_bags, of_values = (t.cpu().numpy() for t in (ids, lengths.to(torch.int16), values))
    columns = Columns(of_singles, np.zeros((rows, 0)), of_bags, of_values, np.ones(len(values), np.float32))
    return split_of(columns, labels.cpu().numpy())


def make_model(name: str, schema: Schema) -> Ranker:
    """One of our models with the paper's sizes on Ali-CCP."""
    if name == "dlen":
        return DLEN(schema, embedding_dim=DIM, backbone=partial(MMoEBackbone, num_experts=2))
    if name == "ple":
        return PLE(schema, embedding_dim=DIM, shared_experts=2, task_experts=1)
    return MMoE(schema, embedding_dim=DIM, num_experts=2)


def loss_of(model: Ranker, device: torch.device, *, compiled: bool = False) -> Callable[[Batch], Tensor]:
    """The training loss of a batch, as ``RankingModule`` computes it; compiled as ``compile=true`` does.

    A CPU only traces it, which needs no compiler.
    """
    targets, weights = Targets(model.schema), torch.ones(len(model.schema.tasks), device=device)

    def of_features(values: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        return model.head.loss(model.predict(Features(values, model.spec)), labels, mask, weights)

    if compiled:
        backend = "inductor" if device.type == "cuda" else "aot_eager"
        of_features = torch.compile(of_features, dynamic=False, fullgraph=True, backend=backend)

    def loss(batch: Batch) -> Tensor:
        labels, mask = targets.training_labels(batch.labels), targets.trained(batch.labels)
        return of_features(model.features(batch).values, labels, mask)

    return loss


class OrdinaryStep:
    """The step of a bare loop, with the interface of :class:`StaticStep`."""

    def __init__(
        self,
        loss: Callable[[Batch], Tensor],
        optimizer: torch.optim.Optimizer,
        split: ResidentSplit,
        *,
        bfloat16: bool = False,
    ) -> None:
        self.loss, self.optimizer, self.split, self.bfloat16 = loss, optimizer, split, bfloat16

    def __call__(self, index: Tensor) -> Tensor:
        """Train on rows ``index`` (B,) and return the loss."""
        batch = self.split.batch(index)
        self.optimizer.zero_grad()
        with torch.autocast(self.split.device.type, torch.bfloat16, enabled=self.bfloat16):
            loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


Step = OrdinaryStep | StaticStep


def make_step(kind: str, model: Ranker, split: ResidentSplit, batch: int, *, bfloat16: bool) -> Step:
    """A step of ``model``, which lies on the split's device: ``ordinary``, ``static``, ``graph`` or ``compiled``.

    On a GPU, the last two are one graph.
    """
    optimizer, loss = adam(model, lr=1e-3, embedding_lr=1e-3), loss_of(model, split.device)
    if kind == "ordinary":
        return OrdinaryStep(loss, optimizer, split, bfloat16=bfloat16)
    compiled = loss_of(model, split.device, compiled=True) if kind == "compiled" else None
    graph = kind == "graph" or (kind == "compiled" and split.device.type == "cuda")
    return StaticStep(loss, optimizer, split, batch, bfloat16=bfloat16, graph=graph, compiled=compiled)


def graph_or_static(device: torch.device) -> str:
    """The kind of static step that a device can take."""
    return "graph" if device.type == "cuda" else "static"


def batches(rows: int, size: int, seed: int = 0, epoch: int | None = None) -> Iterator[Tensor]:
    """Row numbers of shuffled batches of ``size``: of one epoch with its smaller last one, or full ones without end."""
    number = 0 if epoch is None else epoch
    chunk = size * max(_CHUNK // size, 1)  # one batch of 4096 after the other, drawing them alone takes .65 ms each
    while True:
        last = rows if epoch is not None else rows - rows % size
        for first in range(0, last, chunk):
            yield from torch.from_numpy(permute(np.arange(first, min(first + chunk, last)), rows, seed, number)).split(
                size
            )
        if epoch is not None:
            return
        number += 1


def wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def rate(step: Callable[[Tensor], Any], rows: int, size: int, device: torch.device, seconds: float) -> float:
    """Rows per second of ``step`` over at least ``seconds`` and three batches, after a warm-up."""
    done, started = 0, 0.0
    running: deque[torch.cuda.Event] = deque()
    for number, index in enumerate(batches(rows, size)):
        if number == _WARM_UP:
            wait(device)
            done, started = 0, time.perf_counter()
        step(index)
        done += len(index)
        if device.type == "cuda":  # the host may run ahead by some steps only, or it would stop too late
            running.append(torch.cuda.Event())
            running[-1].record()
            if len(running) > _AHEAD:
                running.popleft().synchronize()
        if number >= _WARM_UP + 3 and time.perf_counter() - started > seconds:
            break
    wait(device)
    return done / (time.perf_counter() - started)


def milliseconds(call: Callable[[], Any], device: torch.device, repeats: int = 20) -> float:
    """Time of one call; on a GPU of one replay of its graph, so that launches do not count."""
    for _ in range(3):
        call()
    replay = call
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        replay = graph.replay
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        replay()
    wait(device)
    return (time.perf_counter() - started) / repeats * 1e3


class Operations(TorchDispatchMode):
    """Counts the operations that compute something, and so launch a kernel or more, not those that give a view."""

    _VIEWS = frozenset(
        """alias as_strided detach diagonal expand permute select slice split split_with_sizes squeeze t transpose
        unbind unsqueeze view _unsafe_view _indices _values _sparse_coo_tensor_with_dims_and_tensors
        _sparse_coo_tensor_unsafe empty empty_like empty_strided new_empty_strided is_same_size lift_fresh""".split()  # noqa: SIM905
    )

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] += name not in self._VIEWS
        return func(*args, **(kwargs or {}))


def stacked(experts: Sequence[MLP], x: Tensor) -> Tensor:
    """(B, D) -> (E, B, H) outputs of experts of one shape, with one product for each layer of all experts.

    The weights stay those of the experts and are stacked in every call.
    """
    layers = list(zip(*([m for m in expert.layers if isinstance(m, nn.Linear)] for expert in experts), strict=True))
    first, *others = layers
    out = F.linear(x, torch.cat([m.weight for m in first]), torch.cat([m.bias for m in first]))
    hidden = F.relu(out).unflatten(1, (len(experts), -1)).transpose(0, 1)
    for layer in others:
        weight, bias = torch.stack([m.weight for m in layer]), torch.stack([m.bias for m in layer])
        hidden = F.relu(torch.baddbmm(bias[:, None], hidden, weight.transpose(1, 2)))
    return hidden


class DotNetwork(nn.Module):
    """The network of DLRM without its dense features: products of all pairs of vectors, then an MLP.

    Args:
        fields: number of fields F.
        tasks: number of logits T.
    """

    pairs: Tensor

    def __init__(self, fields: int, tasks: int) -> None:
        super().__init__()
        first, second = torch.triu_indices(fields, fields, 1)
        self.register_buffer("pairs", first * fields + second)
        self.top = nn.Sequential(MLP(fields * DIM + len(first), (512, 256, 128)), nn.Linear(128, tasks))

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, F, DIM) -> (B, T) logits."""
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        logits: Tensor = self.top(torch.cat([vectors.flatten(1), products], 1))
        return logits.float()


def dlrm_step(schema: Schema, split: ResidentSplit, *, bfloat16: bool, fbgemm: bool) -> Callable[[Tensor], Tensor]:
    """A DLRM-style step: SGD of an embedding table beside Adam, or FBGEMM's table with its fused row-wise Adagrad.

    Raises:
        ImportError: FBGEMM is not installed.
    """
    device, count = split.device, len(schema.fields)
    network = DotNetwork(count, len(schema.tasks)).to(device)
    dense = torch.optim.Adam(network.parameters(), fused=True)
    sizes = [f.vocab_size for f in schema.fields]
    lookup: Callable[[Tensor], Tensor]
    if fbgemm:
        table = _fbgemm_table(sizes, device)
        starts = torch.tensor([schema.offsets[f.name] for f in schema.fields], device=device, dtype=torch.int32)

        def lookup(ids: Tensor) -> Tensor:
            places = torch.arange(ids.numel() + 1, device=device)
            out: Tensor = table((ids - starts).T.flatten().long(), places)
            return out.unflatten(1, (count, DIM))

    else:
        weight = nn.Parameter(torch.randn(sum(sizes), DIM, device=device) * 0.05)
        sparse = torch.optim.SGD([weight], lr=0.1)

        def lookup(ids: Tensor) -> Tensor:
            return F.embedding(ids, weight, sparse=True)

    def step(index: Tensor) -> Tensor:
        batch = split.batch(index)
        dense.zero_grad()
        if not fbgemm:
            sparse.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits = network(lookup(batch.ids))
        loss = F.binary_cross_entropy_with_logits(logits, batch.labels)
        loss.backward()
        dense.step()
        if not fbgemm:
            sparse.step()
        return loss.detach()

    return step


def _fbgemm_table(sizes: Sequence[int], device: torch.device) -> Any:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    on_gpu = device.type == "cuda"
    place = EmbeddingLocation.DEVICE if on_gpu else EmbeddingLocation.HOST
    specs = [(size, DIM, place, ComputeDevice.CUDA if on_gpu else ComputeDevice.CPU) for size in sizes]
    table = SplitTableBatchedEmbeddingBagsCodegen(
        specs, optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD, learning_rate=0.01, pooling_mode=PoolingMode.SUM
    )
    for weight in table.split_embedding_weights():
        weight.data.normal_(std=0.05)
    return table
