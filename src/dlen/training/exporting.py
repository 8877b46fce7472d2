"""export: a finished run as an ONNX model and a torch.export program, checked row by row against the run itself."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from dlen.batch import Batch
from dlen.data.prepare import check_writable
from dlen.data.rates import kept_rates
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.files import check_links, write_json
from dlen.models.heads import LatentHead
from dlen.models.ranker import Ranker
from dlen.nn.embedding import join_input
from dlen.ranking.fusion import Score
from dlen.schema import Kind, Schema
from dlen.training.run import open_run, quiet
from dlen.training.scoring import load_model, make_scores, read_fusion
from dlen.training.targets import Targets

INPUTS = ("ids", "numeric", "bag_ids", "bag_weights")
_TOLERANCE = 1e-5
_GRAPH_BYTES = 1 << 30  # a graph with its weights in one file ends at 2 GiB
_EXAMPLE = 3  # rows of the example that the graph is traced with


class Serving(nn.Module):
    """A model with dense inputs, as servers send them: lists are padded with weight 0.

    Args:
        model: in evaluation mode.
        score: of the feed.
    """

    def __init__(self, model: Ranker, score: Score) -> None:
        super().__init__()
        self.model, self.score, self.targets = model, score, Targets(model.schema)
        kept = [i for i, known in enumerate(self.targets.is_probability()) if known]
        self.names = [self.targets.names[i] for i in kept]
        self.outputs = ["p", "score", *(["up"] if isinstance(model.head, LatentHead) else [])]
        self.register_buffer("kept", torch.tensor(kept))
        self.kept: Tensor

    def forward(self, ids: Tensor, numeric: Tensor, bag_ids: Tensor, bag_weights: Tensor) -> tuple[Tensor, ...]:
        """Probabilities and the score.

        Args:
            ids: (B, S) int64 rows of the embedding table.
            numeric: (B, K) float32.
            bag_ids: (B, M, L) int64 rows of the embedding table.
            bag_weights: (B, M, L) float32; 0 where a list is shorter.

        Returns:
            As named by ``outputs``: ``p`` (B, K) of the measured targets, ``score`` (B,), and ``up`` (B,) of a model
            that has P(UP).
        """
        table = self.model.embedding
        parts = [table.weight[ids]] if table.num_single else []
        if table.num_bags:
            pooled = (table.weight[bag_ids] * bag_weights[..., None]).sum(2)
            total = bag_weights.sum(2, keepdim=True)
            mean = table.mean[:, 0][None]  # (1, M, 1)
            parts.append(pooled / torch.where(mean & (total > 0), total, torch.ones_like(total)))
        predictions = self.model.predict(join_input(parts, numeric, table.dim, table.first_order))
        log_p = self.targets.log_probabilities(predictions.log_p)
        log_up = predictions.log_up
        score = self.score(predictions.log_p, log_up)
        found = (log_p[:, self.kept].exp(), score)
        return found if log_up is None else (*found, log_up.exp())


def dense(batch: Batch, schema: Schema, length: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch as the inputs of :class:`Serving`.

    Args:
        batch: B rows.
        schema: of the batch.
        length: L, by default that of the longest list, and at least 1.
    """
    bags, rows = len(schema.of_kind(Kind.IDS)), len(batch)
    longest = max(int(batch.bag_lengths.max()) if batch.bag_lengths.numel() else 0, 1)
    length = longest if length is None else length
    bag_ids, weights = torch.zeros(bags, rows, length, dtype=torch.int64), torch.zeros(bags, rows, length)
    flat = batch.bag_lengths.flatten()
    bag = torch.repeat_interleave(torch.arange(len(flat)), flat)
    place = torch.arange(int(flat.sum())) - torch.repeat_interleave(flat.cumsum(0) - flat, flat)
    bag_ids.view(-1, length)[bag, place] = batch.bag_ids.long()
    weights.view(-1, length)[bag, place] = batch.bag_weights
    return batch.ids.long(), batch.numeric, bag_ids.transpose(0, 1).contiguous(), weights.transpose(0, 1).contiguous()


def export(config: DictConfig) -> None:
    """Write ``model.onnx``, ``model.pt2`` and ``schema.json``, once they are known to give the run's own scores.

    Args:
        config: of ``export.py``.

    Raises:
        UserError: for a run or settings that are wrong, or when an exported model differs from the run.
    """
    quiet()
    if not isinstance(config.check_rows, int) or config.check_rows < 1:
        raise UserError(f"config check_rows: {config.check_rows!r} is not a positive whole number")
    folder = Path(config.run)
    run_config, store = open_run(folder, config.trust)
    fusion = read_fusion(config.fusion)
    model = load_model(folder, run_config, store, config.checkpoint)
    if not isinstance(model, Ranker):
        raise UserError(f"{folder}: only networks are exported, and {run_config.model_name} is none; use predict.py")
    (score,) = make_scores([fusion], model, store)
    if config.output is None:
        check_links(folder)
    out = folder / "export" if config.output is None else Path(config.output)
    check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    serving = Serving(model, score).eval()
    batches = _check_batches(store, config.check_rows)
    with TemporaryDirectory(dir=out, prefix=".writing-") as made:
        onnx, program = Path(made) / "model.onnx", Path(made) / "model.pt2"
        write_export(serving, dense(batches[0], store.schema), onnx, program)
        worst = max(check_export(serving, batches, store.schema, onnx, program))
        if not worst <= _TOLERANCE:
            raise UserError(f"{folder}: the exported model differs from the run by {worst:.2g}; nothing was written")
        for path in Path(made).iterdir():  # a large table has a file of its own beside the graph
            path.replace(out / path.name)
    write_json(out / "schema.json", serving_schema(store, serving))
    rows = sum(map(len, batches))
    print(f"{rows:,} rows give the run's own scores in ONNX Runtime and torch.export, to {worst:.1e}")
    print(f"Export: {out}/model.onnx, model.pt2, schema.json")


def _check_batches(store: Store, rows: int) -> list[Batch]:
    """Rows of the test split, and the same with ids that training did not know and with empty lists."""
    split, schema = store.split("test"), store.schema
    batch = split.batch(torch.arange(min(rows, len(split))))
    offsets = torch.tensor([schema.offsets[f.name] for f in schema.of_kind(Kind.ID)], dtype=batch.ids.dtype)
    unknown = Batch(
        offsets.expand_as(batch.ids),
        batch.numeric,
        torch.zeros_like(batch.bag_lengths),
        batch.bag_ids[:0],
        batch.bag_weights[:0],
        batch.labels,
        batch.truth,
    )
    return [batch, unknown, split.batch(torch.arange(1))]


def write_export(serving: Serving, example: tuple[Tensor, ...], onnx: Path, program: Path) -> None:
    """Trace once, with any number of rows and any length of lists."""
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length")
    few = tuple(torch.cat([part[:1]] * _EXAMPLE) for part in example)
    few = tuple(nn.functional.pad(p, (0, 2)) if p.dim() == 3 and p.shape[1] else p for p in few)
    shapes = tuple({0: rows, 2: length} if p.dim() == 3 and p.shape[1] else {0: rows} for p in few)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.export.export(serving, few, dynamic_shapes=shapes)
        torch.export.save(traced, program)
        large = sum(p.nbytes for p in serving.parameters()) > _GRAPH_BYTES
        torch.onnx.export(
            traced,
            (),
            str(onnx),
            input_names=list(INPUTS),
            output_names=serving.outputs,
            dynamo=True,
            external_data=large,
            verbose=False,
        )


def check_export(serving: Serving, batches: list[Batch], schema: Schema, onnx: Path, program: Path) -> list[float]:
    """The largest difference of each batch, of probabilities and of scores."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    taken = {item.name for item in session.get_inputs()}
    loaded = torch.export.load(program).module()
    found = []
    with torch.inference_mode():
        for batch in batches:
            inputs = dense(batch, schema)
            predictions = serving.model(batch)
            wanted = serving.targets.log_probabilities(predictions.log_p)[:, serving.kept].exp()
            feed = {name: part.numpy() for name, part in zip(INPUTS, inputs, strict=True) if name in taken}
            p, score, *_ = session.run(serving.outputs, feed)
            own_p, own_score, *_ = (part.numpy() for part in loaded(*inputs))
            found += [float(np.abs(values - wanted.numpy()).max()) for values in (p, own_p)]
            found.append(float((np.abs(score - own_score) / (1 + np.abs(own_score))).max()))  # a logarithm, of any size
    return found


def serving_schema(store: Store, serving: Serving) -> dict[str, Any]:
    """What a server needs to turn raw values into inputs and outputs into names, without this package.

    ``fields``: for each in the order of its input, the position, and the raw values in the order of their ids:
    ``values[i]`` has the id ``offset + i + 1``, anything else ``offset``. Fields that are scaled or cut into buckets
    have ``statistics`` instead, parts of a time neither: their number, such as hour + 1, is added to the offset. Of a
    list the ``max_values`` heaviest count. Rates and counts of the log have ``rate``: ``by``, the columns of the key
    (joined by U+001F), and ``keys`` with ``latest``, what a row after all those of the log is told, to be scaled by the
    statistics; 0 for any other key.
    """
    schema, fields, score = store.schema, [], serving.score
    lengths = _longest_lists(store)
    for kind in Kind:
        for position, field in enumerate(schema.of_kind(kind)):
            entry: dict[str, Any] = {"name": field.name, "input": _input(kind), "position": position}
            if kind is not Kind.NUMERIC:
                entry["offset"] = schema.offsets[field.name]
            if kind is Kind.IDS:
                entry["max_values"] = lengths[position]
            kept = store.folder / "vocabulary" / f"{field.name}.parquet"
            if kept.exists():
                entry["values"] = pl.read_parquet(kept)["value"].cast(pl.String).to_list()
            if field.name in store.content["statistics"]:
                entry["statistics"] = dict(store.content["statistics"][field.name])
                if "rate" in entry["statistics"]:
                    entry["rate"] = _latest(store, entry["statistics"].pop("rate"))
            fields.append(entry)
    return {
        "data_fingerprint": store.fingerprint,
        "inputs": {name: _shape(name) for name in INPUTS},
        "outputs": {
            "p": serving.names,
            "score": {"form": score.fusion.form, "up": score.fusion.up, "floor": score.fusion.floor},
            "up": "P(UP), where the model has it",
        },
        "weights": dict(zip(schema.task_names, score.weights.tolist(), strict=True)),
        "calibration": {
            task: {"slope": slope, "offset": offset}
            for task, slope, offset in zip(schema.task_names, score.slope.tolist(), score.offset.tolist(), strict=True)
        },
        "fields": fields,
    }


def _latest(store: Store, rate: dict[str, Any]) -> dict[str, Any]:
    """The rates, or counts, that new rows are told by key."""
    found = kept_rates(store, rate["history"]).latest()
    values = found[rate["output"]].cast(pl.Float64).to_list()
    return {"by": rate["by"], "keys": found["key"].to_list(), "latest": values}


def _longest_lists(store: Store) -> list[int]:
    """Of each list field, the most values in a training row: what the data's own cap has left."""
    split = store.split("train")
    tables = [split.table] + ([] if split.groups is None else [split.groups])
    return [
        int(most) for table in tables for most in (table.bag_lengths.amax(0).tolist() if len(table.bag_lengths) else [])
    ]


def _input(kind: Kind) -> str:
    return {Kind.ID: "ids", Kind.IDS: "bag_ids", Kind.NUMERIC: "numeric"}[kind]


def _shape(name: str) -> str:
    shapes = {"ids": "int64 (rows, single fields)", "numeric": "float32 (rows, numeric fields)"}
    shapes |= {
        "bag_ids": "int64 (rows, list fields, length)",
        "bag_weights": "float32 (rows, list fields, length), 0: none",
    }
    return shapes[name]
