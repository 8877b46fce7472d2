"""init_from: start from a run's weights, with the ids of today's data mapped onto those of the run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from dlen.data.store import Store
from dlen.errors import UserError
from dlen.models.model import Model
from dlen.models.ranker import Ranker
from dlen.nn.embedding import EmbeddingTable, row_width
from dlen.nn.mixed import MixedTables
from dlen.schema import Field, Kind, Schema
from dlen.training.checkpoints import model_weights
from dlen.training.run_folder import BEST
from dlen.training.stores import open_run

_KEY = "config init_from"
_STATES = "head.hidden_output.bias"


def warm_start(model: Model, store: Store, config: DictConfig) -> list[str]:
    """Copy the best weights of the run ``config.init_from`` into a new model.

    An id that both data sets know keeps its vector, and so does a field's unknown id. Other ids start from the unknown
    id's, which is what they were to the run; in a field that is coded otherwise now, as in a new model. Dense weights
    are copied as they are, but for those that describe today's labels, :attr:`Head.of_labels`.

    Args:
        model: new model for ``store``; changed in place.
        store: data that the model will be trained on.
        config: composed config of ``train.py``.

    Returns:
        A line for each field: how many ids are kept and how many are new.

    Raises:
        UserError: the folder is not a finished run, or its fields, tasks or layers differ from the model's.
    """
    folder = Path(config.init_from)
    _, old = open_run(folder, config.trust)
    checkpoint = folder / BEST
    if not checkpoint.exists():
        raise UserError(f"{_KEY}: {checkpoint}: no such checkpoint; the run is not finished")
    if not isinstance(model, Ranker) or not isinstance(model.embedding, EmbeddingTable | MixedTables):
        raise UserError(f"{_KEY}: {config.model_name} has no weights to start from; leave it out")
    if config.sharding:
        raise UserError(f"{_KEY}: a sharded table cannot start from a run; set sharding=null")
    _check_same_inputs(folder, old, store)
    weights = model_weights(checkpoint)
    tables = {f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, EmbeddingTable)}
    were = {name: weights.pop(name, None) for name in tables}
    dense = _dense_weights(model, weights, tables.keys(), folder)
    schemas = zip(store.schema.by_dim.values(), old.schema.by_dim.values(), strict=True)
    lines = []
    for table, was, (now, then) in zip(tables.values(), were.values(), schemas, strict=True):
        terms, of_views = (len(now.tasks), len(then.views)) if table.first_order else (0, 0)
        if was is None or was.shape != (then.num_embeddings, row_width(table.dim, terms + of_views)):
            raise UserError(f"{_KEY}: {folder} has vectors of another length; set model.embedding as in the run")
        kept = table.dim + terms  # the terms of views belong to today's labels
        lines += _copy_rows(table.weight.data[:, :kept], was[:, :kept], (now, store), (then, old))
    _load_dense(model, dense, folder)
    return lines


def _check_same_inputs(folder: Path, old: Store, new: Store) -> None:
    """Raise UserError unless the layers read the same fields and predict the same tasks."""
    for what, was, now in (
        ("tasks", old.schema.task_names, new.schema.task_names),
        ("fields", _fields(old), _fields(new)),
    ):
        if was != now:
            differing = [name for name in dict.fromkeys([*was, *now]) if (name in was) != (name in now)]
            shown = ", ".join(differing) or "their order"
            raise UserError(f"{_KEY}: {folder} was trained on other {what} ({shown}); use the same in the data's spec")


def _fields(store: Store) -> list[str]:
    """Fields in the order in which the model reads them, with what decides the shape and the owner of their vectors."""
    return [_described(field) for kind in Kind for field in store.schema.of_kind(kind)]


def _described(field: Field) -> str:
    details = [field.kind.value]
    details += [f"dim {field.dim}"] if field.dim else []
    details += [f"share {field.share}"] if field.share else []
    details += [f"{field.size} numbers"] if field.kind is Kind.VECTOR else []
    return f"{field.name} ({', '.join(details)})"


def _dense_weights(
    model: Ranker, weights: dict[str, Tensor], tables: Collection[str], folder: Path
) -> dict[str, Tensor]:
    """The weights that are copied as they are, after a check that the model is the same but for its sizes."""
    of_labels = tuple(f"head.{name}." for name in model.head.of_labels)
    weights = {name: value for name, value in weights.items() if not name.startswith(of_labels)}
    own = {name: v for name, v in model.state_dict().items() if name not in tables and not name.startswith(of_labels)}
    for name in sorted(own.keys() ^ weights.keys()):
        raise UserError(f"{_KEY}: {folder} has another model ({name} is in one of them alone); set model as in the run")
    _check_states(own, weights, folder)
    return weights


def _load_dense(model: Ranker, weights: dict[str, Tensor], folder: Path) -> None:
    own = model.state_dict()
    for name in weights:
        if (value := own[name]).shape != weights[name].shape:
            shapes = f"{tuple(weights[name].shape)} there, {tuple(value.shape)} here"
            raise UserError(f"{_KEY}: {folder} has layers of another size ({name}: {shapes}); set model as in the run")
    model.load_state_dict(weights, strict=False)


def _check_states(own: dict[str, Tensor], weights: dict[str, Tensor], folder: Path) -> None:
    """Raise UserError if the number of hidden states, which the labels of the data may decide, is another one."""
    was, now = weights.get(_STATES), own.get(_STATES)
    if was is None or now is None or was.shape[0] == now.shape[0]:
        return
    wanted = "1" if was.shape[0] == 1 else "2, or name the tasks of both, as in the run"
    raise UserError(
        f"{_KEY}: {folder} has {1 if was.shape[0] == 1 else 2} hidden states and this model another number, as the "
        f"labels of its data differ; set model.head.states={wanted}"
    )


def _copy_rows(
    new_table: Tensor, old_table: Tensor, of_new: tuple[Schema, Store], of_old: tuple[Schema, Store]
) -> list[str]:
    """Copy the rows of the fields of a table, which are those of the schemas."""
    (now, new), (then, old) = of_new, of_old
    lines = []
    for field in now.owners:
        kept = _old_codes(field, new, old)
        known = np.flatnonzero(kept >= 0)
        to, source = now.offsets[field.name] + known, then.offsets[field.name] + kept[known]
        new_table[torch.from_numpy(to)] = old_table[torch.from_numpy(source)].to(new_table.dtype)
        if (kept > 0).any():  # otherwise, the field is another one
            to = now.offsets[field.name] + np.flatnonzero(kept < 0)
            new_table[torch.from_numpy(to)] = old_table[then.offsets[field.name]].to(new_table.dtype)
        before = next(f.vocab_size for f in old.schema.fields if f.name == field.name) - 1  # without the unknown id
        line = f"{field.name}: {len(known) - 1:,} of {len(kept) - 1:,} ids are known from {old.fingerprint}"
        lost = before - len(set(kept[known])) + 1
        lines.append(f"{line}; {lost:,} of its {before:,} are not in these data and are dropped" if lost > 0 else line)
    return lines


def _old_codes(field: Field, new: Store, old: Store) -> NDArray[np.int64]:
    """(V,) code in the old data of each code in the new data; -1 for none. Unknown ids, 0, are the same."""
    name, statistics = field.name, new.content["statistics"].get(field.name, {})
    before = old.content["statistics"].get(name, {})
    if _coding(new, name) != _coding(old, name):  # no code means what it meant
        return np.concatenate([[0], np.full(field.vocab_size - 1, -1)])
    if name in new.content["vocabularies"]:
        then, now = (
            store.vocabulary(name).select(pl.col("value").cast(pl.String)).with_row_index("code")
            for store in (old, new)
        )
        codes = now.join(then, on="value", how="left", maintain_order="left")["code_right"].cast(pl.Int64)
        return np.concatenate([[0], (codes + 1).fill_null(-1).to_numpy()])
    if "edges" in statistics:
        return _old_buckets(statistics, before)
    size = next(f.vocab_size for f in old.schema.fields if f.name == name)
    return np.where(np.arange(field.vocab_size) < size, np.arange(field.vocab_size), -1)  # of a time, a hash, labels


def _coding(store: Store, name: str) -> object:
    """What the codes of a field stand for: ids of a vocabulary, buckets of numbers or hashes, labels, or themselves."""
    statistics = store.content["statistics"].get(name, {})
    if name in store.content["vocabularies"]:
        return "vocabulary"
    return "edges" if "edges" in statistics else statistics.get("hash", statistics.get("labels"))


def _old_buckets(now: dict[str, object], then: dict[str, object]) -> NDArray[np.int64]:
    """The old bucket of each new one, by its lowest value."""
    edges, old_edges = (np.asarray(statistics["edges"], np.float64) for statistics in (now, then))
    absent, old_absent = bool(now["absent"]), bool(then["absent"])
    lowest = np.concatenate([[np.nextafter(edges[0], -np.inf)] if len(edges) else [0.0], edges])
    buckets = np.searchsorted(old_edges, lowest, side="right") + 1 + old_absent
    first = [0] if not absent else [0, 1 if old_absent else 0]
    return np.concatenate([first, buckets]).astype(np.int64)
