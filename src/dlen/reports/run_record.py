"""Reads one run folder for a report: metrics, curves, diagnostics and config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from dlen.checks import is_number
from dlen.errors import UserError
from dlen.files import check_regular, read_figures, read_mapping, read_yaml
from dlen.overrides import leaves

_CURVES = ("val/auc/", "val/xauc/", "val/logloss/labels", "train/loss", "train/conflict/share", "train/conflict/rows")
_LOG_BYTES = 1 << 28  # of a log; a thousand validations take a million


@dataclass(slots=True)
class RunRecord:
    """One run folder.

    Attributes:
        key: key on the page.
        folder: run folder.
        metrics: content of ``metrics.json``; empty before the run has ended.
        settings: all config values, by dotted key.
        data: name of the data set, followed by its fingerprint if several data sets have this name.
        fingerprint: fingerprint of the data.
        tasks: task names.
        targets: binary tasks and joint events.
        values: regression tasks.
        curves: steps and values of the drawn curves, by key.
        logged: all logged keys.
        diagnostics: diagnostics of the test split; empty if the run has none.
        seed: seed of weights and training order.
        written: when its config was written, in seconds since the epoch.
        label: short description of the settings, the same for all seeds.
    """

    key: str
    folder: Path
    metrics: dict[str, Any]
    settings: dict[str, Any]
    data: str
    fingerprint: str
    tasks: list[str]
    targets: list[str]
    values: list[str]
    curves: dict[str, tuple[list[int], list[float]]]
    logged: list[str]
    diagnostics: dict[str, Any]
    seed: int
    written: float
    label: str = ""

    @property
    def model(self) -> str:
        """Name of the model's config."""
        return str(self.settings.get("model_name", "model"))

    @property
    def selection(self) -> float:
        """Best validation AUC, used to choose among seeds; minus infinity if there is none.

        Without a binary task, it is the XAUC.
        """
        key = "val/auc/mean" if self.targets else "val/xauc/mean"
        value, curve = self.figure(key), self.curves.get(key, ([], []))[1]
        return value if value is not None else max(curve, default=float("-inf"))

    def figure(self, key: str) -> float | None:
        """A number of ``metrics.json``; None if it is undefined or missing."""
        value = self.metrics.get(key)
        return float(value) if is_number(value) else None


def read_run(folder: Path, key: str = "") -> RunRecord:
    """Read one run folder, without a label.

    Raises:
        UserError, OSError, ValueError, KeyError, TypeError, AttributeError, PolarsError: a file is missing or broken.
    """
    config = read_yaml(folder / "config.yaml")
    schema = read_mapping(folder / "schema.json")
    tasks = [str(task["name"]) for task in schema["tasks"]]
    values = [str(task["name"]) for task in schema["tasks"] if task.get("kind") == "regression"]
    targets = [
        *(task for task in tasks if task not in values),
        *(str(task["joint"]) for task in schema["tasks"] if task.get("joint")),
    ]
    curves, logged = _read_logs(folder / "logs" / "metrics.csv")
    return RunRecord(
        key,
        folder,
        metrics=_read_if_present(folder / "metrics.json", read_figures),
        settings=dict(leaves(config)),
        data=str(config["data_name"]),
        fingerprint=str(schema["fingerprint"]),
        tasks=tasks,
        targets=targets,
        values=values,
        curves=curves,
        logged=logged,
        diagnostics=_read_if_present(folder / "diagnostics_test.json", read_mapping),
        seed=int(config["seed"]),
        written=(folder / "config.yaml").stat().st_mtime,
    )


def _read_if_present(path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Read a mapping; empty if there is no file."""
    return read(path) if path.exists() else {}


def _read_logs(path: Path) -> tuple[dict[str, tuple[list[int], list[float]]], list[str]]:
    """Steps and values of the logged keys that are drawn, and all logged keys."""
    if not path.exists():
        return {}, []
    size = check_regular(path)
    if size > _LOG_BYTES:
        raise UserError(f"{path}: has {size:,} bytes; a log of a run has at most {_LOG_BYTES:,}")
    frame = pl.read_csv(path, infer_schema=False, glob=False)
    if "step" not in frame.columns:
        return {}, []
    curves = {}
    for column in frame.columns:
        if column.startswith(_CURVES):
            pair = frame.select(
                pl.col("step").cast(pl.Int64, strict=False), value=pl.col(column).cast(pl.Float64, strict=False)
            ).drop_nulls()
            pair = pair.filter(pl.col("value").is_finite()).sort("step", maintain_order=True)
            if len(pair):
                curves[column] = (pair["step"].to_list(), pair["value"].to_list())
    return curves, [column for column in frame.columns if column not in ("step", "epoch")]
