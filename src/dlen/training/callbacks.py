"""Callbacks: seeds, speed and memory of a fit, scores of a test pass, and progress on a terminal or in plain lines."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from dlen.checks import is_number
from dlen.hashing import seed_of
from dlen.nn.embedding import EmbeddingTable
from dlen.nn.sharded import ShardedTable
from dlen.progress import format_count
from dlen.training.checkpoints import CheckpointFiles
from dlen.training.module import RankingModule

_PLAIN_SECONDS = 10.0


class StepSeed(Callback):
    """Seeds each training step from seed, process, epoch and batch, for example for dropout.

    A resumed run draws the same random numbers as an uninterrupted one, without saving generator state.

    Args:
        seed: seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the step. Takes about ten microseconds and does not synchronise with the device."""
        seed = int(seed_of(self.seed, trainer.global_rank, trainer.current_epoch, batch_idx))
        # torch.manual_seed would format the stack once for each kind of absent GPU, and seed all of those there are.
        torch.default_generator.manual_seed(seed)
        if module.device.type == "cuda":
            torch.cuda.default_generators[module.device.index].manual_seed(seed)
        elif module.device.type != "cpu":
            torch.manual_seed(seed)


class Meter(Callback):
    """Counts training rows and training seconds, excluding validation and checkpoints.

    It waits for the device before a validation and at the end, as the host runs ahead of it, and never in between. A
    resumed run continues the counts.

    Attributes:
        checkpoints: checkpoint plugin for the trainer.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.seconds = 0.0
        self.validation_seconds = 0.0
        self.checkpoints = CheckpointFiles()
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The counts so far."""
        counts = {name: getattr(self, name) for name in ("rows", "seconds", "validation_seconds")}
        return counts | {"checkpoint_seconds": self.checkpoints.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from earlier counts."""
        self.rows, self.seconds = state_dict["rows"], state_dict["seconds"]
        self.validation_seconds = state_dict["validation_seconds"]
        self.checkpoints.seconds = state_dict["checkpoint_seconds"]

    def _clock(self) -> float:
        """Seconds on a clock that stops while a checkpoint is written."""
        return time.perf_counter() - self.checkpoints.seconds

    @property
    def rate(self) -> float:
        """Average training rows per second of this process."""
        return self.rows / self.seconds if self.seconds else 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._since = self._clock()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch."""
        self.rows += len(batch)
        self._count()

    def _count(self) -> None:
        now = self._clock()
        self.seconds += now - self._since
        self._since = now

    def _count_rest(self, device: torch.device) -> None:
        """Count the steps that a GPU still has to run."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            self._count()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the training clock."""
        self._count_rest(pl_module.device)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the training clock."""
        if not trainer.sanity_checking:
            self._count_rest(pl_module.device)
        self._since = self._clock()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the validation time and resume the training clock."""
        now = self._clock()
        self.validation_seconds += now - self._since
        self._since = now

    def figures(self, world_size: int) -> dict[str, float]:
        """Metrics under the keys of ``metrics.json``; peak memory covers this process since its start, in MiB."""
        if self.rows == 0:  # training ended before its first batch
            return {}
        return {
            "fit/samples_per_second": round(self.rate * world_size, 1),
            "fit/seconds": round(self.seconds, 2),
            "fit/validation_seconds": round(self.validation_seconds, 2),
            "fit/checkpoint_seconds": round(self.checkpoints.seconds, 2),
            "fit/peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }


class DenseEMA(Callback):
    """An exponential moving average of the dense weights, which is validated, selected and tested in their place.

    Embedding tables stay as they are: averaging them would touch every row at each step, and a row is updated far less
    often than it would be averaged. The weights that are being trained come back with the next training batch, so every
    checkpoint of a validation holds the average; a resumed run restores both.

    Args:
        decay: weight of the earlier average at each step. It is at most (1 + n) / (10 + n) at step n, so that the first
            weights are soon forgotten.

    Raises:
        ValueError: the decay is not in [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not is_number(decay) or not 0 <= decay < 1:
            raise ValueError(f"decay must be a number from 0 to below 1, got {decay!r}")
        self.decay = decay
        self.steps = 0
        self.averaged = False  # whether the module holds the averages at the moment
        self.others: dict[str, Tensor] = {}  # the averages, or the weights while the module holds the averages
        self._weights: dict[str, Tensor] = {}  # of the module, found once and not in each step

    def state_dict(self) -> dict[str, Any]:
        """The averages or weights that the module does not hold."""
        return {"steps": self.steps, "averaged": self.averaged, "others": self.others}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.steps, self.averaged = state_dict["steps"], state_dict["averaged"]
        self.others = dict(state_dict["others"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the averages at the initial weights."""
        self._weights = _dense_weights(pl_module)
        if self.others:
            self.others = {name: self.others[name].to(weight.device) for name, weight in self._weights.items()}
        else:
            self.others = {name: weight.clone() for name, weight in self._weights.items()}

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Bring back the weights that are being trained."""
        if self.averaged:
            self._swap()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the averages after an optimiser step."""
        if trainer.global_step == self.steps:
            return  # gradients are being accumulated
        self.steps = trainer.global_step
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.others.values()), list(self._weights.values()), 1 - decay)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the averages in place."""
        if trainer.state.fn == TrainerFn.FITTING and not self.averaged and self._weights:
            self._swap()

    def _swap(self) -> None:
        for name, weight in self._weights.items():
            other = self.others[name].clone()
            self.others[name].copy_(weight)
            weight.copy_(other)
        self.averaged = not self.averaged


def _dense_weights(module: L.LightningModule) -> dict[str, Tensor]:
    """Parameters outside of embedding tables, without their gradients."""
    tables = {id(p) for m in module.modules() if isinstance(m, EmbeddingTable | ShardedTable) for p in m.parameters()}
    return {name: p.detach() for name, p in module.named_parameters() if id(p) not in tables}


class Patience(EarlyStopping):
    """Early stopping that keeps the configured patience when a run with a different one is resumed."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the progress, but not the patience setting."""
        super().load_state_dict({**state_dict, "patience": self.patience})


class KeptCheckpoint(ModelCheckpoint):
    """The best or the last checkpoint of a run, whose state has a key of its own beside a user's checkpoints."""

    @property
    def state_key(self) -> str:
        """Key of the state, by the name of the file."""
        return f"dlen.{self.filename}"

    @property
    def _legacy_state_key(self) -> str:  # type: ignore[override]
        """The key in runs of version 0.1.0."""
        return ModelCheckpoint.state_key.fget(self)  # type: ignore[attr-defined]


class ScoreWriter(Callback):
    """Writes the scores of the test split to a memory-mapped array in stored order, for paired comparisons.

    Args:
        path: path of the ``.npy`` file of (rows, targets) float32 log-odds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array: np.memmap[Any, Any] | None = None
        self._next = 0

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the scores of a batch."""
        scores = outputs.float().cpu().numpy()
        if self._array is None:
            rows = trainer.datamodule.test_dataloader().rows  # type: ignore[attr-defined]
            shape = (rows, scores.shape[1])
            self._array = np.lib.format.open_memmap(self._temporary(), "w+", np.float32, shape)
            self._next = 0
        self._array[self._next : self._next + len(scores)] = scores
        self._next += len(scores)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Rename the file if it is complete; otherwise delete it."""
        if self._array is not None:
            complete = self._next == len(self._array)
            self._array.flush()
            self._array = None
            if complete:
                self._temporary().replace(self.path)
            else:
                self._temporary().unlink()
                print(
                    f"warning: only {self._next:,} rows were tested (trainer.limit_test_batches), so "
                    f"{self.path.name} is not written",
                    file=sys.stderr,
                )

    def _temporary(self) -> Path:
        return self.path.with_name(f".{self.path.name}.writing")


def _scores(module: L.LightningModule) -> dict[str, str]:
    """The latest validation AUCs and XAUCs. In these hooks, Lightning's ``callback_metrics`` lag one pass behind."""
    assert isinstance(module, RankingModule)
    values = module.figures["val"].values if "val" in module.figures else {}
    shown = {k: f"{v:.4f}" for k, v in values.items() if k.startswith(("auc/", "xauc/")) and k != "xauc/mean"}
    return {k.removeprefix("auc/").replace("xauc/", "XAUC "): v for k, v in shown.items()}


def _validation_line(trainer: L.Trainer, module: L.LightningModule) -> str:
    scores = " ".join(f"{k} {v}" for k, v in _scores(module).items())
    kind = "" if scores.startswith("XAUC") else "AUC "
    return f"step {trainer.global_step}: validation {kind}{scores}"


class TerminalProgress(RichProgressBar):
    """Lightning's rich progress bar with rows per second and mean validation AUC, plus one line per validation."""

    def __init__(self, meter: Meter) -> None:
        super().__init__(leave=True)
        self.meter = meter

    def _get_train_description(self, current_epoch: int) -> str:
        """Epoch counted from 1, where Lightning counts from 0, padded to the width of the other bars' names."""
        max_epochs = self.trainer.max_epochs
        text = f"Epoch {current_epoch + 1}" + (f"/{max_epochs}" if max_epochs is not None and max_epochs > 0 else "")
        return text.ljust(len(self.validation_description))

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Values shown to the right of the bar."""
        metrics: dict[str, Any] = {"samples/s": format_count(self.meter.rate)}
        scores = _scores(pl_module)  # there is no room for all of them
        return metrics | ({"AUC": scores["mean"]} if "mean" in scores else {})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print a line with the AUCs above the bar."""
        super().on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking and self.progress is not None:
            self.progress.console.print(_validation_line(trainer, pl_module), markup=False, highlight=False)


class PlainProgress(Callback):
    """Progress as plain lines for logs: one every ten seconds and one per validation."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._printed = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the timer."""
        self._printed = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line every ten seconds."""
        if time.monotonic() - self._printed < _PLAIN_SECONDS:
            return
        total = trainer.num_training_batches
        seconds_left = (total - batch_idx - 1) * self.meter.seconds * len(batch) / max(self.meter.rows, 1)
        position = f"epoch {trainer.current_epoch + 1}, batch {batch_idx + 1} of {total}"
        self._print(
            trainer, f"{position}: {format_count(self.meter.rate)} samples/s, {seconds_left:.0f} s left in the epoch"
        )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print a line with the AUCs."""
        if not trainer.sanity_checking:
            self._print(trainer, _validation_line(trainer, pl_module))

    def _print(self, trainer: L.Trainer, line: str) -> None:
        self._printed = time.monotonic()
        if trainer.is_global_zero:
            print(line, file=sys.stderr, flush=True)
