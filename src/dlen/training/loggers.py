"""Loggers of a run: CSV that a resumed run goes on with, Weights & Biases, TensorBoard, MLflow."""

from __future__ import annotations

import csv
import getpass
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from dlen.errors import UserError
from dlen.files import write_csv
from dlen.overrides import leaves
from dlen.training.configs import build

_SAME_RUN = ("model", "balancing", "optimizer", "data", "seed")  # what a run that goes on has in common with before


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSV logger, which deletes what a run had logged before it was interrupted; this one goes on."""

    @property
    def experiment(self) -> _ExperimentWriter:
        """The writer of the file."""
        if not getattr(rank_zero_only, "rank", 0) and self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _ContinuedWriter(self.log_dir)
        return super().experiment


class _ContinuedWriter(ExperimentWriter):
    """Keeps the rows of an earlier file up to the step at which the run goes on; until then the file stays as it is."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._goes_on = Path(self.metrics_file_path).exists()

    def _check_log_dir_exists(self) -> None:
        """Lightning deletes the earlier file here."""

    def save(self) -> None:
        """Write what is new."""
        if self.metrics and self._goes_on:
            self._goes_on = False
            self._cut()
        super().save()

    def _cut(self) -> None:
        """Leave out what the run logs again: rows after its first new one, and at that step those of the same keys."""
        path = Path(self.metrics_file_path)
        try:
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                header = list(reader.fieldnames or [])
                rows = [row for row in reader if None not in row and None not in row.values()]  # a torn line is none
            steps = [int(row["step"] or 0) for row in rows]
        except (ValueError, LookupError, csv.Error) as error:
            raise UserError(f"{path}: is no log of a run ({error}); delete it, or train again") from None
        first = min(int(row["step"]) for row in self.metrics)
        again = {key for row in self.metrics if int(row["step"]) == first for key in row} - {"step", "epoch"}
        kept = [
            row
            for row, step in zip(rows, steps, strict=True)
            if step < first or (step == first and not any(row.get(key) for key in again))
        ]
        write_csv(path, header, [[row[key] for key in header] for row in kept])
        self.metrics_keys = header


def wandb_logger(save_dir: str, checkpoint: bool = False, **settings: Any) -> WandbLogger:
    """Weights & Biases: online where ``WANDB_API_KEY`` is set, offline everywhere else, never asking for a key.

    Args:
        save_dir: the run folder; the files go below it.
        checkpoint: keep the best checkpoint as an artifact, see :class:`~dlen.training.dashboard.Dashboard`.
        settings: arguments of Lightning's ``WandbLogger``.
    """
    import wandb

    mode = os.environ.get("WANDB_MODE")
    offline = mode in ("offline", "dryrun") or (
        not os.environ.get("WANDB_API_KEY") and mode not in ("online", "disabled")
    )
    logger = WandbLogger(save_dir=save_dir, offline=offline, settings=wandb.Settings(quiet=True), **settings)
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it always, and W&B warns of it
    return logger


def mlflow_logger(save_dir: str, tracking_uri: str, **settings: Any) -> MLFlowLogger:
    """MLflow; the folder of a local database is made where it is missing.

    Args:
        save_dir: the run folder, which MLflow does not use.
        tracking_uri: a server, or ``sqlite:///FILE``.
        settings: arguments of Lightning's ``MLFlowLogger``.
    """
    warnings.filterwarnings("ignore", message="MLFlow only allows")  # that ndcg@10 is ndcg10 there
    if tracking_uri.startswith("sqlite:///"):
        Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MLFlowLogger(tracking_uri=tracking_uri, **settings)


def make_loggers(config: DictConfig, folder: Path, fingerprint: str) -> list[Logger]:
    """The loggers of a run; nothing is written yet.

    Args:
        config: of ``train.py``.
        folder: of the run.
        fingerprint: of the data.
    """
    made = []
    for name, node in (config.logger or {}).items():
        if node is None:
            continue
        settings = {**OmegaConf.to_container(node, resolve=True), "save_dir": str(folder)}  # type: ignore[dict-item]
        if name == "wandb":
            settings.setdefault("id", run_id(config, folder, fingerprint))
        made.append(build(OmegaConf.create(settings), f"logger.{name}"))
    return made


def run_id(config: DictConfig, folder: Path, fingerprint: str) -> str:
    """A run's name in W&B, 16 hexadecimal digits: the same when it goes on, another for every other run.

    It is made of the user, the folder, the data, and the settings that a run which goes on has to keep.
    """
    settings = {
        key: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        for key in _SAME_RUN
        for node in [config[key]]
    }
    causes = [_user(), str(folder.resolve()), fingerprint, settings]
    return hashlib.sha256(json.dumps(causes, sort_keys=True).encode()).hexdigest()[:16]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return str(os.getuid())


@rank_zero_only
def log_config(loggers: Sequence[Logger], config: DictConfig, about: Mapping[str, Any]) -> None:
    """Every setting, and what is known of the run before it trains; CSV has its own files.

    W&B takes the settings as they are nested, which its panels go by; the others take them by their dotted keys.

    Args:
        loggers: of the run.
        config: of ``train.py``.
        about: fingerprints and sizes.
    """
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    nested = {str(k): v for k, v in settings.items()} | dict(about)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.config.update(nested, allow_val_change=True)
        elif not isinstance(logger, CSVLogger):
            logger.log_hyperparams(dict(leaves(nested)))


@rank_zero_only
def log_final(loggers: Sequence[Logger], metrics: Mapping[str, Any], step: int) -> None:
    """The figures of ``metrics.json`` that Lightning has not logged, for loggers that take numbers alone."""
    new = {k: v for k, v in metrics.items() if not k.startswith(("test/", "val/", "train/"))}
    numbers = {k: float(v) for k, v in new.items() if isinstance(v, int | float)}
    for logger in loggers:
        if not isinstance(logger, CSVLogger | WandbLogger):
            logger.log_metrics(numbers, step)


@contextmanager
def wandb_finished() -> Iterator[None]:
    """End the W&B run that begins inside, also when what is inside fails; one that was there before is its owner's."""
    before = _wandb_run()
    try:
        yield
    except BaseException:
        if _wandb_run() is not before:
            finish_wandb(1)  # also after Ctrl-C: W&B shows the run as failed, and goes on with it when it goes on
        raise
    if _wandb_run() is not before:
        finish_wandb(0)


def _wandb_run() -> Any:
    """The process's W&B run; never imports what nobody asked for."""
    wandb = sys.modules.get("wandb")
    return None if wandb is None else wandb.run


def finish_wandb(exit_code: int) -> None:
    """End the process's W&B run, if it has one, and say how it gets to the server if it is not there yet.

    Args:
        exit_code: 0 where the run has come to its end; W&B shows others as failed.
    """
    if _wandb_run() is None:
        return
    wandb = sys.modules["wandb"]
    offline, folder = wandb.run.offline, Path(wandb.run.dir).parent
    wandb.finish(exit_code=exit_code)
    if offline:
        print(sync_command(folder.parent))


def sync_command(folder: Path | str) -> str:
    """How offline runs get to W&B's server.

    Args:
        folder: that holds them; stars stand for any name.
    """
    return f"W&B, offline: wandb sync {folder}/offline-run-*"
