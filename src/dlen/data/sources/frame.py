"""A Polars frame as a data source, written next to the prepared data so that the commands can read it too."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import yaml

from dlen.data.sources.table import Table
from dlen.errors import UserError


def frame_source(frame: pl.DataFrame, spec: Mapping[str, Any], folder: Path, name: str) -> Table:
    """Write a frame and its spec, and return a table for :func:`~dlen.data.prepare.prepare`.

    ``FOLDER/NAME.parquet`` and ``FOLDER/NAME.yaml`` are written, or left unchanged if their content is the same, so
    that ``python train.py data=table data.spec=FOLDER/NAME.yaml`` trains on the same data.

    Args:
        frame: one row per impression.
        spec: description of the columns, as in the YAML of a table, without ``files``.
        folder: folder of the two files, created if missing.
        name: name of the data set.

    Raises:
        UserError: the spec is invalid, or the folder cannot be written.
    """
    if "files" in spec:
        raise UserError("spec: files: remove it, the frame itself is the data")
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"name: {name!r} cannot name a data set; use no slash and no leading dot")
    try:
        # Convert mappings, tuples and numpy numbers to plain values.
        content = json.loads(json.dumps(spec, default=_plain))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"spec of {name}: has a value that YAML cannot represent ({error})") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _replacing_if_other(folder / f"{name}.parquet") as path:
            frame.write_parquet(path)
        with _replacing_if_other(folder / f"{name}.yaml") as path:
            path.write_text(yaml.safe_dump({"files": f"{name}.parquet", **content}, sort_keys=False))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise UserError(f"frame {name}: cannot be written as Parquet ({str(error).splitlines()[0]})") from None
    source = Table(str(folder / f"{name}.yaml"), name)
    _ = source.table  # report errors in the spec here
    return source


def _plain(value: Any) -> Any:
    """A date as its text, and a numpy number as one of Python."""
    return value.isoformat() if isinstance(value, date) else value.item()


@contextmanager
def _replacing_if_other(path: Path) -> Iterator[Path]:
    """A temporary file that replaces ``path``, unless that has the same bytes: its modification time then stays."""
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".writing") as folder:
        new = Path(folder) / path.name
        yield new
        if not (path.exists() and filecmp.cmp(path, new, shallow=False)):
            new.replace(path)
