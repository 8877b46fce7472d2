"""RateEncoder: out-of-fold target encoding of ids as smoothed rates and counts."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from dlen.batch import Batch
from dlen.checks import positive, whole
from dlen.hashing import mix
from dlen.models.examples import Examples, Rows
from dlen.schema import Kind, Pooling, Schema

_RATE_LIMITS = (1e-6, 1 - 1e-6)
_CHUNK = 1 << 18  # ids encoded at a time


class RateEncoder(nn.Module):
    """Encodes a batch as (B, F) numbers for models without embeddings.

    Each id becomes log(1 + rows) and, for each binary task, the log-odds of its smoothed positive rate, (positives +
    smoothing * prior) / (rows + smoothing), where the prior is the rate over all rows. A multi-valued field becomes
    the weighted means of these over its values, the number of values and, with sum pooling, the sum of the weights.
    Numeric fields and the numbers of vectors pass through unchanged. An id that is not in the training rows gets the
    prior.

    New rows use the rates of all training rows. Training rows are encoded out of fold: a hash of the row number
    assigns each row to one of ``folds`` folds, and its rates, counts and priors come from the other folds. No label
    of a row's own fold enters its inputs.

    Args:
        smoothing: pseudo-rows at the prior rate that are added to each id's counts.
        folds: number of folds of the training rows.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, schema: Schema, smoothing: float, folds: int) -> None:
        super().__init__()
        self.smoothing, self.folds = positive("smoothing", smoothing), whole("folds", folds, 2, 100)
        self.binary = [index for index, task in enumerate(schema.tasks) if not task.is_regression]
        self.tasks = len(self.binary)
        self.num_ids = schema.num_embeddings
        bags = schema.of_kind(Kind.IDS)
        self.summed = [m for m, field in enumerate(bags) if field.pooling is Pooling.SUM]
        self.width = (len(schema.of_kind(Kind.ID)) + len(bags)) * (self.tasks + 1)
        self.width += len(bags) + len(self.summed) + len(schema.of_kind(Kind.NUMERIC))
        self.width += sum(field.size for field in schema.of_kind(Kind.VECTOR))
        self.register_buffer("table", torch.zeros(self.num_ids, self.tasks + 1))  # log-odds, log(1 + rows)
        self.register_buffer("prior", torch.zeros(self.tasks))  # log-odds
        self.table: Tensor
        self.prior: Tensor

    def forward(self, batch: Batch) -> Tensor:
        """Encode B rows that are not training rows as (B, F) inputs."""
        prior = self.prior.expand(len(batch), -1)
        return self._join(batch, self.table[batch.ids.long()], self.table[batch.bag_ids.long()], prior)

    def fit(self, rows: Rows, seed: int) -> FoldSums:
        """Learn the rates of all training rows.

        Returns:
            The sums that :meth:`out_of_fold` needs. They take 4 (2 T + 1) (folds + 1) bytes per id.
        """
        sums = FoldSums(self.num_ids, self.tasks, self.folds, seed)
        first = 0
        for examples in rows():
            labels, mask = examples.labels[:, self.binary], examples.mask[:, self.binary]
            sums.add(Examples(examples.batch, labels, mask), first)
            first += len(examples.batch)
        prior = self._prior(sums.all_rows.sum(0))
        self.prior.copy_(_log_odds(prior))
        for start in range(0, self.num_ids, _CHUNK):
            self.table[start : start + _CHUNK] = self._encoded(sums.total[start : start + _CHUNK], prior, 1.0)
        return sums

    def out_of_fold(self, batch: Batch, first: int, sums: FoldSums) -> Tensor:
        """Encode B training rows out of fold as (B, F) inputs.

        Args:
            batch: B consecutive training rows.
            first: row number of the first one among all training rows.
            sums: the sums over all training rows, as returned by :meth:`fit`.
        """
        fold = sums.fold_of(first, len(batch))  # (B,)
        prior = self._prior(sums.all_rows.sum(0) - sums.all_rows)[fold]  # (B, T)
        single = self._others(batch.ids.long(), fold[:, None].expand_as(batch.ids), prior[:, None], sums)
        row = row_of_value(batch)
        values = self._others(batch.bag_ids.long(), fold[row], prior[row], sums)
        return self._join(batch, single, values, _log_odds(prior))

    def _others(self, ids: Tensor, fold: Tensor, prior: Tensor, sums: FoldSums) -> Tensor:
        """(..., T + 1) encoding of ids from the other folds, with row counts scaled up to all folds."""
        counts = sums.total[ids] - sums.by_fold[fold, ids]
        return self._encoded(counts, prior, self.folds / (self.folds - 1))

    def _encoded(self, counts: Tensor, prior: Tensor, scale: float) -> Tensor:
        """(..., 2 T + 1) positives, trained rows, rows -> (..., T + 1) log-odds and log(1 + rows)."""
        positives, trained, rows = counts.float().split([self.tasks, self.tasks, 1], -1)
        rates = (positives + self.smoothing * prior) / (trained + self.smoothing)
        return torch.cat([_log_odds(rates), torch.log1p(rows * scale)], -1)

    def _prior(self, counts: Tensor) -> Tensor:
        """(..., 2 T + 1) counts -> (..., T) positive rates over all rows."""
        positives, trained, _ = counts.double().split([self.tasks, self.tasks, 1], -1)
        return (positives / trained.clamp(min=1)).clamp(*_RATE_LIMITS).float()

    def _join(self, batch: Batch, single: Tensor, values: Tensor, prior: Tensor) -> Tensor:
        """Concatenate the encoded parts to the (B, F) inputs.

        Args:
            batch: B rows.
            single: (B, S, T + 1) encoded single ids.
            values: (L, T + 1) encoded values of the multi-valued fields.
            prior: (B, T) log-odds used for empty lists.
        """
        parts = [single.flatten(1)]
        if batch.bag_lengths.shape[0]:
            lengths, weights = batch.bag_lengths.flatten(), batch.bag_weights[:, None]
            total = torch.segment_reduce(weights, "sum", lengths=lengths, unsafe=True)
            means = torch.segment_reduce(values * weights, "sum", lengths=lengths, unsafe=True) / total
            empty = torch.nn.functional.pad(prior, (0, 1)).repeat(len(batch.bag_lengths), 1)
            means = torch.where(total > 0, means, empty)
            of_bags = torch.cat([means, lengths[:, None].float()], 1).view(len(batch.bag_lengths), len(batch), -1)
            parts.append(of_bags.transpose(0, 1).flatten(1))
            parts.append(total.view(len(batch.bag_lengths), len(batch))[self.summed].T)
        return torch.cat([*parts, batch.numeric, *batch.vectors], 1)


class FoldSums:
    """Counts of positives and rows per id and fold of the training rows.

    Attributes:
        by_fold: (folds, R, 2 T + 1) int32 counts per id: positives, rows that train each task, and rows.
        all_rows: (folds, 2 T + 1) int64, the same counts over all rows.

    Args:
        num_ids: number of ids R.
        tasks: number of tasks T.
    """

    def __init__(self, num_ids: int, tasks: int, folds: int, seed: int) -> None:
        self.folds, self.seed = folds, seed
        self.by_fold = torch.zeros(folds, num_ids, 2 * tasks + 1, dtype=torch.int32)
        self.all_rows = torch.zeros(folds, 2 * tasks + 1, dtype=torch.int64)

    @cached_property
    def total(self) -> Tensor:
        """(R, 2 T + 1) counts summed over all folds; to be read once all rows are added."""
        return self.by_fold.sum(0, dtype=torch.int32)

    def fold_of(self, first: int, rows: int) -> Tensor:
        """(rows,) folds of consecutive rows starting at row ``first``: a hash of row number and seed."""
        key = np.uint64(self.seed * 0x9E3779B97F4A7C15 % 2**64)
        mixed = mix(np.arange(first, first + rows, dtype=np.uint64), key)
        return torch.from_numpy((mixed % np.uint64(self.folds)).astype(np.int64))

    def add(self, examples: Examples, first: int) -> None:
        """Add the counts of a batch; ``first`` is the row number of its first row among all training rows."""
        batch = examples.batch
        trained = (examples.mask > 0).int()
        counted = torch.cat([examples.labels.int() * trained, trained, trained.new_ones(len(batch), 1)], 1)
        fold = self.fold_of(first, len(batch))
        self.all_rows.index_add_(0, fold, counted.long())
        self._add(batch.ids.long(), fold[:, None], counted[:, None])
        row = row_of_value(batch)
        self._add(batch.bag_ids.long(), fold[row], counted[row])

    def _add(self, ids: Tensor, fold: Tensor, counted: Tensor) -> None:
        # Flat scalar indices: torch's index_add_ is many times slower on matrix rows than on a vector.
        width = self.by_fold.shape[2]
        place = ((fold * self.by_fold.shape[1] + ids) * width)[..., None] + torch.arange(width)
        self.by_fold.view(-1).index_add_(0, place.flatten(), counted.expand(place.shape).flatten())


def row_of_value(batch: Batch) -> Tensor:
    """(L,) row index of each value of the multi-valued fields."""
    lengths = batch.bag_lengths
    row = torch.arange(len(batch), device=lengths.device).repeat(len(lengths))
    return torch.repeat_interleave(row, lengths.flatten())


def _log_odds(p: Tensor) -> Tensor:
    return p.log() - torch.log1p(-p)
