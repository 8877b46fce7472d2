"""predict: score new rows with a finished run and write the probabilities to a file."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
from omegaconf import DictConfig

from dlen.errors import UserError
from dlen.files import replacing_file
from dlen.ranking.scoring import load_model, read_fusion
from dlen.serving.scoring_rows import RowScorer
from dlen.serving.settings import check_prediction
from dlen.training.building import quiet
from dlen.training.stores import open_row_source


def predict(config: DictConfig) -> None:
    """Score the rows of a file: one output row per input row, in order.

    Raises:
        UserError: the run, the input or a setting is wrong. No output is left behind.
    """
    quiet()
    check_prediction(config)
    path, out = Path(config.input), Path(config.output)
    folder = Path(config.run)
    run_config, store, source = open_row_source(folder, config.trust)
    model = load_model(folder, run_config, store, config.checkpoint)
    scorer = RowScorer(model, store, source, read_fusion(config.fusion))
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as parts:
        for number, frame in enumerate(scorer.frames(path, list(map(str, config.keep)), config.batch_size)):
            frame.write_parquet(Path(parts) / f"{number:08d}.parquet")
        if not scorer.rows:
            raise UserError(f"{path}: no rows")
        with replacing_file(out) as temporary:
            # Polars cannot append to a Parquet file. Writing parts keeps memory at one chunk.
            _join(pl.scan_parquet(sorted(Path(parts).iterdir()), glob=False), temporary, out)
    for line in scorer.notes():
        print(line, file=sys.stderr)
    print(f"{scorer.rows:,} rows: {out}")


def _join(rows: pl.LazyFrame, target: Path, out: Path) -> None:
    """Write rows to a file in the format that the name of the output asks for."""
    if out.suffix == ".parquet":
        rows.sink_parquet(target)
        return
    try:
        rows.sink_csv(target, separator="\t" if out.suffix == ".tsv" else ",")
    except pl.exceptions.PolarsError as error:
        raise UserError(f"config output: {out}: {str(error).splitlines()[0]}; write .parquet, or keep less") from None
