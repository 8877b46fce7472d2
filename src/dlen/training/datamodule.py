"""The one data module of all data sets: an open store and three loaders."""

from __future__ import annotations

import lightning as L

from dlen.data.loader import BatchLoader
from dlen.data.store import Store


class RankingDataModule(L.LightningDataModule):
    """Train, validation and test batches of a prepared store, shared out over the trainer's processes.

    Args:
        store: the open store.
        batch_size: rows of a training batch, of each process.
        eval_batch_size: rows of a batch in validation and test.
        seed: of the training order.
        test_split: the split that the test pass reads.
    """

    def __init__(
        self, store: Store, batch_size: int, eval_batch_size: int, seed: int, test_split: str = "test"
    ) -> None:
        super().__init__()
        self.store = store
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.test_split = test_split

    def _loader(self, split: str, *, shuffle: bool) -> BatchLoader:
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        size = self.batch_size if shuffle else self.eval_batch_size
        rows = self.store.split(split)
        return BatchLoader(rows, size, shuffle=shuffle, seed=self.seed, rank=rank, world_size=world_size)

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches of the training rows."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> BatchLoader:
        """Validation rows in stored order."""
        return self._loader("validation", shuffle=False)

    def test_dataloader(self) -> BatchLoader:
        """Rows of the test split in stored order."""
        return self._loader(self.test_split, shuffle=False)
