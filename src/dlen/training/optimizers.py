"""Optimisers: fused Adam for dense parameters, and row-sparse optimisers whose cost scales with the ids in a batch.

Rows that a batch does not touch are neither read nor written, so their moments do not decay ("lazy"), as in
``torch.optim.SparseAdam``. Lightning sees a single optimiser, so that each step counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from dlen.checks import from_zero
from dlen.errors import UserError
from dlen.nn.embedding import EmbeddingTable, row_kernels
from dlen.nn.sharded import ShardedTable

Params = Iterable[Tensor] | Iterable[dict[str, Any]]


def touched_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Sum a sparse gradient (R, D) over repeated rows.

    Returns:
        (U,) distinct rows and (U, D) sums. On a GPU, where computing U would synchronise, the result is padded to the
        number of entries by repeating the last row with its sum. Callers must therefore overwrite rows, not add to
        them.
    """
    rows, values = grad._indices()[0], grad._values()
    return _distinct_rows(rows, values) if rows.device.type == "cpu" else _padded_rows(rows, values)


def merged_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Like :func:`touched_rows`, but the padding has zeros instead of sums, so that entries can be added."""
    rows, values = grad._indices()[0], grad._values()
    return _distinct_rows(rows, values) if rows.device.type == "cpu" else _row_sums(rows, values)[:2]


def _distinct_rows(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    distinct, inverse = torch.unique(rows, return_inverse=True)
    return distinct, values.new_zeros(len(distinct), values.shape[1]).index_add_(0, inverse, values)


def _padded_rows(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    rows, sums, place = _row_sums(rows, values)
    return rows, sums.index_select(0, place)


def _row_sums(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows padded with the last one, their sums padded with zeros, and for each entry the place of its row's sum."""
    ordered, order, number = numbered(rows)
    segment = number - 1
    distinct = torch.zeros_like(ordered).scatter_(0, segment, ordered)
    sums = torch.zeros_like(values).index_add_(0, segment, values.index_select(0, order))
    place = torch.minimum(torch.arange(len(rows), device=rows.device), segment[-1:])
    return distinct.index_select(0, place), sums, place


def numbered(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort rows (N,), and number the distinct ones from 1 on.

    Returns:
        (N,) rows in ascending order, the (N,) int64 entries that they come from, and their (N,) numbers, of the rows'
        type.
    """
    ordered, order = torch.sort(rows)
    first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=first[1:])
    return ordered, order, first.cumsum(0, dtype=rows.dtype)


class RowOptimizer(Optimizer):
    """Base class of optimisers of tables (R, D) with row-sparse gradients.

    Args:
        params: tables to optimise.
        defaults: default settings of the update.
    """

    kept: tuple[str, ...] = ()  # names of the state of each table

    def state_bytes(self) -> int:
        """Bytes of the state, once each table has had a gradient."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state; UserError if it belongs to a different optimiser."""
        _check_kept(state_dict, self.kept)
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the touched rows."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._step(table, group)
        return loss

    def forget(self) -> None:
        """Start the state of all tables anew, in place, as a CUDA graph may read it."""
        for state in self.state.values():
            for key, value in state.items():
                state[key] = value.zero_() if isinstance(value, Tensor) else 0

    def _step(self, table: Tensor, group: dict[str, Any]) -> None:
        assert table.grad is not None
        if not self.state[table]:
            self._start(table, group)
        kernels = row_kernels(table.device.type)
        if kernels is not None and self._has_kernel(table, group):
            rows = table.grad._indices()[0].int()  # sorted in half of the passes that 64 bits take
            segments = kernels.Segments(*numbered(rows), table.grad._values())
            self._update_fused(kernels, segments, table, group)
            return
        rows, grad = touched_rows(table.grad)
        values = table.index_select(0, rows)
        if group["weight_decay"]:
            grad.add_(values, alpha=group["weight_decay"])
        # Gather, update and write back takes half the time of index_add_ on the table.
        table.index_copy_(0, rows, self._update(table, rows, values, grad, group))

    def _start(self, table: Tensor, group: dict[str, Any]) -> None:
        """Create the state of a table."""
        raise NotImplementedError

    def _update(self, table: Tensor, rows: Tensor, values: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the new (U, D) values of the rows; may work in place."""
        raise NotImplementedError

    def _has_kernel(self, table: Tensor, group: dict[str, Any]) -> bool:
        """Whether a kernel updates this table."""
        return True

    def _update_fused(self, kernels: ModuleType, segments: Any, table: Tensor, group: dict[str, Any]) -> None:
        """Update the rows by a kernel of :mod:`dlen.nn.row_kernels`."""
        raise NotImplementedError


class RowAdam(RowOptimizer):
    """Adam on touched rows: the same update as ``torch.optim.SparseAdam``, but faster.

    Args:
        params: tables (R, D).
        lr: learning rate.
        betas: decay rates of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: L2 penalty added to the gradient, as in ``torch.optim.Adam``, for touched rows only.
    """

    kept = ("step", "first", "second")

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def state_bytes(self) -> int:
        """Two moments of each number."""
        return sum(2 * table.nbytes for group in self.param_groups for table in group["params"])

    def _update(self, table: Tensor, rows: Tensor, values: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        state = self._count(table)
        beta1, beta2 = group["betas"]
        first = state["first"].index_select(0, rows).lerp_(grad, 1 - beta1)
        second = state["second"].index_select(0, rows).mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        state["first"].index_copy_(0, rows, first)
        state["second"].index_copy_(0, rows, second)
        scale1, scale2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        # As in SparseAdam, eps is added to the root before bias correction.
        size, root = group["lr"] * scale2**0.5 / scale1, second.sqrt_().add_(group["eps"])
        if isinstance(size, Tensor):
            return values.sub_(first.div_(root).mul_(size))
        return values.addcdiv_(first, root, value=-size)

    def _start(self, table: Tensor, group: dict[str, Any]) -> None:
        self.state[table].update(step=0, first=torch.zeros_like(table), second=torch.zeros_like(table))

    def _count(self, table: Tensor) -> dict[str, Any]:
        """Count a step in the state of a table: on its device, unless that is the CPU, so that a graph can do it."""
        state = self.state[table]
        if table.device.type != "cpu" and not isinstance(state["step"], Tensor):
            state["step"] = torch.full((), state["step"], dtype=torch.float64, device=table.device)
        state["step"] += 1
        return state

    def _update_fused(self, kernels: ModuleType, segments: Any, table: Tensor, group: dict[str, Any]) -> None:
        state = self._count(table)
        kernels.update_adam(
            segments,
            table,
            state["first"],
            state["second"],
            state["step"],
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            decay=group["weight_decay"],
        )

    def state_dict(self) -> dict[str, Any]:
        """The state, with numbers of steps that any device can go on from."""
        saved = super().state_dict()
        return saved | {"state": {key: part | {"step": int(part["step"])} for key, part in saved["state"].items()}}


class RowAdagrad(RowOptimizer):
    """Row-wise Adagrad: one accumulator per row, the summed mean squares of its gradients (as in FBGEMM and DLRM).

    The state takes 1/D of the table's memory. A parameter group with ``parts`` P above 1 has one accumulator for each
    of the P equal parts of the first ``dim`` numbers of a row, and one for each number after them, so that the parts of
    different tasks learn as if they were alone.

    Args:
        params: tables (R, D).
        lr: learning rate.
        eps: added to the root of the accumulator.
        weight_decay: L2 penalty added to the gradient, for touched rows only.
    """

    kept = ("sum",)

    def __init__(self, params: Params, lr: float = 1e-2, eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay, "parts": 1})

    def state_bytes(self) -> int:
        """One number for each part of a row."""
        tables = ((table, group) for group in self.param_groups for table in group["params"])
        return sum(len(table) * sum(_accumulators(table, group)) * table.element_size() for table, group in tables)

    def _update(self, table: Tensor, rows: Tensor, values: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        state, (parts, single) = self.state[table], _accumulators(table, group)
        vectors, terms = grad.split([grad.shape[1] - single, single], 1)
        vectors = vectors.unflatten(1, (parts, -1))
        squares = torch.cat([vectors.square().mean(2), terms.square()], 1)
        total = state["sum"].index_select(0, rows).add_(squares)
        state["sum"].index_copy_(0, rows, total)
        of_parts, of_terms = total.sqrt_().add_(group["eps"]).split([parts, single], 1)
        scaled = torch.cat([(vectors / of_parts[..., None]).flatten(1), terms / of_terms], 1)
        return values.sub_(scaled, alpha=group["lr"])

    def _start(self, table: Tensor, group: dict[str, Any]) -> None:
        self.state[table].update(sum=table.new_zeros(len(table), sum(_accumulators(table, group))))

    def _has_kernel(self, table: Tensor, group: dict[str, Any]) -> bool:
        return _accumulators(table, group) == (1, 0)

    def _update_fused(self, kernels: ModuleType, segments: Any, table: Tensor, group: dict[str, Any]) -> None:
        total = self.state[table]["sum"]
        kernels.update_adagrad(segments, table, total, lr=group["lr"], eps=group["eps"], decay=group["weight_decay"])


def _accumulators(table: Tensor, group: Mapping[str, Any]) -> tuple[int, int]:
    """Number of accumulators of a row: of parts, and of single numbers after them."""
    parts = group["parts"]
    return parts, 0 if parts == 1 else table.shape[1] - group.get("dim", table.shape[1])  # older runs have no such key


class ShardedAdagrad(Optimizer):
    """Optimiser interface of a :class:`ShardedTable`'s backward pass, with the state of :class:`RowAdagrad`.

    Args:
        table: sharded table, which updates itself.
        settings: settings of :class:`RowAdagrad`.
    """

    def __init__(self, table: ShardedTable, settings: dict[str, Any]) -> None:
        super().__init__([torch.empty(0)], settings)  # torch requires a parameter
        self.table = table
        table.learning_rate = lambda: self.param_groups[0]["lr"]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do nothing: the backward pass has updated the table."""
        return None if closure is None else closure()

    def state_dict(self) -> dict[str, Any]:
        """The state of :class:`RowAdagrad`; complete in the first process only."""
        return super().state_dict() | {"state": {0: {"sum": self.table.accumulators()}}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state; UserError if it belongs to a different optimiser or different settings."""
        _check_kept(state_dict, RowAdagrad.kept)
        (saved,), (current,) = state_dict["param_groups"], self.param_groups
        for key in ("eps", "weight_decay"):  # TorchRec gets them when the table is created
            if saved[key] != current[key]:
                raise UserError(
                    f"config ckpt: the table's {key} was {saved[key]} and is {current[key]} now; set optimizer as it "
                    "was"
                )
        if state_dict["state"]:
            self.table.load_accumulators(state_dict["state"][0]["sum"])
        super().load_state_dict(state_dict | {"state": {}})


class Combined(Optimizer):
    """Several optimisers that step and save together.

    Args:
        parts: optimisers of disjoint parameters. Their parameter groups are shared, not copied, so that a learning
            rate scheduler on the whole acts on the parts.
    """

    def __init__(self, parts: list[Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate the loss once, then step every part."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        # Loading gives the parts new groups; a scheduler that holds this list must act on the new ones.
        self.param_groups[:] = [group for part in self.parts for group in part.param_groups]


def parts_of(optimizer: Optimizer) -> list[Optimizer]:
    """The optimisers that an optimiser combines, or itself."""
    return optimizer.parts if isinstance(optimizer, Combined) else [optimizer]


def can_be_captured(optimizer: Optimizer) -> bool:
    """Whether a CUDA graph can repeat the steps of an optimiser: all that changes between them lies on the device."""
    return all(
        isinstance(part, RowOptimizer) or (type(part) in (Adam, AdamW) and all(g["fused"] for g in part.param_groups))
        for part in parts_of(optimizer)
    )


@contextmanager
def captured(optimizer: Optimizer) -> Iterator[None]:
    """Let torch's optimisers step inside a capture; only there, as they save this setting and warn of it elsewhere."""
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    before = [group["capturable"] for group in groups]
    try:
        for group in groups:
            group["capturable"] = True
        yield
    finally:
        for group, value in zip(groups, before, strict=True):
            group["capturable"] = value


def split_for_sharding(optimizer: Optimizer) -> tuple[Optimizer, dict[str, Any]]:
    """Split an optimiser into that of the dense parameters and the settings of the table, for a :class:`ShardedTable`.

    Raises:
        ValueError: the table's optimiser is not row-wise Adagrad, the one that TorchRec supports on every device, or
            the table has a part per task, or a field has a table of its own.
    """
    dense, rows = optimizer.parts if isinstance(optimizer, Combined) else (optimizer, None)
    if not isinstance(rows, RowAdagrad):
        raise ValueError("a sharded table is updated by row-wise Adagrad; set optimizer=adagrad")
    group, *others = rows.param_groups
    if others:
        raise ValueError("fields with a dim have tables that cannot be sharded; set sharding=null")
    if group["parts"] > 1:
        raise ValueError("a table with a part for each task cannot be sharded; choose another model")
    return dense, {key: value for key, value in group.items() if key != "params"}


def _check_kept(state_dict: dict[str, Any], kept: tuple[str, ...]) -> None:
    for state in state_dict["state"].values():
        if set(state) != set(kept):
            raise UserError(
                f"config ckpt: the checkpoint's optimiser keeps {', '.join(state)} of a table, the configured one "
                f"{', '.join(kept)}; set optimizer as it was"
            )


def _tables_and_dense(model: nn.Module) -> tuple[list[EmbeddingTable], list[nn.Parameter]]:
    tables = [m for m in model.modules() if isinstance(m, EmbeddingTable)]
    table_weights = {id(t.weight) for t in tables}
    return tables, [p for p in model.parameters() if id(p) not in table_weights]


def _dense_and_rows(
    rows: Callable[..., RowOptimizer],
    model: nn.Module,
    lr: float,
    embedding_lr: float,
    weight_decay: float,
    embedding_weight_decay: float,
    dense: Callable[..., Optimizer] | None,
) -> Optimizer:
    from_zero(
        lr=lr,
        embedding_lr=embedding_lr,
        weight_decay=weight_decay,
        embedding_weight_decay=embedding_weight_decay,
    )
    tables, dense_parameters = _tables_and_dense(model)
    make_dense = partial(Adam, fused=True) if dense is None else dense
    return Combined(
        [
            make_dense(dense_parameters, lr=lr, weight_decay=weight_decay),
            rows(
                [{"params": [t.weight], "parts": t.parts, "dim": t.dim} for t in tables],
                lr=embedding_lr,
                weight_decay=embedding_weight_decay,
            ),
        ]
    )


def adam(
    model: nn.Module,
    *,
    lr: float,
    embedding_lr: float,
    weight_decay: float = 0.0,
    embedding_weight_decay: float = 0.0,
    dense: Callable[..., Optimizer] | None = None,
) -> Optimizer:
    """Fused Adam for the dense parameters and row-sparse Adam for the table.

    Args:
        model: model to optimise.
        lr: learning rate of the dense parameters.
        embedding_lr: learning rate of the embedding table.
        weight_decay: L2 penalty of the dense parameters.
        embedding_weight_decay: L2 penalty of the table rows that a batch touches.
        dense: makes another optimiser of the dense parameters from these, ``lr`` and ``weight_decay``, such as a
            partial :class:`torch.optim.AdamW`.
    """
    return _dense_and_rows(RowAdam, model, lr, embedding_lr, weight_decay, embedding_weight_decay, dense)


def adagrad(
    model: nn.Module,
    *,
    lr: float,
    embedding_lr: float,
    weight_decay: float = 0.0,
    embedding_weight_decay: float = 0.0,
    dense: Callable[..., Optimizer] | None = None,
) -> Optimizer:
    """Fused Adam for the dense parameters and row-wise Adagrad for the table, whose state takes 1/D of the table.

    Arguments as for :func:`adam`.
    """
    return _dense_and_rows(RowAdagrad, model, lr, embedding_lr, weight_decay, embedding_weight_decay, dense)
