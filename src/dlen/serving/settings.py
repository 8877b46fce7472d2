"""Settings of ``predict.py`` and ``export.py``, whose keys conf/predict.yaml and conf/export.yaml describe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from omegaconf import DictConfig

from dlen.errors import UserError
from dlen.files import check_writable
from dlen.settings import Count, OpenSettings
from dlen.training.run_folder import check_run
from dlen.valid import Matching


@dataclass
class PredictSettings(OpenSettings):
    """Keys of ``conf/predict.yaml``."""

    input: Path
    output: Annotated[str, Matching(r".*\.(parquet|csv|tsv)", "a file that ends in .parquet, .csv or .tsv")]
    keep: Annotated[list[str], Matching(".+", "a list of columns, such as [user_id,item_id]")]
    batch_size: Count


@dataclass
class ExportSettings(OpenSettings):
    """Keys of ``conf/export.yaml``."""

    output: Path | None
    check_rows: Count


def check_prediction(config: DictConfig) -> None:
    """Check the settings of ``predict.py``.

    Raises:
        UserError: a setting is invalid, there is no input, or the folder is not a run.
    """
    path, out = Path(config.input), Path(config.output)
    if not path.is_file():
        raise UserError(f"config input: {path}: no such file")
    if out.exists() and out.samefile(path):
        raise UserError(f"config output: {out} is the input file; choose another")
    check_writable(out.parent)
    check_run(Path(config.run))
