"""BatchLoader: iterates over a split in seeded random or stored order, batch by batch, and can be resumed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlen.batch import Batch
from dlen.data.shuffle import permute
from dlen.data.split import ResidentSplit, Rows, Split
from dlen.errors import UserError

_DRAWN = 1 << 14  # row numbers drawn at once


class BatchLoader:
    """An iterable of batches for one process out of ``world_size``.

    In training, each rank takes every ``world_size``-th position of the shuffled order, and all ranks take the same
    number of rows. Step s of all ranks together is therefore the batch that a single process would see with a batch
    ``world_size`` times as large. Up to ``world_size - 1`` rows are dropped in each epoch. In evaluation
    (``shuffle=False``) the ranks share the rows so that each row is seen exactly once.

    Args:
        split: split to read from.
        batch_size: rows per batch of this process. In evaluation it is increased if ranks would otherwise have
            different numbers of batches.
        shuffle: draw a new random order for each epoch, determined by ``seed`` and the epoch only.
        seed: random seed of the order.
        rank: index of this process.
        world_size: number of processes.

    Attributes:
        gathers: whether to yield batches; otherwise the row numbers of each, of a split in a device's memory.
        limit: number of batches after which the consumer stops; None for all. The next iteration starts a new epoch.
    """

    def __init__(
        self,
        split: Split | ResidentSplit,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.limit: int | None = None
        self.gathers = True
        share, extra = divmod(len(split), world_size)
        if not shuffle and extra and share:
            # All ranks must make the same number of batches, because a sharded table communicates at each one.
            while share % self.batch_size == 0:
                self.batch_size += 1
        self._epoch = 0
        self._next = 0  # index of the next batch in this epoch
        self._resuming = False
        self._drawn: Sequence[Tensor] = ()  # row numbers of some batches
        self._drawn_for = (-1, -1)  # epoch and place of these batches in it

    @property
    def rows(self) -> int:
        """Rows of this rank in one epoch."""
        share, extra = divmod(len(self.split), self.world_size)
        return share if self.shuffle else share + (self.rank < extra)

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        # An epoch ends when the next one begins: a consumer that counts batches never comes back after the last one,
        # and a consumer that stopped early wants a new epoch. Only a loaded state is resumed.
        last = len(self) if self.limit is None else min(len(self), self.limit)
        if self._next >= last or (self._next and not self._resuming):
            self._epoch, self._next = self._epoch + 1, 0
        self._resuming = False
        while self._next < len(self):
            number = self._next
            self._next += 1  # before the yield: a checkpoint taken now must not repeat this batch
            rows = self._rows(number)
            yield self.split.batch(rows) if self.gathers else Rows(rows, self.split)  # type: ignore[misc, arg-type]

    def _rows(self, number: int) -> Tensor:
        """(B,) row numbers of a batch, drawn for several batches at once: that takes an eighth of the time."""
        batches = max(_DRAWN // self.batch_size, 1)
        drawn, place = divmod(number, batches)
        if self._drawn_for != (self._epoch, drawn):
            size = batches * self.batch_size
            places = np.arange(drawn * size, min((drawn + 1) * size, self.rows)) * self.world_size + self.rank
            rows = permute(places, len(self.split), self.seed, self._epoch) if self.shuffle else places
            self._drawn, self._drawn_for = torch.from_numpy(rows).split(self.batch_size), (self._epoch, drawn)
        return self._drawn[place]

    def state_dict(self) -> dict[str, Any]:
        """State from which the next batch is resumed."""
        return {"epoch": self._epoch, "next": self._next, **self._order()}

    def _order(self) -> dict[str, int]:
        """Settings that determine which rows are in which batch."""
        return {
            "loader.batch_size": self.batch_size,
            "seed": self.seed,
            "trainer.devices times trainer.num_nodes": self.world_size,
            "training rows": len(self.split),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the state returned by :meth:`state_dict`.

        Raises:
            UserError: settings that determine the batches have changed, so rows would be skipped or repeated.
        """
        for key, value in self._order().items():
            if state[key] != value:
                raise UserError(f"cannot resume: {key} was {state[key]} and is {value} now; restore the previous value")
        self._epoch, self._next, self._resuming = state["epoch"], state["next"], True
