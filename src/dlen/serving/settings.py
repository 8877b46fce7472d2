"""Checks of the settings of ``predict.py`` and ``export.py``: they run before torch is imported."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, ListConfig

from dlen.errors import UserError
from dlen.files import check_writable
from dlen.training.configs import check_whole
from dlen.training.run_folder import check_run

_ENDINGS = (".parquet", ".csv", ".tsv")


def check_prediction(config: DictConfig) -> None:
    """Check the settings of ``predict.py``.

    Raises:
        UserError: a setting is invalid, there is no input, or the folder is not a run.
    """
    path, out = Path(config.input), Path(config.output)
    check_whole(config, {"batch_size": 1})
    if out.suffix not in _ENDINGS:
        raise UserError(f"config output: {str(out)!r} does not end in {', '.join(_ENDINGS)}")
    if not isinstance(config.keep, ListConfig):
        raise UserError(f"config keep: {config.keep!r} is not a list of columns, such as [user_id,item_id]")
    if not path.is_file():
        raise UserError(f"config input: {path}: no such file")
    if out.exists() and out.samefile(path):
        raise UserError(f"config output: {out} is the input file; choose another")
    check_writable(out.parent)
    check_run(Path(config.run))


def check_exporting(config: DictConfig) -> None:
    """Check the settings of ``export.py``.

    Raises:
        UserError: a setting is invalid, or the folder is not a run.
    """
    check_whole(config, {"check_rows": 1})
    check_run(Path(config.run))
