"""Pools the lists of a sequence to one vector each: by mean, by the newest value, or by attention to the candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dlen.checks import whole
from dlen.nn.embedding import columns
from dlen.nn.logspace import at_least_float32
from dlen.nn.mlp import MLP
from dlen.schema import Schema

_MOST = 1024  # upper limit on heads


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The type that linear layers compute in: that of autocast, or of the tensor."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


class Ragged:
    """The places of the sequences of B rows in a tensor (P, ...): those of all rows one after the other, as in a batch.

    Args:
        lengths: (B,) int64 number of places in each row.
        total: P, their sum, which is known without a device synchronisation.
    """

    def __init__(self, lengths: Tensor, total: int) -> None:
        self.lengths, self.total = lengths, total

    def expand(self, rows: Tensor) -> Tensor:
        """(B, ...) values of rows -> (P, ...) values of the row of each place."""
        return torch.repeat_interleave(rows, self.lengths, 0, output_size=self.total)

    def sum(self, places: Tensor) -> Tensor:
        """(P, ...) -> (B, ...) sums over the places of each row; 0 for an empty sequence."""
        # unsafe skips the check of the lengths, which would synchronise with a GPU
        flat = torch.segment_reduce(places.flatten(1), "sum", lengths=self.lengths, unsafe=True)
        return flat.unflatten(1, places.shape[1:])

    def softmax(self, logits: Tensor) -> Tensor:
        """(P, H) -> (P, H) softmax over the places of each row."""
        highest = torch.segment_reduce(logits.detach(), "max", lengths=self.lengths, unsafe=True)
        weights = (logits - self.expand(highest)).exp()
        return weights / self.expand(self.sum(weights))

    def newest(self, places: Tensor) -> Tensor:
        """(P, ...) -> (B, ...) values of the last place of each row; 0 for an empty sequence."""
        with_none = torch.cat([places, places.new_zeros(1, *places.shape[1:])])
        last = torch.where(self.lengths > 0, self.lengths.cumsum(0) - 1, self.total)
        return with_none.index_select(0, last)


class Padded:
    """Places padded to a width W, row by row, as a server sends them: P = B W.

    Args:
        lengths: (B,) int64 number of places in each row, which come first.
        width: W.
    """

    def __init__(self, lengths: Tensor, width: int) -> None:
        self.lengths, self.width = lengths, width
        self.mask = (torch.arange(width, device=lengths.device) < lengths[:, None]).flatten()  # (P,)

    def expand(self, rows: Tensor) -> Tensor:
        """See :class:`Ragged`."""
        return rows[:, None].expand(-1, self.width, *rows.shape[1:]).flatten(0, 1)

    def sum(self, places: Tensor) -> Tensor:
        """See :class:`Ragged`."""
        kept = places * self.mask.view(-1, *(1 for _ in places.shape[1:]))
        return kept.unflatten(0, (-1, self.width)).sum(1)

    def softmax(self, logits: Tensor) -> Tensor:
        """See :class:`Ragged`."""
        kept = logits.masked_fill(~self.mask[:, None], -torch.inf).unflatten(0, (-1, self.width))
        return kept.softmax(1).nan_to_num().flatten(0, 1)

    def newest(self, places: Tensor) -> Tensor:
        """See :class:`Ragged`."""
        is_newest = torch.arange(self.width, device=self.lengths.device) == self.lengths[:, None] - 1
        return (places.unflatten(0, (-1, self.width)) * is_newest.view(*is_newest.shape, 1, 1)).sum(1)


Layout = Ragged | Padded


class SequencePool(nn.Module):
    """Base class: pools the N lists of one sequence.

    Construct with ``Pool(dim, lists, targets, **settings)``.

    Args:
        dim: length E of a vector.
        lists: number N of lists.
        targets: which of the lists hold ids of the same kind as the candidate's M vectors, in their order.
    """

    needs_target = False

    def __init__(self, dim: int, lists: int, targets: Sequence[int]) -> None:
        super().__init__()
        self.targets = list(targets)

    def matched(self, values: Tensor) -> Tensor:
        """(P, N, E) -> (P, M, E) vectors of the lists that the candidate's vectors belong to."""
        first = self.targets[0]
        if self.targets == list(range(first, first + len(self.targets))):
            return values[:, first : first + len(self.targets)]  # a view
        return columns(values, self.targets)

    def forward(self, values: Tensor, target: Tensor, layout: Layout) -> Tensor:
        """Pool the sequences of B rows.

        Args:
            values: (P, N, E) vectors of each place.
            target: (B, M, E) vectors of the candidate.
            layout: rows of the places.

        Returns:
            (B, N, E) vectors; 0 for an empty sequence.
        """
        raise NotImplementedError


class MeanPool(SequencePool):
    """The mean of all values."""

    def forward(self, values: Tensor, target: Tensor, layout: Layout) -> Tensor:
        """See :class:`SequencePool`."""
        return layout.sum(values) / layout.lengths.clamp(min=1)[:, None, None]


class LastPool(SequencePool):
    """The newest value."""

    def forward(self, values: Tensor, target: Tensor, layout: Layout) -> Tensor:
        """See :class:`SequencePool`."""
        return layout.newest(values)


class TargetAttention(SequencePool):
    """Deep interest network: values weighted by a network of value and candidate (Zhou et al. 2018, equation 3).

        weight = MLP(value, candidate, value * candidate)

    The weights are not normalised, so that many values like the candidate count more than one. All lists of a sequence
    have the same weights. The difference of value and candidate, a fourth input of the authors' code, is left out: the
    first layer is linear in both anyway, so with its weights joined to theirs the numbers are those of DeepCTR-Torch.

    Args:
        hidden: layer sizes of the network.
    """

    needs_target = True

    def __init__(self, dim: int, lists: int, targets: Sequence[int], *, hidden: Sequence[int] = (32,)) -> None:
        super().__init__(dim, lists, targets)
        if not hidden:
            raise ValueError("hidden must name at least one layer size")
        self.layers = MLP((lists + 2 * len(self.targets)) * dim, hidden)
        self.output = nn.Linear(hidden[-1], 1)

    def forward(self, values: Tensor, target: Tensor, layout: Layout) -> Tensor:
        """See :class:`SequencePool`."""
        return layout.sum(values * self.weights(values, target, layout)[..., None])

    def weights(self, values: Tensor, target: Tensor, layout: Layout) -> Tensor:
        """(P, 1) weights; takes the arguments of :meth:`forward`."""
        # Cast to the type of the layers first: these tensors have one row per value, and moving them is the cost.
        dtype = compute_dtype(values)
        expanded = layout.expand(target.flatten(1).to(dtype))
        inputs = [values.flatten(1).to(dtype), expanded, self.matched(values).flatten(1).to(dtype) * expanded]
        return at_least_float32(self.output(self.layers(torch.cat(inputs, 1))))


class MultiHeadTargetAttention(SequencePool):
    """Attention with the candidate as query and the values as keys (Vaswani et al. 2017, equation 1), for each head.

    Args:
        heads: number H of heads.
        head_dim: length of the queries and keys of a head.
    """

    needs_target = True

    def __init__(self, dim: int, lists: int, targets: Sequence[int], *, heads: int = 2, head_dim: int = 16) -> None:
        super().__init__(dim, lists, targets)
        self.heads, self.head_dim = whole("heads", heads, 1, _MOST), whole("head_dim", head_dim, 1, _MOST)
        self.query = nn.Linear(len(self.targets) * dim, heads * head_dim)
        self.key = nn.Linear(lists * dim, heads * head_dim, bias=False)  # a bias would not change the softmax
        self.output = nn.Linear(heads * lists * dim, lists * dim, bias=False)  # 0 for an empty sequence

    def forward(self, values: Tensor, target: Tensor, layout: Layout) -> Tensor:
        """See :class:`SequencePool`."""
        weights = self.weights(values, target, layout)  # (P, H)
        pooled = layout.sum(weights[:, :, None] * values.flatten(1)[:, None])  # (B, H, N E)
        return at_least_float32(self.output(pooled.flatten(1))).unflatten(1, values.shape[1:])

    def weights(self, values: Tensor, target: Tensor, layout: Layout) -> Tensor:
        """(P, H) weights, which add up to 1 in each row; takes the arguments of :meth:`forward`."""
        query = layout.expand(self.query(target.flatten(1)).unflatten(1, (self.heads, -1)))
        key = self.key(values.flatten(1)).unflatten(1, (self.heads, -1))
        return layout.softmax(at_least_float32((query * key).sum(2)) / self.head_dim**0.5)


class SequencePools(nn.Module):
    """Pools all sequences of a schema.

    The candidate of a sequence is whatever its lists share vectors with: a history of videos that shares those of
    ``video_id`` attends to the row's ``video_id``. A sequence whose lists have vectors of their own has no candidate,
    and is pooled by mean where ``make`` needs one.

    Args:
        dim: length E of a vector.
        parts: number of equal parts of a vector; each has its own pool.
        make: factory of the pools, called with (dim, lists, targets).
    """

    def __init__(self, schema: Schema, dim: int, parts: int, make: Callable[..., SequencePool]) -> None:
        super().__init__()
        self.parts, pools = parts, []
        self.targets: list[list[str]] = []
        for lists in schema.sequences.values():
            shared = [place for place, field in enumerate(lists) if field.share]
            self.targets.append([lists[place].share for place in shared])
            needs = getattr(getattr(make, "func", make), "needs_target", False)
            chosen = make if shared or not needs else MeanPool
            of_parts = [chosen(dim // parts, len(lists), shared) for _ in range(parts)]
            pools.append(nn.ModuleList(of_parts))
        self.pools = nn.ModuleList(pools)

    def forward(self, values: Sequence[Tensor], targets: Sequence[Tensor], layouts: Sequence[Layout]) -> Tensor:
        """Pool the sequences of B rows.

        Args:
            values: (P, N, E) vectors of each sequence.
            targets: (B, M, E) vectors of each sequence's candidate, the fields named by ``targets``.
            layouts: rows of the places of each sequence.

        Returns:
            (B, F E) vectors of all lists of all sequences.
        """
        pooled = []
        for place, pools in enumerate(self.pools):
            assert isinstance(pools, nn.ModuleList)
            parts = zip(pools, values[place].chunk(self.parts, 2), targets[place].chunk(self.parts, 2), strict=True)
            pooled.append(torch.cat([pool(v, t, layouts[place]) for pool, v, t in parts], 2).flatten(1))
        return torch.cat(pooled, 1)
