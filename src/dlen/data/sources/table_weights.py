"""Weights of a table: how much each row, and the label of each task in it, counts in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from dlen.data.bad_rows import BadRowError
from dlen.data.columns import Array
from dlen.data.sources.cells import LINE, numbers, refuse
from dlen.data.sources.table_spec import TableSpec, weight_columns

_LARGEST = 1e9  # so that sums over a batch stay finite in 32 bits


class Weights:
    """Reads the columns of ``weight`` and of ``tasks.NAME.weight``.

    Args:
        spec: spec of the table.

    Attributes:
        columns: the column that each key names; empty without weights.
    """

    def __init__(self, spec: TableSpec) -> None:
        self.columns = weight_columns(spec)
        self._keys = ["weight", *(f"tasks.{name}.weight" for name in spec.tasks)]

    def read(self, frame: pl.DataFrame, path: Path) -> Array | None:
        """(n, 1 + T) float32 weights of n rows, then of their labels; None if the table has none.

        Raises:
            BadRowError: a cell is empty, or not a number from 0 to 1e9.
        """
        if not self.columns:
            return None
        weights = np.ones((len(frame), len(self._keys)), np.float32)
        for place, key in enumerate(self._keys):
            if key in self.columns:
                weights[:, place] = _read(frame, self.columns[key], key, path)
        return weights

    def note(self) -> dict[str, str]:
        """A note for the user about the columns in use."""
        return (
            {"weights": ", ".join(f"{key}: {column}" for key, column in self.columns.items())} if self.columns else {}
        )


def _read(frame: pl.DataFrame, column: str, key: str, path: Path) -> Array:
    cells = numbers(frame, column, path)
    if cells.null_count():
        lines = frame.filter(cells.is_null())[LINE].to_list()
        raise BadRowError(
            path,
            lines,
            f"column {column}: is empty, but {key} needs a number in every row; 1 counts once, 0 not at all",
        )
    refuse(
        frame, ~cells.is_between(0, _LARGEST), column, path, f"not a weight, which is a number from 0 to {_LARGEST:g}"
    )
    return cells.to_numpy()
