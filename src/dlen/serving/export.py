"""export: write a finished run as an ONNX model and a torch.export program, both checked against the run."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from dlen.batch import Batch, Sequence
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.files import check_links, check_writable, write_json
from dlen.label_scale import LabelScale
from dlen.models.features import Features
from dlen.models.predictions import Predictions
from dlen.models.ranker import Ranker
from dlen.nn.sequences import Padded
from dlen.ranking.fusion import Score
from dlen.ranking.scoring import load_model, make_scores, read_fusion
from dlen.schema import Kind, Schema
from dlen.serving.codings import INPUTS, different_field, encoded, field_codings, raw_rows
from dlen.serving.sequence_codings import sequence_codings
from dlen.targets import Targets
from dlen.training.building import quiet
from dlen.training.stores import open_run

Inputs = tuple[Tensor, ...]
_TOLERANCE = 1e-5
_GRAPH_BYTES = 1 << 30  # a graph with its weights in one file is limited to 2 GiB
_EXAMPLE = 3  # rows of the example used for tracing


class Serving(nn.Module):
    """A model with dense inputs, as a server sends them: lists are padded.

    Args:
        model: model in evaluation mode.
    """

    def __init__(self, model: Ranker, score: Score) -> None:
        super().__init__()
        self.model, self.score, self.targets = model, score, Targets(model.schema)
        columns = [i for i, is_probability in enumerate(self.targets.is_probability()) if is_probability]
        self.names = [self.targets.names[i] for i in columns]
        self.values = [model.schema.tasks[index].name for index in model.schema.regressions]
        self.scale = LabelScale(model.schema) if self.values else None
        self.outputs = [
            "p",
            "score",
            *model.state_names,
            *(["values"] if self.values else []),
        ]
        self.register_buffer("columns", torch.tensor(columns))
        self.columns: Tensor

    def forward(
        self,
        ids: Tensor,
        numeric: Tensor,
        bag_ids: Tensor,
        bag_weights: Tensor,
        sequence_ids: Tensor,
        sequence_lengths: Tensor,
        vectors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Compute the probabilities and the score.

        Args:
            ids: (B, S) int64 rows of the embedding table.
            numeric: (B, K) float32.
            bag_ids: (B, M, L) int64 rows of the embedding table.
            bag_weights: (B, M, L) float32; 0 is padding.
            sequence_ids: (B, N, W) int64 rows of the embedding table, of the lists of all sequences, oldest first and
                padded at the end.
            sequence_lengths: (B, Q) int64 number of values of each sequence.
            vectors: (B, D) float32 scaled vectors of all vector fields, one after the other.

        Returns:
            The tensors named by ``outputs``, which are ``p`` (B, K) of the measured targets, ``score`` (B,), the
            probabilities (B,) of any hidden states, and ``values`` (B, R) of any regression tasks, in the unit of their
            labels.
        """
        values = self.model.embedding.padded(ids, numeric, bag_ids, bag_weights)
        predictions = self.model.predict(self._features(values, sequence_ids, sequence_lengths, vectors))
        log_p = self.targets.log_probabilities(predictions.log_p)
        log_states = predictions.log_states
        score = self.score(predictions.log_p, log_states)
        outputs: tuple[Tensor, ...] = (log_p[:, self.columns].exp(), score)
        outputs = outputs if log_states is None else (*outputs, *log_states.exp().unbind(1))
        return outputs if self.scale is None else (*outputs, self.unscaled(predictions))

    def unscaled(self, predictions: Predictions) -> Tensor:
        """(B, R) predictions of the regression tasks in the unit of the labels."""
        assert self.scale is not None
        assert predictions.values is not None
        values: Tensor = self.scale(predictions.values.expected)
        return values

    def _features(self, values: Tensor, sequence_ids: Tensor, lengths: Tensor, vectors: Tensor) -> Features:
        """Add the padded sequences and the vector fields to the (B, D + O) vectors of the table."""
        places, layouts, first, width = [], [], 0, sequence_ids.shape[2]
        for place, lists in enumerate(self.model.schema.sequences.values()):
            own = sequence_ids[:, first : first + len(lists)].transpose(1, 2).flatten(0, 1)
            places.append(self.model.embedding.of_lists(own, place))
            layouts.append(Padded(lengths[:, place], width))
            first += len(lists)
        sizes = [field.size for field in self.model.schema.of_kind(Kind.VECTOR)]
        return self.model.joined(values, places, layouts, vectors.split(sizes, 1) if sizes else ())


def dense(batch: Batch, schema: Schema) -> Inputs:
    """Convert a batch to the inputs of :class:`Serving`.

    Args:
        batch: B rows. L and W are the length of their longest list and sequence, and at least 1.
    """
    bags, rows = len(schema.of_kind(Kind.IDS)), len(batch)
    length = max(int(batch.bag_lengths.max()) if batch.bag_lengths.numel() else 0, 1)
    bag_ids, weights = torch.zeros(bags, rows, length, dtype=torch.int64), torch.zeros(bags, rows, length)
    flat = batch.bag_lengths.flatten()
    bag = torch.repeat_interleave(torch.arange(len(flat)), flat)
    place = torch.arange(int(flat.sum())) - torch.repeat_interleave(flat.cumsum(0) - flat, flat)
    bag_ids.view(-1, length)[bag, place] = batch.bag_ids.long()
    weights.view(-1, length)[bag, place] = batch.bag_weights
    bag_parts = (bag_ids.transpose(0, 1).contiguous(), weights.transpose(0, 1).contiguous())
    vectors = torch.cat(batch.vectors, 1) if batch.vectors else torch.zeros(rows, 0)
    return batch.ids.long(), batch.numeric, *bag_parts, *_dense_sequences(batch), vectors


def _dense_sequences(batch: Batch) -> tuple[Tensor, Tensor]:
    """(B, N, W) ids, padded with 0, and (B, Q) lengths of the sequences."""
    rows = len(batch)
    if not batch.sequences:
        return torch.zeros(rows, 0, 1, dtype=torch.int64), torch.zeros(rows, 0, dtype=torch.int64)
    lengths = torch.stack([s.lengths for s in batch.sequences], 1)
    width = max(int(lengths.max()) if rows else 0, 1)
    parts = []
    for sequence in batch.sequences:
        filled = torch.zeros(rows, width, sequence.ids.shape[1], dtype=torch.int64)
        filled[torch.arange(width) < sequence.lengths[:, None]] = sequence.ids.long()
        parts.append(filled.transpose(1, 2))
    return torch.cat(parts, 1).contiguous(), lengths


def export(config: DictConfig) -> None:
    """Write ``model.onnx``, ``model.pt2`` and ``schema.json`` after checking that they reproduce the run's scores.

    Raises:
        UserError: the run or a setting is wrong, or an exported model differs from the run.
    """
    quiet()
    folder = Path(config.run)
    run_config, store = open_run(folder, config.trust)
    fusion = read_fusion(config.fusion)
    model = load_model(folder, run_config, store, config.checkpoint)
    if not isinstance(model, Ranker):
        raise UserError(
            f"{folder}: only networks can be exported, and {run_config.model_name} is not one; use predict.py"
        )
    (score,) = make_scores([fusion], model, store)
    if config.output is None:
        check_links(folder)
    out = folder / "export" if config.output is None else Path(config.output)
    check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    serving = Serving(model, score).eval()
    batches = _check_batches(store, config.check_rows)
    with TemporaryDirectory(dir=out, prefix=".writing-") as temporary:
        staging = Path(temporary)
        write_json(staging / "schema.json", serving_schema(store, serving))
        write_export(serving, dense(batches[0], store.schema), staging / "model.onnx", staging / "model.pt2")
        worst = _check_all(folder, serving, store, batches, staging)
        (out / "schema.json").unlink(missing_ok=True)  # an interruption must not leave it beside another model
        for path in sorted(staging.iterdir(), key=lambda path: path.name == "schema.json"):  # it comes last
            path.replace(out / path.name)  # a large table has its own file next to the graph
    rows = sum(map(len, batches))
    print(f"ONNX Runtime and torch.export match the run's scores on {rows:,} rows, to {worst:.1e},")
    print(f"and on {len(batches[0]):,} rows encoded from raw values with schema.json")
    print(f"Export: {out}/model.onnx, model.pt2, schema.json")


def _check_all(run: Path, serving: Serving, store: Store, batches: list[Batch], exported: Path) -> float:
    """The largest difference between the export and the run, on some batches and on raw values of the first.

    Raises:
        UserError: the difference is too large, or raw values give other inputs than the data.
    """
    schema = json.loads((exported / "schema.json").read_text())
    fields = schema["fields"]
    rows, wanted = raw_rows(store, batches[0])
    inputs = encoded(schema, rows)
    cases = [*((dense(batch, store.schema), batch) for batch in batches), (inputs, wanted)]
    *of_batches, of_raw_rows = check_export(serving, cases, exported / "model.onnx", exported / "model.pt2")
    name = different_field(fields, inputs, dense(wanted, store.schema))
    worst = float(np.max(of_batches if name else [*of_batches, of_raw_rows]))
    if not worst <= _TOLERANCE:
        raise UserError(f"{run}: the exported model differs from the run by {worst:.2g}; nothing was written")
    if name:
        raise UserError(
            f"{run}: field {name}: raw values encoded with schema.json differ from the data's inputs; nothing was "
            "written"
        )
    return worst


def _check_batches(store: Store, rows: int) -> list[Batch]:
    """Rows of the test split, the same rows with unknown ids, empty lists and no vectors, and a single row."""
    split, schema = store.split("test"), store.schema
    batch = split.batch(torch.arange(min(rows, len(split))))
    offsets = torch.tensor([schema.offsets[f.name] for f in schema.of_kind(Kind.ID)], dtype=batch.ids.dtype)
    unknown = replace(
        batch,
        ids=offsets.expand_as(batch.ids),
        bag_lengths=torch.zeros_like(batch.bag_lengths),
        bag_ids=batch.bag_ids[:0],
        bag_weights=batch.bag_weights[:0],
        sequences=tuple(Sequence(torch.zeros_like(s.lengths), s.ids[:0]) for s in batch.sequences),
        vectors=tuple(map(torch.zeros_like, batch.vectors)),
    )
    return [batch, unknown, split.batch(torch.arange(1))]


def write_export(serving: Serving, example: tuple[Tensor, ...], onnx: Path, program: Path) -> None:
    """Trace the model once, with dynamic numbers of rows and list lengths."""
    rows, length, width = (torch.export.Dim(name) for name in ("rows", "length", "width"))
    inputs = tuple(torch.cat([part[:1]] * _EXAMPLE) for part in example)
    inputs = tuple(nn.functional.pad(p, (0, 2)) if p.dim() == 3 and p.shape[1] else p for p in inputs)
    of_input = {"bag_ids": length, "bag_weights": length, "sequence_ids": width}
    shapes = tuple(
        {0: rows, 2: of_input[name]} if name in of_input and p.shape[1] else {0: rows}
        for name, p in zip(INPUTS, inputs, strict=True)
    )
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.export.export(serving, inputs, dynamic_shapes=shapes)
        torch.export.save(traced, program)
        large = sum(p.nbytes for p in serving.parameters()) > _GRAPH_BYTES
        torch.onnx.export(
            for_onnx(traced),
            (),
            str(onnx),
            input_names=list(INPUTS),
            output_names=serving.outputs,
            dynamo=True,
            external_data=large,
            verbose=False,
        )


def for_onnx(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with logarithms of sigmoids in a form that ONNX computes accurately.

    The exporter writes log(sigmoid(x)), which is minus infinity from about x = -18 on in ONNX Runtime, and .0002 off at
    x = -8, the logit of a rare event.
    """
    return program.run_decompositions({torch.ops.aten.log_sigmoid.default: lambda x: -nn.functional.softplus(-x)})


def check_export(serving: Serving, cases: list[tuple[Inputs, Batch]], onnx: Path, program: Path) -> list[float]:
    """For each pair of inputs and batch, the largest difference between the exported models and the run."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    input_names = {item.name for item in session.get_inputs()}
    loaded = torch.export.load(program).module()
    differences = []
    with torch.inference_mode():
        for inputs, batch in cases:
            predictions = serving.model(batch)
            wanted = serving.targets.log_probabilities(predictions.log_p)[:, serving.columns].exp().numpy()
            wanted_score = serving.score(predictions.log_p, predictions.log_states).numpy()
            feed = {name: part.numpy() for name, part in zip(INPUTS, inputs, strict=True) if name in input_names}
            worst = 0.0
            for p, score, *rest in (session.run(serving.outputs, feed), [part.numpy() for part in loaded(*inputs)]):
                off = np.abs(score - wanted_score) / (1 + np.abs(wanted_score))  # a logarithm, of any magnitude
                worst = np.max([worst, np.abs(p - wanted).max(initial=0.0), off.max()])  # NaN propagates
                if serving.scale is not None:
                    wanted_values = serving.unscaled(predictions).numpy()
                    off = np.abs(rest[-1] - wanted_values) / (np.abs(wanted_values) + serving.scale.deviation.numpy())
                    worst = np.max([worst, off.max()])
            differences.append(float(worst))
    return differences


def serving_schema(store: Store, serving: Serving) -> dict[str, Any]:
    """What a server needs to turn raw values into inputs and to name the outputs, without this package.

    Each entry of ``fields``, in the order of its input, has the position and one of these:

    - ``values``: the raw values in the order of their ids. ``values[i]`` has the id ``offset + i + 1``, and anything
      else has ``offset``. An id has one spelling: text without surrounding blanks, a whole number without a decimal
      point, or ``true`` or ``false``. In a list the ``max_values`` heaviest values count, and the first ones among
      equal weights.
    - ``hash``: an id without a list. The id is ``offset + 1 + h % buckets``, where h is the digest of the text in UTF-8
      by ``function`` with ``digest_size`` bytes, read as an unsigned little-endian integer. Without a value it is
      ``offset``. Texts are spelled and lists cut as for ``values``.
    - ``range``: the first and last number of a part of a time, such as an hour from 0 to 23. ``offset + 1`` is the id
      of the first number, and ``offset`` means no time.
    - ``statistics`` with ``edges``: the id is ``offset + 1 + absent + bucket``, where the bucket is the number of edges
      that are not above the number. Without a number the id is ``offset + absent``.
    - ``share``: the same ids as those of another field.
    - ``statistics`` with ``mean`` and ``deviation``: standardise a number, after sign(x) log(1 + abs(x)) if
      ``transform`` is ``log1p``. Without a number the input is 0.
    - ``size`` and ``statistics``: a list of ``size`` numbers, which are ``position`` to ``position + size - 1`` of the
      input: subtract ``mean``, a list, and divide all by ``deviation``. Without a list they are 0.
    - ``rate``: a rate or count of the log. ``by`` names the columns of the key. Parts are joined by U+001F, and the
      values of a list by its entry of ``separators``. ``keys`` and ``latest`` give the value for a row after the whole
      log, to be scaled by the statistics. Any other key has 0.

    ``sequences`` says how each sequence becomes a length and lists of ids, oldest first:

    - ``max_values`` and ``order``: the row has the lists, in this order; the newest values count.
    - ``history``: ``by`` and ``separators`` give the key, as for a rate. ``events`` has the ids of each list for all
      ``keys``; those of a key end before its entry of ``ends``. A row has those whose ``when`` is below its own time.
      With ``gap``, the last list is 1 + floor(log2(1 + time since the event)), at most 32, added to its offset.
      ``seconds`` says how the time of a request in seconds since 1970 becomes one of the log: ``utc_offset`` hours are
      added, and it is rounded down to a multiple of ``step``; null if the log counts its time in a unit of its own.
    """
    schema, score = store.schema, serving.score
    return {
        "data_fingerprint": store.fingerprint,
        "inputs": INPUTS,
        "outputs": {
            "p": serving.names,
            "score": {key: getattr(score.fusion, key) for key in ("form", "up", "floor", "state")},
            **{name: f"P({name})" for name in serving.model.state_names},
            **({"values": serving.values} if serving.values else {}),
        },
        "weights": dict(zip(schema.task_names, score.weights.tolist(), strict=True)),
        "calibration": {
            task: {"slope": slope, "offset": offset}
            for task, slope, offset in zip(schema.task_names, score.slope.tolist(), score.offset.tolist(), strict=True)
        },
        "fields": field_codings(store),
        "sequences": sequence_codings(store),
    }
