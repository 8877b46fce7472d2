"""An embedding table that TorchRec shards over processes and updates; needs the extra ``dlen[torchrec]``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from dlen.batch import Batch
from dlen.errors import UserError
from dlen.nn.embedding import EmbeddingTable, bag_divisors, join_input
from dlen.nn.processes import world_size
from dlen.schema import Kind, Schema

_PIECE = 1 << 20  # rows sent at a time


@dataclass(frozen=True, slots=True)
class _Shard:
    """Rows ``first .. first + rows - 1`` of the whole table, held by ``rank`` starting at its local row ``at``."""

    rank: int
    first: int
    rows: int
    at: int


@dataclass(frozen=True, slots=True)
class _Table:
    """A TorchRec table: its rows and fields, and the process that holds it, or None if its rows are split."""

    rows: int
    features: list[str]
    rank: int | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Placement of the table: one row-split TorchRec table, or one TorchRec table per process with whole fields.

    Args:
        features: names of the embedded fields, single ids first.
        shards: parts of the whole table.
        moved: offset of each feature, subtracted from its rows in the whole table.
    """

    tables: dict[str, _Table]
    features: list[str]
    shards: list[_Shard]
    moved: list[int]

    @classmethod
    def of(cls, schema: Schema, by: str, world: int) -> Layout:
        """Build the layout for ``world`` processes.

        Raises:
            UserError: there are fewer fields than processes.
        """
        fields = [*schema.of_kind(Kind.ID), *schema.of_kind(Kind.IDS)]
        features, offsets = [f.name for f in fields], [schema.offsets[f.name] for f in fields]
        rows = schema.num_embeddings
        if by == "rows":
            return cls({"all": _Table(rows, features, None)}, features, _split(rows, world), [0] * len(fields))
        shards = _placed(list(zip(offsets, [f.vocab_size for f in fields], strict=True)), world)
        tables = {}
        for rank in range(world):
            held = [(name, s.rows) for name, s in zip(features, shards, strict=True) if s.rank == rank]
            tables[str(rank)] = _Table(sum(rows for _, rows in held), [name for name, _ in held], rank)
        return cls(tables, features, shards, [shard.first - shard.at for shard in shards])


def check_shardable(schema: Schema, dim: int, by: str, world: int, device: str, weight_decay: float) -> None:
    """Check the settings of a sharded table before it is built.

    Args:
        dim: length of its vectors.
        by: ``rows`` or ``tables``, see :class:`ShardedTable`.
        device: device type, such as ``cpu``.

    Raises:
        UserError: there are no ids or too few, a field is a sequence or shares vectors, there are fewer fields than
            processes, FBGEMM does not support the vector length, or TorchRec would ignore the weight decay.
    """
    if dim % 4:
        raise UserError(f"config model.embedding.dim: a sharded table needs a multiple of 4, got {dim}")
    if not schema.num_embeddings:
        raise UserError("config sharding: the data have no ids, so there is no table to split; set sharding=null")
    for field in schema.fields:
        if field.kind is Kind.SEQUENCE or field.share:
            raise UserError(
                f"config sharding: field {field.name} is a sequence or shares the vectors of another, which a table "
                "that is split over processes does not support; set sharding=null"
            )
    layout = Layout.of(schema, by, world)
    if not all(shard.rows for shard in layout.shards):
        raise UserError(
            f"config sharding: {schema.num_embeddings} ids are too few for {world} processes; use fewer processes"
        )
    if weight_decay and device == "cpu" and any(len(t.features) == 1 for t in layout.tables.values()):
        # FBGEMM has a separate kernel for this case, which silently ignores weight decay.
        raise UserError(
            "config optimizer.embedding_weight_decay: on a CPU, TorchRec ignores it in a process that holds a single "
            "field; set it to 0, or use sharding=rows with more fields"
        )


class ShardedTable(nn.Module):
    """An :class:`EmbeddingTable` split over processes.

    The output is the same (B, D + O). ``state_dict`` has the same ``weight``, gathered in the first process only, so
    checkpoints do not depend on sharding. Every process must take part in each forward pass and in ``state_dict``. The
    table is updated during the backward pass, in which all processes must have the same number of rows.

    TorchRec's module is hidden from torch's registry: DDP, optimisers and Lightning must not touch its parameters.

    Args:
        table: table created inside :func:`deferred_tables`.
        by: ``rows`` gives each process the same number of rows; ``tables`` keeps the rows of a field together.
        device: device of this process.
        update: ``lr``, ``eps`` and ``weight_decay`` of row-wise Adagrad.

    Raises:
        UserError: there are fewer fields than processes.
    """

    def __init__(
        self, table: EmbeddingTable, schema: Schema, by: str, device: torch.device, update: dict[str, Any]
    ) -> None:
        super().__init__()
        self.num_single, self.num_bags = table.num_single, table.num_bags
        self.out_dim, self.shape = table.out_dim, tuple(table.weight.shape)
        self.dim, self.first_order = table.dim, table.first_order
        self.register_buffer("mean", table.mean, persistent=False)
        self.mean: Tensor
        layout = Layout.of(schema, by, world_size())
        self.features, self._shards = layout.features, layout.shards
        self.register_buffer("moved", torch.tensor(layout.moved), persistent=False)
        self.moved: Tensor
        self._engine = [_shard(layout.tables, self.shape[1], device, update)]
        self.learning_rate: Callable[[], float] | None = None  # set by ShardedAdagrad
        self._applied_rate = update["lr"]
        weights = self._weights()
        for start, values in table.initial():
            self._write(weights, start, values)
        self._draw = table.draw

    def forward(self, batch: Batch) -> Tensor:
        """(B, D + O), as from an :class:`EmbeddingTable`."""
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        self._apply_learning_rate()
        rows = len(batch)
        single = (batch.ids - self.moved[: self.num_single]).T.flatten()
        counts = batch.bag_lengths.sum(1)
        moved = torch.repeat_interleave(self.moved[self.num_single :], counts, output_size=len(batch.bag_ids))
        jagged = KeyedJaggedTensor(
            keys=self.features,
            values=torch.cat([single, batch.bag_ids - moved]),
            lengths=torch.cat([batch.bag_lengths.new_ones(len(single)), batch.bag_lengths.flatten()]),
            weights=torch.cat([batch.bag_weights.new_ones(len(single)), batch.bag_weights]),
        )
        pooled = self._engine[0](jagged).wait()
        vectors = pooled.values()
        if list(pooled.keys()) != self.features:
            by_name = pooled.to_dict()
            vectors = torch.cat([by_name[name] for name in self.features], 1)
        vectors = vectors.view(rows, len(self.features), self.shape[1])
        parts = [vectors[:, : self.num_single]]
        if self.num_bags:
            parts.append(vectors[:, self.num_single :] / bag_divisors(batch, self.mean).transpose(0, 1))
        return join_input(parts, batch.numeric, self.dim, self.first_order)

    def renew(self, generator: torch.Generator) -> None:
        """Draw the whole table anew, in place, and forget its accumulators; call in every process."""
        weights, sums = self._weights(), self._sums()
        for start, values in self._draw(generator):
            self._write(weights, start, values)
        sums.zero_()

    def accumulators(self) -> Tensor | None:
        """(R, 1) accumulators of row-wise Adagrad, on the CPU of the first process; None in the others."""
        return self._gathered(self._sums(), 1)

    def load_accumulators(self, sums: Tensor) -> None:
        """Restore the result of :meth:`accumulators`; call in every process."""
        self._write(self._sums(), 0, sums)

    def _apply_learning_rate(self) -> None:
        """Set TorchRec's learning rate before the backward pass, which includes the update."""
        if self.learning_rate is None or (rate := self.learning_rate()) == self._applied_rate:
            return
        for lookup in self._engine[0]._lookups:
            for module in lookup.modules():
                if hasattr(module, "set_learning_rate"):
                    module.set_learning_rate(rate)
        self._applied_rate = rate

    def _weights(self) -> Tensor:
        """(n, dim) writable weights of this process."""
        weights: Tensor = next(_local(self._engine[0].state_dict().values()), torch.empty(0, self.shape[1]))
        return weights

    def _sums(self) -> Tensor:
        """(n, 1) writable accumulators of this process."""
        states = self._engine[0].fused_optimizer.state_dict()["state"].values()
        sums: Tensor = next(_local(value for state in states for value in state.values()), torch.empty(0))
        return sums[:, None]

    @torch.no_grad()
    def _write(self, local: Tensor, start: int, values: Tensor) -> None:
        """Write rows ``start ..`` of the whole table into this process's part."""
        for shard in self._shards:
            low, high = max(start, shard.first), min(start + len(values), shard.first + shard.rows)
            if shard.rank == distributed.get_rank() and low < high:
                moved = shard.at - shard.first
                local[low + moved : high + moved].copy_(values[low - start : high - start])

    @torch.no_grad()
    def _gathered(self, local: Tensor, width: int) -> Tensor | None:
        """Gather the whole table on the CPU of the first process, in pieces; None in the others."""
        rank = distributed.get_rank()
        whole = torch.empty(self.shape[0], width) if rank == 0 else None
        for shard in self._shards:
            for start in range(0, shard.rows, _PIECE):
                rows = min(_PIECE, shard.rows - start)
                piece = local.new_empty(rows, width)
                if shard.rank == rank:
                    piece.copy_(local[shard.at + start : shard.at + start + rows])
                    if rank:
                        distributed.send(piece, 0)
                elif rank == 0:
                    distributed.recv(piece, shard.rank)
                if whole is not None:
                    whole[shard.first + start : shard.first + start + rows] = piece.cpu()
        return whole

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        whole = self._gathered(self._weights(), self.shape[1])
        if whole is not None:
            destination[f"{prefix}weight"] = whole

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        whole = state_dict.get(f"{prefix}weight")
        if whole is None:
            missing_keys.append(f"{prefix}weight")
        elif tuple(whole.shape) != self.shape:
            error_msgs.append(
                f"size mismatch for {prefix}weight: {tuple(whole.shape)} in the checkpoint, {self.shape} now"
            )
        else:
            self._write(self._weights(), 0, whole)


def _split(rows: int, world: int) -> list[_Shard]:
    """Split rows like TorchRec: equal blocks, of which the last may be shorter or empty."""
    block = -(-rows // world)
    starts = [min(rank * block, rows) for rank in range(world + 1)]
    return [_Shard(rank, starts[rank], starts[rank + 1] - starts[rank], 0) for rank in range(world)]


def _placed(fields: list[tuple[int, int]], world: int) -> list[_Shard]:
    """Place fields, given as (first row, number of rows), largest first, on the process with the fewest rows.

    Raises:
        UserError: there are fewer fields than processes.
    """
    if len(fields) < world:
        raise UserError(
            f"config sharding: {len(fields)} fields cannot be shared by {world} processes; set sharding=rows"
        )
    held, chosen = [0] * world, {}
    for first, rows in sorted(fields, key=lambda field: -field[1]):
        chosen[first] = held.index(min(held))
        held[chosen[first]] += rows
    shards, at = [], [0] * world
    for first, rows in fields:
        rank = chosen[first]
        shards.append(_Shard(rank, first, rows, at[rank]))
        at[rank] += rows
    return shards


def _local(tensors: Iterable[Any]) -> Iterator[Tensor]:
    """The local parts of sharded tensors."""
    return (part.tensor for tensor in tensors for part in tensor.local_shards())


def check_torchrec() -> None:
    """Raise UserError if TorchRec or its operators cannot be imported."""
    try:
        import fbgemm_gpu  # noqa: F401
        import torchrec  # noqa: F401
    except (ImportError, OSError) as error:
        raise UserError(
            f"config sharding: TorchRec cannot be imported ({error}); see `Larger than a device` in docs/scaling.md"
        ) from None


def _shard(tables: dict[str, _Table], dim: int, device: torch.device, update: dict[str, Any]) -> Any:
    """Build TorchRec's sharded module."""
    check_torchrec()
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # warns of a deprecated name in TorchRec
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise, table_wise
    from torchrec.distributed.types import ShardingEnv
    from torchrec.modules.embedding_configs import EmbeddingBagConfig
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    fused = {
        "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "learning_rate": update["lr"],
        "eps": update["eps"],
        "weight_decay": update["weight_decay"],
        "weight_decay_mode": WeightDecayMode.L2,
    }
    configs = [
        EmbeddingBagConfig(name=name, num_embeddings=t.rows, embedding_dim=dim, feature_names=t.features)
        for name, t in tables.items()
    ]
    module = EmbeddingBagCollection(tables=configs, is_weighted=True, device=torch.device("meta"))
    sharder: Any = EmbeddingBagCollectionSharder(fused_params=fused)
    kernel = "fused"  # on the CPU, TorchRec's default has dense gradients
    plans = {
        name: row_wise(compute_kernel=kernel) if t.rank is None else table_wise(t.rank, compute_kernel=kernel)
        for name, t in tables.items()
    }
    world = world_size()
    local_size = min(world, torch.cuda.device_count() or world)
    plan = construct_module_sharding_plan(
        module, plans, sharder=sharder, local_size=local_size, world_size=world, device_type=device.type
    )
    assert distributed.group.WORLD is not None
    return sharder.shard(module, plan, ShardingEnv.from_process_group(distributed.group.WORLD), device)
