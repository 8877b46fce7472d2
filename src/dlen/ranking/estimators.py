"""Off-policy estimates: the rates a ranking would have achieved, from a log whose items were shown at random.

The evaluated policy is offered M items, drawn as the log drew them, and shows the one with the highest score. A logged
row is one such item, weighted by inverse propensity: the probability that the policy shows it, over the log's own
1 / M. Whether the item is the best of M is averaged over P further items drawn for the same user.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import hypergeom, norm
from torch import Tensor

from dlen.batch import Batch
from dlen.schema import Kind, Schema

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_Z = float(norm.ppf(0.975))


def swap_items(context: Batch, item: Batch, schema: Schema) -> Batch:
    """Replace the items of a batch: fields of side ``item`` come from ``item``, all others from ``context``.

    Args:
        context: B rows.
        item: B rows.

    Returns:
        B rows. Their labels are those of ``context`` and have no meaning.

    Raises:
        ValueError: a field describes user and item together, so its value for another item is unknown.
    """
    together = [field.name for field in schema.fields if field.side == "cross"]
    if together:
        raise ValueError(
            f"field {together[0]} describes user and item together, so its value for another item is unknown"
        )

    def of_item(kind: Kind) -> Tensor:
        return torch.tensor([field.side == "item" for field in schema.of_kind(kind)], dtype=torch.bool)

    ids = torch.where(of_item(Kind.ID), item.ids, context.ids)
    numeric = torch.where(of_item(Kind.NUMERIC), item.numeric, context.numeric)
    bags = []
    for number, field in enumerate(schema.of_kind(Kind.IDS)):
        batch = item if field.side == "item" else context
        ends = batch.bag_lengths.sum(1).cumsum(0)
        values = slice(int(ends[number - 1]) if number else 0, int(ends[number]))
        bags.append((batch.bag_lengths[number], batch.bag_ids[values], batch.bag_weights[values]))
    if not bags:
        bags_of = context.bag_lengths, context.bag_ids, context.bag_weights
    else:
        lengths, bag_ids, bag_weights = zip(*bags, strict=True)
        bags_of = torch.stack(lengths), torch.cat(bag_ids), torch.cat(bag_weights)
    from_item = {name: lists[0].side == "item" for name, lists in schema.sequences.items()}
    parts = zip(from_item.values(), item.sequences, context.sequences, strict=True)
    sequences = tuple(of_this if is_item else of_context for is_item, of_this, of_context in parts)
    sources = [item if field.side == "item" else context for field in schema.of_kind(Kind.VECTOR)]
    vectors = tuple(source.vectors[x] for x, source in enumerate(sources))
    return Batch(ids, numeric, *bags_of, context.labels, context.truth, sequences=sequences, vectors=vectors)


def best_of(score: Tensor, others: Tensor, candidates: int, generator: torch.Generator) -> Tensor:
    """Weight logged rows for the policy that shows the best of M candidates.

        w = M * C(L, M - 1) / C(P, M - 1)

    where L is how many of the P other items the row's item beats: M times the share of all choices of M - 1 items in
    which it beats every one, which is a hypergeometric probability. The mean of w over the log is 1, and the mean of
    w * label is an unbiased estimate of the policy's rate.

    Args:
        score: (B,) scores of the logged items.
        others: (B, P) scores of further items for the same users, drawn as the log drew its own.
        candidates: M, from 1 to P + 1.
        generator: random generator that breaks ties.

    Returns:
        (B,) float64 weights, from 0 to M.

    Example:
        >>> score, others = torch.tensor([0.9, 0.5]), torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.1, 0.6, 0.7, 0.8]])
        >>> best_of(score, others, candidates=2, generator=torch.Generator())
        tensor([2.0000, 0.5000], dtype=torch.float64)
    """
    draws = others.shape[1]
    if not 1 <= candidates <= draws + 1:
        raise ValueError(f"candidates must be from 1 to {draws + 1}, one more than the draws, got {candidates}")
    tie = (others == score[:, None]) & (torch.rand(others.shape, generator=generator) < 0.5)
    beaten = ((others < score[:, None]) | tie).sum(1).numpy()
    rivals, population = candidates - 1, max(draws, 1)  # SciPy gives nan for an empty one
    return torch.from_numpy(candidates * hypergeom.pmf(rivals, population, beaten, rivals))


@dataclass(frozen=True, slots=True)
class Estimate:
    """The value of a policy, or the difference between two policies.

    Attributes:
        value: the mean.
        low: lower end of the 95 % interval over users.
        high: upper end of the 95 % interval over users.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimator:
    """Estimates from the rows of a random log under a policy's weights.

    Args:
        weights: (N,) weights of the rows.
        users: (N,) users of the rows. Rows of the same user are not independent.
    """

    weights: Floats
    users: Ints

    @property
    def effective_rows(self) -> float:
        """Effective sample size, (sum w)^2 / sum w^2: the number of equally weighted rows with the same information."""
        squares = float((self.weights**2).sum())
        return float(self.weights.sum()) ** 2 / squares if squares else 0.0

    def ips(self, labels: Floats) -> Estimate:
        """Inverse propensity scoring, the mean of w * label. Unbiased, but with a wider interval."""
        each = self.weights * labels
        return self._interval(float(each.mean()), (each - each.mean()) / len(each))

    def snips(self, labels: Floats) -> Estimate:
        """Self-normalised estimate (Swaminathan and Joachims 2015): the sum of w * label over the sum of w."""
        return self._interval(*self._snips(labels))

    def snips_gain(self, other: Estimator, labels: Floats) -> Estimate:
        """Difference between two policies on the same rows. Its variance is smaller than that of either estimate."""
        (value, influence), (base, of_base) = self._snips(labels), other._snips(labels)
        return self._interval(value - base, influence - of_base)

    def _snips(self, labels: Floats) -> tuple[float, Floats]:
        total = float(self.weights.sum())
        if not total:
            return math.nan, np.full(len(labels), math.nan)
        value = float((self.weights * labels).sum()) / total
        return value, self.weights * (labels - value) / total

    def _interval(self, value: float, influence: Floats) -> Estimate:
        """Interval from the influence of each row, summed by user (linearisation of a ratio of sums over clusters)."""
        of_users = np.bincount(np.unique(self.users, return_inverse=True)[1], influence)
        users = len(of_users)
        half = _Z * math.sqrt(float((of_users**2).sum()) * users / (users - 1)) if users > 1 else math.nan
        return Estimate(value, value - half, value + half)
