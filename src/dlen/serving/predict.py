"""predict: score new rows with a finished run and write the probabilities to a Parquet file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import torch
from omegaconf import DictConfig
from torch import Tensor

from dlen.data.prepare import check_writable
from dlen.data.split import Split
from dlen.errors import UserError
from dlen.files import replacing_file
from dlen.models.model import Model
from dlen.ranking.fusion import Score
from dlen.ranking.scoring import load_model, make_scores, read_fusion
from dlen.schema import Kind, Schema
from dlen.training.building import quiet
from dlen.training.configs import check_whole
from dlen.training.run_folder import open_row_source
from dlen.training.targets import Targets


def predict(config: DictConfig) -> None:
    """Score the rows of a file: one output row per input row, in order.

    Raises:
        UserError: the run, the input or a setting is wrong. No output is left behind.
    """
    quiet()
    folder, path, out = Path(config.run), Path(config.input), Path(config.output)
    check_whole(config, {"batch_size": 1})
    if out.suffix != ".parquet":
        raise UserError(f"config output: {str(out)!r} does not end in .parquet")
    if not path.is_file():
        raise UserError(f"config input: {path}: no such file")
    if out.exists() and out.samefile(path):
        raise UserError(f"config output: {out} is the input file; choose another")
    check_writable(out.parent)
    run_config, store, source = open_row_source(folder, config.trust)
    fusion = read_fusion(config.fusion)
    model = load_model(folder, run_config, store, config.checkpoint)
    (score,) = make_scores([fusion], model, store)
    unseen: dict[str, int] = {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as parts, torch.inference_mode():
        rows = _write_parts(source.read(path, store), model, score, config.batch_size, Path(parts), unseen, path)
        if not rows:
            raise UserError(f"{path}: no rows")
        with replacing_file(out) as temporary:
            # Polars cannot append to a Parquet file. Writing parts keeps memory at one chunk.
            pl.scan_parquet(Path(parts) / "*.parquet").sink_parquet(temporary)
    for field, count in unseen.items():
        line = f"{field}: {count:,} of {rows:,} rows have a value that is missing or new since training"
        if count == rows:
            line = f"warning: {line}; compare how {field} is written here and in the training log"
        print(line, file=sys.stderr)
    print(f"{rows:,} rows: {out}")


def _write_parts(
    chunks: Iterator[Split],
    model: Model,
    score: Score,
    batch_size: int,
    folder: Path,
    unseen: dict[str, int],
    source: Path,
) -> int:
    """Write a Parquet file for each chunk of the input ``source``, in order, and return the number of rows."""
    targets = Targets(model.schema)
    rows = 0
    for number, chunk in enumerate(chunks):
        frames = []
        for index in torch.arange(len(chunk)).split(batch_size):
            batch = chunk.batch(index)
            _count_unseen(batch.ids, model.schema, unseen)
            predictions = model(batch)
            log_up = predictions.log_up
            p = targets.log_probabilities(predictions.log_p).exp().numpy()
            columns = {f"p_{name}": p[:, i] for i, name in enumerate(targets.names) if targets.is_probability()[i]}
            columns |= {} if log_up is None else {"up": log_up.exp().numpy()}
            fused = score(predictions.log_p, log_up)
            broken = ~(fused.isfinite() & predictions.log_p.isfinite().all(1))
            if broken.any():
                first = rows + int(index[broken][0]) + 1
                raise UserError(
                    f"{source}, scored row {first}: the score is not finite; a number in the row is far outside the "
                    "range seen in training, or training has diverged"
                )
            frames.append(pl.DataFrame({**columns, "score": fused.numpy()}))
        if frames:
            pl.concat(frames).write_parquet(folder / f"{number:08d}.parquet")
        rows += len(chunk)
    return rows


def _count_unseen(ids: Tensor, schema: Schema, unseen: dict[str, int]) -> None:
    """Count the rows whose single-valued id is unknown, by field."""
    for column, field in enumerate(schema.of_kind(Kind.ID)):
        count = int((ids[:, column] == schema.offsets[field.name]).sum())
        if count:
            unseen[field.name] = unseen.get(field.name, 0) + count
