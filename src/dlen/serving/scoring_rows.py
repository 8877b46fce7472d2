"""Scores new rows with a finished run, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from dlen.data.prepare import KeepingSource, RowSource
from dlen.data.split import Split
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.label_scale import LabelScale
from dlen.models.model import Model
from dlen.ranking.fusion import Fusion
from dlen.ranking.scoring import make_scores
from dlen.schema import Kind
from dlen.targets import Targets


class RowScorer:
    """Scores rows in the data format of a run.

    Args:
        model: model of the run.
        store: data of the run.
        source: reads new rows of the run's format.
        fusion: how the score combines the tasks' probabilities.

    Attributes:
        rows: number of rows scored so far.
        unseen: by field, number of those rows with a value that training did not know, or none.

    Raises:
        UserError: the fusion does not fit the model.
    """

    def __init__(self, model: Model, store: Store, source: RowSource, fusion: Fusion) -> None:
        self.model, self.store, self.source = model, store, source
        (self._score,) = make_scores([fusion], model, store)
        self._targets, self._scale = Targets(self.model.schema), LabelScale(self.model.schema)
        self._values = [f"value_{model.schema.tasks[index].name}" for index in model.schema.regressions]
        self.rows = 0
        self.unseen: dict[str, int] = {}

    def frames(self, path: Path, keep: Sequence[str], batch_size: int) -> Iterator[pl.DataFrame]:
        """Score a file: frames with one row per row of the file, in order.

        Columns: ``keep``, ``p_TARGET`` for each target that the model predicts a probability of, ``value_TASK`` for
        each regression task in the unit of its label, ``up`` for models with a hidden state, and ``score``.

        Args:
            path: file in the format of the run's data.
            keep: columns of the file to copy.
            batch_size: rows per batch.

        Raises:
            UserError: a column is missing, a cell cannot be read, or a score is not a number.
        """
        for chunk, kept in self._chunks(path, keep):
            for index in torch.arange(len(chunk)).split(batch_size):
                scores = self._frame(chunk, index, path)
                clash = [name for name in kept.columns if name in scores.columns]
                if clash:
                    raise UserError(
                        f"config keep: {clash[0]} is also the name of a column of scores; rename it in {path}"
                    )
                own = kept[int(index[0]) : int(index[-1]) + 1]
                yield own.hstack(scores) if keep else scores
            self.rows += len(chunk)

    def _chunks(self, path: Path, keep: Sequence[str]) -> Iterator[tuple[Split, pl.DataFrame]]:
        if not keep:
            return ((chunk, pl.DataFrame()) for chunk in self.source.read(path, self.store))
        if not isinstance(self.source, KeepingSource):
            raise UserError(f"config keep: rows of {self.store.content['name']} have no columns to keep; leave it out")
        return self.source.read_keeping(path, self.store, keep)

    @torch.inference_mode()
    def _frame(self, chunk: Split, index: Tensor, path: Path) -> pl.DataFrame:
        batch = chunk.batch(index)
        self._count_unseen(batch.ids)
        predictions = self.model(batch)
        log_states = predictions.log_states
        p = self._targets.log_probabilities(predictions.log_p).exp().numpy()
        predicted = zip(self._targets.names, self._targets.is_probability(), strict=True)
        columns = {f"p_{name}": p[:, i] for i, (name, known) in enumerate(predicted) if known}
        values = (
            self._scale(predictions.values.expected) if predictions.values is not None else predictions.log_p[:, :0]
        )
        columns |= dict(zip(self._values, values.numpy().T, strict=True))
        if log_states is not None:
            columns |= dict(zip(self.model.state_names, log_states.exp().numpy().T, strict=True))
        score = self._score(predictions.log_p, log_states)
        broken = ~(score.isfinite() & predictions.log_p.isfinite().all(1) & values.isfinite().all(1))
        if broken.any():
            first = self.rows + int(index[broken][0]) + 1
            raise UserError(
                f"{path}, scored row {first}: the score is not finite; a number in the row is far outside the "
                "range seen in training, or training has diverged"
            )
        return pl.DataFrame({**columns, "score": score.numpy()})

    def _count_unseen(self, ids: Tensor) -> None:
        """Count the rows whose single-valued id is unknown, by field."""
        schema = self.model.schema
        for column, field in enumerate(schema.of_kind(Kind.ID)):
            count = int((ids[:, column] == schema.offsets[field.name]).sum())
            if count:
                self.unseen[field.name] = self.unseen.get(field.name, 0) + count

    def notes(self) -> list[str]:
        """A line for each field with unknown values; a warning where all of them are."""
        lines = []
        for field, count in self.unseen.items():
            line = f"{field}: {count:,} of {self.rows:,} rows have a value that is missing or new since training"
            if count == self.rows:
                line = f"warning: {line}; compare how {field} is written here and in the training log"
            lines.append(line)
        return lines
