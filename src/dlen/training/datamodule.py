"""The data module for all data sets: an open store and three loaders."""

from __future__ import annotations

import lightning as L
import torch

from dlen.batch import Batch
from dlen.data.loader import BatchLoader
from dlen.data.split import ResidentSplit, Rows, Split
from dlen.data.store import Store

_SHARE = 0.25  # of a GPU's free memory, per split: table and optimiser state are allocated later


class RankingDataModule(L.LightningDataModule):
    """Train, validation and test batches of a prepared store, split over the trainer's processes.

    Args:
        batch_size: rows per training batch and process.
        eval_batch_size: rows per batch in validation and test.
        seed: seed of the training order.
        test_split: name of the split that the test pass reads.
    """

    def __init__(
        self, store: Store, batch_size: int, eval_batch_size: int, seed: int, test_split: str = "test"
    ) -> None:
        super().__init__()
        self._splits: dict[str, Split | ResidentSplit] = {}
        self.store = store
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.test_split = test_split

    def _loader(self, split: str, *, shuffle: bool) -> BatchLoader:
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        size = self.batch_size if shuffle else self.eval_batch_size
        loader = BatchLoader(
            self._split(split), size, shuffle=shuffle, seed=self.seed, rank=rank, world_size=world_size
        )
        limit = trainer.limit_train_batches if trainer and shuffle else None
        if limit is not None:
            loader.limit = limit if isinstance(limit, int) else int(len(loader) * limit)
        return loader

    def _split(self, name: str) -> Split | ResidentSplit:
        """Open a split, in GPU memory if it fits."""
        if name not in self._splits:
            split = self.store.split(name)
            device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
            fits = split.bytes <= _SHARE * free_memory(device)
            self._splits[name] = ResidentSplit(split, device) if fits else split
        return self._splits[name]

    def transfer_batch_to_device(self, batch: Batch | Rows, device: torch.device, dataloader_idx: int) -> Batch | Rows:
        """Move the batch to the device, without Lightning's recursive search for tensors."""
        return batch if isinstance(batch, Rows) else batch.to(device, non_blocking=True)

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches of the training rows; with ``trainer.overfit_batches``, the same ones in every epoch."""
        return self._fit_loader("train", shuffle=True)

    def val_dataloader(self) -> BatchLoader:
        """Validation rows in stored order; with ``trainer.overfit_batches``, the batches that are trained on."""
        return self._fit_loader("validation", shuffle=False)

    def _fit_loader(self, split: str, *, shuffle: bool) -> BatchLoader:
        if self.trainer and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            return BatchLoader(self._split("train"), self.batch_size, shuffle=False)
        return self._loader(split, shuffle=shuffle)

    def test_dataloader(self) -> BatchLoader:
        """Rows of ``test_split`` in stored order."""
        return self._loader(self.test_split, shuffle=False)

    predict_dataloader = test_dataloader


def free_memory(device: torch.device) -> int:
    """Free bytes on a GPU; 0 for a CPU, where a copy would be no faster than the memory-mapped files."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def tested_rows(trainer: L.Trainer, data: RankingDataModule) -> int:
    """Number of rows that the test pass read, which ``trainer.limit_test_batches`` may limit."""
    read = int(trainer.num_test_batches[0]) * data.eval_batch_size * trainer.world_size
    return min(read, len(data.store.split(data.test_split)))
