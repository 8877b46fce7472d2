"""New embedding tables for later epochs, so that the network never reads what an id has memorised of a row's label."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping

from dlen.hashing import seed_of
from dlen.nn.embedding import EmbeddingTable
from dlen.nn.sharded import ShardedTable
from dlen.training.optimizers import RowOptimizer, parts_of
from dlen.training.selection import Selection


class FreshTables(Callback):
    """Starts epochs with a new embedding table, and keeps all other weights (MEDA, Liu et al. 2023).

    Where ids have few rows, a second epoch reads vectors that the first one has fitted to the labels of the very same
    rows. The network learns to trust them, and is worse on new rows from the first steps of that epoch on (the
    one-epoch phenomenon, Zhang et al. 2022). With a new table in each epoch it never sees such a vector and goes on
    learning. Where ids have many rows, their vectors go on learning over epochs, and a new table would lose that.
    ``auto`` therefore waits for an epoch that has brought no better validation.

    The table's part of the optimiser starts anew as well. Values are drawn from the seed and the epoch, so a resumed
    run continues with the same ones.

    Args:
        reset: ``auto``; True for every epoch but the first; False for never.
        seed: seed of the run.
        selection: tells the epoch of the best validation.

    Attributes:
        first: first epoch that started with a new table, counted from 0; -1 for none.
    """

    def __init__(self, reset: str | bool, seed: int, selection: Selection) -> None:
        self.reset, self.seed, self.selection = reset, seed, selection
        self.first = self._latest = self._validated = -1

    def state_dict(self) -> dict[str, Any]:
        """The latest epochs that started with a new table, and that were validated."""
        return {"first": self.first, "latest": self._latest, "validated": self._validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.first, self._latest, self._validated = (state_dict[key] for key in ("first", "latest", "validated"))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that this epoch had a validation, which may have been the best."""
        if not trainer.sanity_checking:
            self._validated = trainer.current_epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the table anew, if this epoch is to start with a new one and did not before it was interrupted."""
        epoch = trainer.current_epoch
        if epoch == 0 or epoch == self._latest or not self._applies(epoch):
            return
        if self.first < 0:
            self.first = epoch
            if self.reset == "auto":
                self._begin(trainer)
        self._latest = epoch
        self._renew(trainer, pl_module)

    def _applies(self, epoch: int) -> bool:
        if self.reset != "auto" or self.first >= 0:
            return bool(self.reset)
        return self._validated == epoch - 1 and self.selection.epoch < epoch - 1

    def _begin(self, trainer: L.Trainer) -> None:
        """Give the new tables the whole patience, and tell the user."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.monitor == self.selection.monitor:
                callback.wait_count = 0
        if trainer.is_global_zero:
            print(
                f"epoch {self.first} was the first without a better {self.selection.monitor}: from now on each starts "
                "with a new embedding table (reset_embeddings)",
                file=sys.stderr,
            )

    def _renew(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        generator = torch.Generator().manual_seed(int(seed_of(self.seed, trainer.current_epoch)))
        for table in module.modules():
            if isinstance(table, EmbeddingTable | ShardedTable):
                table.renew(generator)
        for optimizer in trainer.optimizers:
            for part in parts_of(optimizer):
                if isinstance(part, RowOptimizer):  # the state of a sharded table is its own
                    part.forget()
