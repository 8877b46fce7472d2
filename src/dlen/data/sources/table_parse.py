"""Reads and validates the YAML of a table, before any row is read."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from dataclasses import is_dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import polars as pl
import yaml

from dlen.data.sources.cells import id_text
from dlen.data.sources.expression import Expression
from dlen.data.sources.table_spec import (
    FieldSpec,
    HistorySpec,
    JoinSpec,
    RateSpec,
    SplitSpec,
    TableSpec,
    TaskSpec,
    expression,
    names_of,
    weight_columns,
)
from dlen.errors import UserError
from dlen.schema import check_targets
from dlen.valid import OneOf, Range, did_you_mean, fault

T = TypeVar("T")
FROM_LOG = ("rate", "history")  # kinds of fields that are computed from the log, and have no column
_MOST_LABELS = 8
_MOST_TASKS = 4  # that a view depends on, in every combination of their labels
_MOST_BINS = 250  # of a view, whose bins are stored as bytes
_SHARE = Annotated[float, Range(0, 1, below=True)]


def read_spec(path: Path) -> str:
    """Read the text of a spec. Raises UserError if that fails."""
    try:
        return path.read_text()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); set data.spec to the YAML that describes the table"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML ({error})") from None


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys, of which YAML would silently use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} occurs twice", key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_spec(text: str, path: Path) -> TableSpec:
    """Parse and validate the text of a spec.

    Args:
        text: YAML text.
        path: path of the YAML, for messages.

    Raises:
        UserError: the text is not YAML, or has an invalid key or value.
    """
    try:
        content = yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:  # a date such as 2023-02-30; {{template}}
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    spec = _fill(TableSpec, content, path, "")
    spec.path = path
    for name, field in spec.fields.items():
        if field.kind not in FROM_LOG:
            field.column = field.column or name
    _check_format(spec)
    _check_fields(spec)
    _check_tasks(spec)
    _check_no_label(spec)
    _check_no_weight(spec)
    if spec.where:
        _check_label_expression(spec.where, path, "where")
    _check_split(spec.split, path)
    _check_shared(spec)
    _check_rates(spec)
    _check_histories(spec)
    return spec


# From YAML to dataclasses


def _fill(kind: type[T], content: Any, path: Path, key: str) -> T:
    """Build a dataclass from a mapping, rejecting unknown keys and values that violate an annotation."""
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: {key or 'the file'}: must be a mapping of settings")
    hints, values = get_type_hints(kind, include_extras=True), {}
    hints.pop("path", None)  # of a spec itself, not a key
    for name, value in content.items():
        where = f"{key}.{name}" if key else str(name)
        if name not in hints:
            raise UserError(
                f"{path}: {where}: unknown key{did_you_mean(name, hints) or '; the keys are ' + ', '.join(hints)}"
            )
        hint = hints[name]
        if isinstance(hint, type) and is_dataclass(hint):
            value = _fill(hint, value, path, where)
        elif get_origin(hint) is dict:
            value = _entries(get_args(hint)[1], value, path, where)
        elif wrong := fault(hint, value):
            raise UserError(f"{path}: {where}: {wrong}")
        values[str(name)] = value
    return kind(**values)


def _entries(kind: type, value: Any, path: Path, key: str) -> dict[str, Any]:
    """The entries of ``fields``, ``tasks`` or ``joins``, by name."""
    if value and not isinstance(value, Mapping):
        raise UserError(f"{path}: {key}: must be a mapping of names to settings")
    make = {FieldSpec: _field, TaskSpec: _task, JoinSpec: _join}[kind]
    return {str(name): make(entry, path, f"{key}.{name}") for name, entry in (value or {}).items()}


def _join(value: Any, path: Path, key: str) -> JoinSpec:
    spec = _fill(JoinSpec, value, path, key)
    for name in ("file", "by"):
        if not getattr(spec, name):
            raise UserError(f"{path}: {key}.{name}: must be set")
    spec.key = spec.key or spec.by
    return spec


def _task(value: Any, path: Path, key: str) -> TaskSpec:
    return _fill(TaskSpec, value if isinstance(value, Mapping) else {"label": value}, path, key)


def _field(value: Any, path: Path, key: str) -> FieldSpec:
    spec = _fill(FieldSpec, value, path, key)
    if spec.hash and "min_count" in value:
        raise UserError(
            f"{path}: {key}.min_count: cannot be combined with hash, which counts no ids; remove one of them"
        )
    for name in ("order", "max_values"):
        if spec.along and name in value:
            raise UserError(f"{path}: {key}.{name}: is that of {spec.along}, whose parallel list this is; remove it")
    spec.of = _texts(spec.of, path, f"{key}.of") if spec.of is not None else []
    kind = next((k for k in ("rate", "count", "history") if k in value), None)
    if kind is None:
        return spec
    others = [str(k) for k in value if k not in (kind, "side")]
    if others:
        raise UserError(
            f"{path}: {key}.{others[0]}: cannot be combined with {kind}, which is computed from the log; remove it"
        )
    of_log = (_history if kind == "history" else partial(_rate, kind))(value[kind], path, f"{key}.{kind}")
    spec.kind = "history" if kind == "history" else "rate"
    if len(of_log.by) > 1 and "side" not in value:
        spec.side = "cross"
    setattr(spec, kind, of_log)
    return spec


def _history(value: Any, path: Path, key: str) -> HistorySpec:
    spec = _fill(HistorySpec, value, path, key)
    spec.by, spec.of = _texts(spec.by, path, f"{key}.by"), _texts(spec.of, path, f"{key}.of")
    spec.labels = _texts(spec.labels, path, f"{key}.labels")
    for name in ("of", "by"):
        if not getattr(spec, name):
            raise UserError(f"{path}: {key}.{name}: must name a field{' or column' if name == 'by' else ''}")
    if len(spec.labels) > _MOST_LABELS:
        raise UserError(f"{path}: {key}.labels: names {len(spec.labels)} tasks, at most {_MOST_LABELS} fit in one id")
    return spec


def _rate(kind: str, value: Any, path: Path, key: str) -> RateSpec:
    """A ``rate`` or ``count``."""
    spec = _fill(RateSpec, value, path, key)
    spec.by, spec.of = _texts(spec.by, path, f"{key}.by"), _texts(spec.of, path, f"{key}.of")
    if not spec.by:
        raise UserError(f"{path}: {key}.by: must name a field or column")
    if bool(spec.of) != (kind == "rate"):
        hint = "must name a task, or be an expression" if kind == "rate" else "a count is of rows; remove it"
        raise UserError(f"{path}: {key}.of: {hint}")
    if kind == "count" and "smoothing" in value:
        raise UserError(f"{path}: {key}.smoothing: a count is not smoothed; remove it")
    return spec


def _texts(value: Any, path: Path, key: str) -> list[str]:
    """A text, or a list of unique texts, as a list."""
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(t, str) and t for t in texts) or len(set(texts)) < len(texts):
        raise UserError(f"{path}: {key}: {value!r} is neither a text nor a list of distinct texts")
    return texts


# Checks of several settings together


def _check_one_of(value: str, choices: list[str], path: Path, key: str) -> None:
    wrong = OneOf(*choices).fault(value, "") if choices else f"{value!r} names nothing, as there is no such field"
    if wrong:
        raise UserError(f"{path}: {key}: {wrong}")


def _check_names(names: Mapping[str, Any], path: Path, key: str) -> None:
    """Check the names of fields or tasks, which become file names and parts of metric keys."""
    if not names:
        raise UserError(f"{path}: {key}: must name at least one")
    for name in names:
        if not name or name.startswith(".") or "/" in name or "\0" in name or len(name.encode()) > 200:
            raise UserError(
                f"{path}: {key}.{name}: {name[:80]!r} cannot be a name; a name has at most 200 bytes, no slash and no "
                "leading dot"
            )


def _check_format(spec: TableSpec) -> None:
    """Check how CSV files are read."""
    for key, character in (("separator", spec.separator), ("quote", spec.quote or "")):
        if len(character.encode()) > 1:
            raise UserError(f"{spec.path}: {key}: {character!r} is not a single character")
    try:
        known = not spec.encoding or codecs.lookup(spec.encoding)._is_text_encoding
    except (LookupError, ValueError):
        known = False
    if not known:
        raise UserError(
            f"{spec.path}: encoding: {spec.encoding!r} is not a known text encoding; use one such as gb18030, latin-1 "
            "or utf-16"
        )
    for name in spec.columns:
        if spec.columns.count(name) > 1:
            raise UserError(f"{spec.path}: columns: {name!r} occurs twice")
    if not spec.header and not spec.columns:
        raise UserError(f"{spec.path}: columns: is empty, but files with header: false need column names")


def _check_fields(spec: TableSpec) -> None:
    _check_names(spec.fields, spec.path, "fields")
    names = [name for entry, field in spec.fields.items() for name in names_of(entry, field)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{spec.path}: fields.{name}: a part of a time, rate or history has the same name; rename one"
            )
    for name, field in spec.fields.items():
        if field.of:
            binary = [task for task, of_task in spec.tasks.items() if not of_task.is_regression]
            for task in field.of:
                _check_one_of(task, binary, spec.path, f"fields.{name}.of")
            if len(field.of) > _MOST_TASKS:
                raise UserError(f"{spec.path}: fields.{name}.of: a view depends on at most {_MOST_TASKS} tasks")
            if field.kind != "view":
                raise UserError(f"{spec.path}: fields.{name}.of: is for kind: view; remove it")
        if field.kind == "view" and not 2 <= field.buckets <= _MOST_BINS:
            raise UserError(f"{spec.path}: fields.{name}.buckets: a view has at most {_MOST_BINS}")
    single = [
        name
        for name, field in spec.fields.items()
        if field.kind == "id" or (field.kind == "numeric" and field.transform == "quantile")
    ]
    for key in ("user", "position"):
        value = getattr(spec, key)
        if value in spec.fields and value not in single:
            raise UserError(
                f"{spec.path}: {key}: {value} has to have one id per row; it is of kind {spec.fields[value].kind}"
            )
        if value is not None:
            _check_one_of(value, single, spec.path, key)


def _check_tasks(spec: TableSpec) -> None:
    _check_names(spec.tasks, spec.path, "tasks")
    for name, task in spec.tasks.items():
        if task.observed_where is not None:
            _check_one_of(task.observed_where, list(spec.tasks), spec.path, f"tasks.{name}.observed_where")
        if task.joint and task.observed_where is None:
            raise UserError(
                f"{spec.path}: tasks.{name}.joint: needs observed_where, the task that has to happen as well"
            )
        _check_kind(spec, name)
        if task.observed:
            expression(spec, name, "observed")
    try:
        check_targets([(name, task.joint, task.dislike) for name, task in spec.tasks.items()])
    except ValueError as error:
        raise UserError(f"{spec.path}: tasks: {error}") from None


def _check_kind(spec: TableSpec, name: str) -> None:
    """Check the settings of a binary or regression task together."""
    task, parsed, where = spec.tasks[name], expression(spec, name), f"{spec.path}: tasks.{name}"
    if not task.is_regression:
        for key, default in (("loss", "mse"), ("transform", "none")):
            if getattr(task, key) != default:
                raise UserError(f"{where}.{key}: is of a regression; set kind: regression, or remove it")
        return
    if not parsed.is_column:
        raise UserError(f"{where}.label: {task.label!r} is an expression of 0 and 1; a regression needs a column")
    for key, wrong in (("dislike", task.dislike), ("joint", task.joint), ("train_on", task.train_on == "all")):
        if wrong:
            raise UserError(f"{where}.{key}: is of a task of 0 and 1, and {name} is a regression; remove it")
    if task.loss == "weighted_logistic" and task.transform != "none":
        raise UserError(f"{where}.transform: weighted_logistic predicts the mean of the label itself; set none")
    for child, other in spec.tasks.items():
        if other.observed_where == name:
            raise UserError(f"{spec.path}: tasks.{child}.observed_where: {name} is a regression, which cannot happen")


def _check_no_label(spec: TableSpec) -> None:
    """Reject a field read from a column of a label: it would leak the answer."""
    task_of = {column: name for name in spec.tasks for column in expression(spec, name).columns}
    for name, field in spec.fields.items():
        if field.column in task_of and field.kind == "view":
            _check_view_of_label(spec, name)
        elif field.column in task_of:
            raise UserError(
                f"{spec.path}: fields.{name}: the label of tasks.{task_of[field.column]} is computed from column "
                f"{field.column}, so a model would see the answer; remove the field"
            )


def _check_view_of_label(spec: TableSpec, name: str) -> None:
    """A label that is computed from a view's column is no evidence beside it: the view has to be ``of`` its task."""
    view = spec.fields[name]
    tasks = [task for task in spec.tasks if view.column in expression(spec, task).columns]
    if not set(tasks) <= set(view.of):
        raise UserError(
            f"{spec.path}: fields.{name}: the labels of {', '.join(tasks)} are computed from column {view.column}, so "
            f"both would be counted as evidence; set of: [{', '.join(tasks)}]"
        )


def _check_shared(spec: TableSpec) -> None:
    """Check the fields that use the ids of another, and the parallel lists of sequences."""
    owners = [n for n, f in spec.fields.items() if f.kind in ("id", "ids") and not f.share]
    sequences = [n for n, f in spec.fields.items() if f.kind == "sequence" and not f.along]
    for name, field in spec.fields.items():
        key = f"fields.{name}"
        if field.share:
            _check_one_of(field.share, owners, spec.path, f"{key}.share")
            if field.hash or field.min_count > 1:
                other = "hash" if field.hash else "min_count"
                raise UserError(f"{spec.path}: {key}.{other}: the ids are those of {field.share}; set it there")
            if field.kind not in ("id", "ids", "sequence"):
                raise UserError(f"{spec.path}: {key}.share: is for ids; remove it from a field of kind {field.kind}")
            if field.dim:
                raise UserError(f"{spec.path}: {key}.dim: the vectors are those of {field.share}; set it there")
        elif field.dim and field.kind not in ("id", "ids", "sequence"):
            raise UserError(f"{spec.path}: {key}.dim: is for ids; remove it from a field of kind {field.kind}")
        if field.along:
            _check_one_of(field.along, sequences, spec.path, f"{key}.along")
            if field.kind != "sequence":
                raise UserError(f"{spec.path}: {key}.along: is for kind: sequence; remove it")


def _check_histories(spec: TableSpec) -> None:
    ids = [n for n, f in spec.fields.items() if f.kind == "id"]
    for name, history in ((n, f.history) for n, f in spec.fields.items() if f.kind == "history"):
        key = f"fields.{name}.history"
        for of in history.of:
            _check_one_of(of, ids, spec.path, f"{key}.of")
        _check_key(history.by, spec, f"{key}.by")
        binary = [task for task, settings in spec.tasks.items() if not settings.is_regression]
        for task in history.labels:
            _check_one_of(task, binary, spec.path, f"{key}.labels")
        if history.where in spec.tasks:
            _check_one_of(history.where, binary, spec.path, f"{key}.where")
        elif history.where:
            _check_label_expression(history.where, spec.path, f"{key}.where")


def _check_key(by: list[str], spec: TableSpec, key: str) -> None:
    """Check the fields that form the key of a rate, count or history."""
    for name in by:
        kind = spec.fields[name].kind if name in spec.fields else ""
        if kind in FROM_LOG or kind == "sequence":
            what = "a sequence" if kind == "sequence" else "computed from the log"
            raise UserError(f"{spec.path}: {key}: {name} is {what}, so it cannot be a key")


def _check_label_expression(text: str, path: Path, key: str) -> None:
    try:
        Expression(text)
    except ValueError as error:
        raise UserError(f"{path}: {key}: neither a task nor an expression: {error}") from None


def _check_no_weight(spec: TableSpec) -> None:
    """Reject a field read from a column of weights, which may be outcomes, and which new rows need not have."""
    key_of = {column: key for key, column in weight_columns(spec).items()}
    for name, field in spec.fields.items():
        of_log = field.rate or field.count or field.history
        for column in [field.column] if of_log is None else of_log.by:
            if column in key_of:
                raise UserError(
                    f"{spec.path}: fields.{name}: column {column} holds the weights of {key_of[column]}, which may be "
                    "outcomes; remove the field, or give the weights a column of their own"
                )


def _check_rates(spec: TableSpec) -> None:
    rates = {name: field.rate or field.count for name, field in spec.fields.items() if field.kind == "rate"}
    for name, rate in rates.items():
        _check_key(rate.by, spec, f"fields.{name}: by")
        for of in rate.of:
            if of in spec.tasks and spec.tasks[of].is_regression:
                raise UserError(f"{spec.path}: fields.{name}.rate.of: {of} is a regression; a rate counts 0 and 1")
            if of in spec.tasks:
                continue
            if len(rate.of) > 1:
                _check_one_of(of, list(spec.tasks), spec.path, f"fields.{name}.rate.of")
            _check_label_expression(of, spec.path, f"fields.{name}.rate.of")


def _check_split(split: SplitSpec, path: Path) -> None:
    if split.by != "fraction" and not split.column:
        raise UserError(f"{path}: split.column: must be set for by: {split.by}")
    if split.by == "column":
        _read_split_values(split, path)
    else:
        for key in ("validation", "test"):
            wrong = fault(_SHARE, getattr(split, key))
            if wrong:
                raise UserError(f"{path}: split.{key}: {wrong}")
        if split.validation + split.test >= 1:
            raise UserError(f"{path}: split: validation and test sum to 1 or more, which leaves no training rows")
    if (split.validation_from is None) != (split.test_from is None):
        raise UserError(f"{path}: split: set both validation_from and test_from, or neither")
    if split.test_from is not None:
        _check_starts(split, path)


def _read_split_values(split: SplitSpec, path: Path) -> None:
    """Replace the values of a split by column by lists of ids."""
    for key in ("validation", "test"):
        value = getattr(split, key)
        # The defaults are fractions; without values there may still be a file for this split.
        values = [] if isinstance(value, float) or value is None else value
        texts = [str(v) for v in (values if isinstance(values, list) else [values])]
        ids = id_text(pl.Series(texts, dtype=pl.String), path).to_list()
        if None in ids:
            raise UserError(f"{path}: split.{key}: has an empty value; remove it (rows without a value are training)")
        setattr(split, key, ids)
    if both := set(split.validation) & set(split.test):
        raise UserError(f"{path}: split: {min(both)!r} is listed for both validation and test")


def _check_starts(split: SplitSpec, path: Path) -> None:
    starts = [split.validation_from, split.test_from]
    for start in starts:
        if isinstance(start, bool) or not isinstance(start, int | float | str | date):
            raise UserError(
                f"{path}: split.validation_from, test_from: {start!r} is neither a number in units of "
                f"{split.column} nor a date or time"
            )
    if all(isinstance(start, int | float) for start in starts) and starts[0] > starts[1]:
        raise UserError(f"{path}: split.validation_from: {starts[0]} is later than test_from, {starts[1]}")
