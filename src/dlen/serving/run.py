"""A finished run in Python: its model, metrics and data, and predictions for frames."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from omegaconf import DictConfig, OmegaConf

from dlen.data.store import Store
from dlen.errors import UserError
from dlen.files import read_figures
from dlen.models.model import Model
from dlen.ranking.fusion import Fusion
from dlen.ranking.scoring import load_model
from dlen.serving.scoring_rows import RowScorer
from dlen.training.building import quiet
from dlen.training.evaluate import evaluate
from dlen.training.run_folder import load_run_config
from dlen.training.stores import open_kept_store, row_source


class Run:
    """A finished run. Everything is opened when it is first used.

    Args:
        folder: run folder.
        trust: packages, besides dlen, whose classes the run's config may name; their code runs.

    Raises:
        UserError: the folder is not a run, or its config names other code.

    Example:
        >>> run = load_run("runs/feed/dlen/20260101-120000-seed0")  # doctest: +SKIP
        >>> run.predict(pl.read_csv("new.csv"), keep=["user_id"])  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, trust: Sequence[str] = ()) -> None:
        quiet()
        self.folder, self.trust = Path(folder), tuple(trust)
        self.config: DictConfig = load_run_config(self.folder, self.trust, to_train=False)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}: {self.config.model_name} on {self.config.data_name})"

    @cached_property
    def store(self) -> Store:
        """The prepared data that the run was trained on."""
        return open_kept_store(self.folder, self.config)

    @cached_property
    def model(self) -> Model:
        """The model with the weights of the best validation, on the CPU, in evaluation mode."""
        return load_model(self.folder, self.config, self.store)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``."""
        return read_figures(self.folder / "metrics.json")

    def predict(
        self,
        rows: Any,
        keep: Sequence[str] = (),
        *,
        fusion: Fusion | None = None,
        batch_size: int = 16384,
    ) -> Any:
        """Score rows with the columns of the run's data; labels may be missing.

        Args:
            rows: path of a file in the format of the run's data, a Polars frame, or a pandas frame.
            keep: columns to copy to the result.
            fusion: how the column ``score`` combines the tasks' probabilities; by default as in ``predict.py``.
            batch_size: rows per batch.

        Returns:
            A frame with one row per row, in order, and the columns ``keep``, ``p_TARGET`` for each target, ``up`` for
            models with a hidden state, and ``score``; a pandas frame with the same index if ``rows`` is one.

        Raises:
            UserError: a column is missing or a cell cannot be read.
        """
        source = row_source(self.folder, self.config)
        scorer = RowScorer(self.model, self.store, source, Fusion() if fusion is None else fusion)
        if isinstance(rows, str | Path):
            return self._scored(scorer, Path(rows), keep, batch_size)
        polars = isinstance(rows, pl.DataFrame)
        with TemporaryDirectory(prefix="dlen-") as folder:
            path = Path(folder) / "frame.parquet"
            (rows if polars else _from_pandas(rows)).write_parquet(path)
            scores = self._scored(scorer, path, keep, batch_size)
        return scores if polars else type(rows)(scores.to_dict(as_series=False), index=rows.index)

    def _scored(self, scorer: RowScorer, path: Path, keep: Sequence[str], batch_size: int) -> pl.DataFrame:
        frames = list(scorer.frames(path, keep, batch_size))
        if not frames:
            raise UserError(f"{path}: no rows")
        for line in scorer.notes():
            print(line, file=sys.stderr)
        return pl.concat(frames)

    def evaluate(self, split: str = "test", trainer: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Measure the best checkpoint on a split as ``evaluate.py`` does, with its table and files.

        Args:
            split: train, validation or test.
            trainer: settings that replace those of the run's trainer, such as ``{"accelerator": "cpu", "devices": 1}``.
        """
        settings = {"run": str(self.folder), "trust": list(self.trust), "split": split}
        return evaluate(OmegaConf.create({**settings, "checkpoint": "best", "trainer": dict(trainer or {})}))


def load_run(folder: str | Path, trust: Sequence[str] = ()) -> Run:
    """Open a finished run; see :class:`Run`."""
    return Run(folder, trust)


def _from_pandas(frame: Any) -> pl.DataFrame:
    """A Polars frame from a pandas frame, without pyarrow, which Polars' own conversion needs for texts."""
    if not hasattr(frame, "columns") or not hasattr(frame, "index"):
        raise UserError(f"predict: {type(frame).__name__} is neither a path nor a frame of Polars or pandas")
    columns = {}
    for name in frame.columns:
        cells = frame[name].astype(object).where(frame[name].notna(), None).tolist()
        # pandas reads the lists of a Parquet file as arrays
        cells = [cell.tolist() if isinstance(cell, np.ndarray) else cell for cell in cells]
        columns[str(name)] = pl.Series(str(name), cells, strict=False)
    return pl.DataFrame(columns)
