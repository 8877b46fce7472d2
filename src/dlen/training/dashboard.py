"""Dashboard: what a W&B run shows in addition to the scalars that Lightning logs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, WandbLogger

from dlen.metrics.hidden import NEGATIVES
from dlen.training.module import RankingModule

Draw = Callable[[Path], Mapping[str, Any]]  # maps a finished run's folder to Plotly figures by title
_MEASURES = (
    *("auc", "gain", "auc_total", "auc_joint", "oracle", "gauc"),
    *("ndcg@10", "logloss", "ne", "calibration", "ece"),
)


class Dashboard(Callback):
    """Logs histograms of P(UP) at each validation and, at the end, metrics, tables, plots and the best checkpoint.

    Args:
        loggers: loggers of the run; without a W&B logger, nothing is logged.
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.logger = next((logger for logger in loggers if isinstance(logger, WandbLogger)), None)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the distribution of P(UP)."""
        assert isinstance(pl_module, RankingModule)
        figures = pl_module.figures.get("val")
        if self.logger is None or trainer.sanity_checking or figures is None or figures.hidden is None:
            return
        if trainer.is_global_zero:
            import wandb

            counts = figures.hidden.counts.sum(0).cpu().numpy()
            histogram = wandb.Histogram(np_histogram=(counts, np.linspace(0, 1, len(counts) + 1)))
            self.logger.log_metrics({"val/hidden/up": histogram}, trainer.global_step)  # type: ignore[dict-item]

    def summarise(self, metrics: Mapping[str, Any]) -> None:
        """Write all of ``metrics.json`` to the run's summary, which W&B's tables use to compare runs."""
        if self.logger is not None:
            self.logger.experiment.summary.update(dict(metrics))

    def close(
        self,
        metrics: Mapping[str, Any],
        targets: Sequence[str],
        folder: Path,
        draw: Draw | None,
        *,
        checkpoint: bool,
    ) -> None:
        """Log the results of a finished run.

        Args:
            metrics: content of ``metrics.json``, used as the run's summary.
            folder: run folder, with all files written.
            draw: function that draws the plots; None for no plots.
            checkpoint: save ``best.ckpt`` as an artifact, with the config and the schema that it needs.
        """
        if self.logger is None:
            return
        import wandb

        run = self.logger.experiment
        self.summarise(metrics)
        content: dict[str, Any] = {"test/figures": _table(metrics, targets)}
        kinds = _negatives(metrics, targets)
        content |= {"test/negatives": kinds} if kinds else {}
        try:
            plots = {} if draw is None else draw(folder)
        except Exception as error:  # missing plots must not fail a finished run
            print(f"warning: no plots are logged to W&B ({type(error).__name__}: {error})", file=sys.stderr)
            plots = {}
        content |= {f"plots/{title}": wandb.Plotly(figure) for title, figure in plots.items()}
        run.log(content)
        if checkpoint:
            artifact = wandb.Artifact(
                f"model-{run.id}", type="model", metadata={"val/auc/mean": metrics.get("val/auc/mean")}
            )
            for name in ("checkpoints/best.ckpt", "config.yaml", "schema.json", "metrics.json"):
                artifact.add_file(str(folder / name), name=Path(name).name)
            run.log_artifact(artifact, aliases=["best"])


def _table(metrics: Mapping[str, Any], targets: Sequence[str]) -> Any:
    """Table with one row per target; undefined metrics are empty."""
    import wandb

    rows = [*targets, "mean"]
    used = [m for m in _MEASURES if any(metrics.get(f"test/{m}/{t}") is not None for t in rows)]
    return wandb.Table(
        columns=["target", *used], data=[[t, *(metrics.get(f"test/{m}/{t}") for m in used)] for t in rows]
    )


def _negatives(metrics: Mapping[str, Any], targets: Sequence[str]) -> Any:
    """Table of the paper's three kinds of negatives per task; None for models without a hidden state."""
    import wandb

    rows = [
        [t, *(metrics[f"test/negatives/{k}/{t}"] for k in NEGATIVES)]
        for t in targets
        if f"test/negatives/other/{t}" in metrics
    ]
    return wandb.Table(columns=["task", *NEGATIVES], data=rows) if rows else None
