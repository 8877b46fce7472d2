"""Loggers of a run: CSV that a resumed run continues, Weights & Biases, TensorBoard, MLflow."""

from __future__ import annotations

import csv
import getpass
import inspect
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from dlen.errors import UserError
from dlen.files import write_csv
from dlen.overrides import leaves
from dlen.training.configs import build_part, digest, plain_values

_SAME_RUN = ("model", "balancing", "optimizer", "data", "seed")  # settings that a resumed run keeps


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSV logger deletes the log of an interrupted run; this one continues it."""

    @property
    def experiment(self) -> _ExperimentWriter:
        """The file writer."""
        if not getattr(rank_zero_only, "rank", 0) and self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _ContinuedWriter(self.log_dir)
        return super().experiment


class _ContinuedWriter(ExperimentWriter):
    """Keeps the rows of an earlier file up to the step at which the run resumes. Until then the file is unchanged."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._continues = Path(self.metrics_file_path).exists()

    def _check_log_dir_exists(self) -> None:
        """Do nothing, where Lightning deletes the earlier file."""

    def save(self) -> None:
        """Write the new rows."""
        if self.metrics and self._continues:
            self._continues = False
            self._cut()
        super().save()

    def _cut(self) -> None:
        """Drop what the run logs again: rows after the first new step, and rows with the same keys at that step."""
        path = Path(self.metrics_file_path)
        try:
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                header = list(reader.fieldnames or [])
                rows = [row for row in reader if None not in row and None not in row.values()]  # skip incomplete lines
            steps = [int(row["step"] or 0) for row in rows]
        except (ValueError, LookupError, csv.Error) as error:
            raise UserError(f"{path}: is not the log of a run ({error}); delete it, or train again") from None
        first_step = min(int(row["step"]) for row in self.metrics)
        new_keys = {key for row in self.metrics if int(row["step"]) == first_step for key in row} - {"step", "epoch"}
        kept = [
            row
            for row, step in zip(rows, steps, strict=True)
            if step < first_step or (step == first_step and not any(row.get(key) for key in new_keys))
        ]
        write_csv(path, header, [[row[key] for key in header] for row in kept])
        self.metrics_keys = header


def wandb_logger(save_dir: str, checkpoint: bool = False, **settings: Any) -> WandbLogger:
    """Weights & Biases: online if ``WANDB_API_KEY`` is set, otherwise offline, never prompting for a key.

    Args:
        save_dir: run folder, under which the files are written.
        checkpoint: save the best checkpoint as an artifact, see :class:`~dlen.training.dashboard.Dashboard`.
        settings: keyword arguments of Lightning's ``WandbLogger``.
    """
    import wandb

    mode = os.environ.get("WANDB_MODE")
    offline = mode in ("offline", "dryrun") or (
        not os.environ.get("WANDB_API_KEY") and mode not in ("online", "disabled")
    )
    logger = WandbLogger(save_dir=save_dir, offline=offline, settings=wandb.Settings(quiet=True), **settings)
    logger._wandb_init.pop("anonymous", None)  # Lightning always passes it, and W&B warns about it
    return logger


def mlflow_logger(save_dir: str, tracking_uri: str, **settings: Any) -> MLFlowLogger:
    """MLflow. Creates the folder of a local database if it is missing.

    Args:
        save_dir: run folder; not used by MLflow.
        tracking_uri: address of a server, or ``sqlite:///FILE``.
        settings: keyword arguments of Lightning's ``MLFlowLogger``.
    """
    warnings.filterwarnings("ignore", message="MLFlow only allows")  # it renames ndcg@10 to ndcg10
    if tracking_uri.startswith("sqlite:///"):
        Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MLFlowLogger(tracking_uri=tracking_uri, **settings)


def make_loggers(config: DictConfig, folder: Path, fingerprint: str) -> list[Logger]:
    """Build the loggers of a run, without writing anything."""
    loggers = []
    for name, node in (config.get("logger") or {}).items():
        if node is None:
            continue
        replaced: dict[str, Any] = {}
        if OmegaConf.is_dict(node):
            replaced |= {"save_dir": str(folder)} if _writes_to_folder(node) else {}
            replaced |= {"id": run_id(config, folder, fingerprint)} if name == "wandb" and "id" not in node else {}
        loggers.append(build_part(node, f"logger.{name}", Logger, replaced=replaced))  # type: ignore[type-abstract]
    return loggers


def _writes_to_folder(node: DictConfig) -> bool:
    """Whether a logger takes the run folder as ``save_dir``: those of ours and Lightning always, others by default.

    The config of a run may come from elsewhere, and may not choose where files are written.
    """
    target = str(node.get("_target_"))
    if "save_dir" in node and not target.startswith(("dlen.", "lightning.")):
        return False
    try:
        return "save_dir" in inspect.signature(get_object(target)).parameters
    except (ImportError, ValueError, TypeError):
        return False  # building it gives the error


def run_id(config: DictConfig, folder: Path, fingerprint: str) -> str:
    """A run's W&B id, 16 hexadecimal digits: the same for a resumed run, different for every other run.

    It is a hash of the user, the folder, the data, and the settings that a resumed run must keep.
    """
    settings = plain_values(config)
    return digest([_user(), str(folder.resolve()), fingerprint, {key: settings[key] for key in _SAME_RUN}])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, the user id may have no name
        return str(os.getuid())


@rank_zero_only
def log_config(loggers: Sequence[Logger], config: DictConfig, about: Mapping[str, Any]) -> None:
    """Log all settings and what is known before training, except to CSV.

    W&B gets nested settings, as its panels expect; the other loggers get dotted keys.

    Args:
        about: fingerprints and sizes.
    """
    nested = plain_values(config) | dict(about)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.config.update(nested, allow_val_change=True)
        elif not isinstance(logger, CSVLogger):
            logger.log_hyperparams(dict(leaves(nested)))


@rank_zero_only
def log_final(loggers: Sequence[Logger], metrics: Mapping[str, Any], step: int) -> None:
    """Log the numbers of ``metrics.json`` that Lightning has not logged, except to CSV and W&B."""
    unlogged = {k: v for k, v in metrics.items() if not k.startswith(("test/", "val/", "train/"))}
    numbers = {k: float(v) for k, v in unlogged.items() if isinstance(v, int | float)}
    for logger in loggers:
        if not isinstance(logger, CSVLogger | WandbLogger):
            logger.log_metrics(numbers, step)


@contextmanager
def wandb_finished() -> Iterator[None]:
    """End a W&B run that starts inside this context, even on failure. An existing run is left to its owner."""
    outer_run = wandb_run()
    try:
        yield
    except BaseException:
        if wandb_run() is not outer_run:
            finish_wandb(1)  # also after Ctrl-C: W&B shows the run as failed until it is resumed
        raise
    if wandb_run() is not outer_run:
        finish_wandb(0)


def wandb_run() -> Any:
    """The process's W&B run, without importing wandb."""
    wandb = sys.modules.get("wandb")
    return None if wandb is None else wandb.run


def finish_wandb(exit_code: int) -> None:
    """End the process's W&B run, if any, and print how to upload it if it is offline.

    Args:
        exit_code: 0 for a finished run; W&B shows any other code as failed.
    """
    if wandb_run() is None:
        return
    wandb = sys.modules["wandb"]
    offline, folder = wandb.run.offline, Path(wandb.run.dir).parent
    wandb.finish(exit_code=exit_code)
    if offline:
        print(sync_command(folder.parent))


def sync_command(folder: Path | str) -> str:
    """The command that uploads offline runs to W&B's server.

    Args:
        folder: folder of the runs; may contain ``*`` wildcards.
    """
    return f"W&B, offline: wandb sync {folder}/offline-run-*"
