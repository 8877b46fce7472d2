"""The YAML that describes the columns of a user's table, read and validated before any row is read."""

from __future__ import annotations

import codecs
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import yaml

from dlen.checks import is_number, is_whole
from dlen.data.ragged import Keep
from dlen.data.sources.cells import id_text
from dlen.data.sources.expression import Expression
from dlen.errors import UserError
from dlen.schema import Pooling, check_targets

KINDS = ("id", "ids", "numeric", "time")
TRANSFORMS = ("standardise", "log1p", "quantile")
TIME_PARTS = {"hour": 24, "weekday": 7, "day": 31, "month": 12}
T = TypeVar("T")


@dataclass(slots=True)
class RateSpec:
    """A field's ``rate``, or its ``count``, which only has ``by``.

    Attributes:
        of: what the rate counts: a task, a label expression, or a list of tasks.
        by: field or column used as the key, or several that form a key together.
        smoothing: number of rows with the rate over all keys that are added to the rows of the key.
    """

    of: Any = field(default_factory=list)
    by: Any = field(default_factory=list)
    smoothing: float = 20.0


@dataclass(slots=True)
class RatesSpec:
    """Settings shared by all rates and counts.

    Attributes:
        time: a field of kind time, or a column of increasing numbers: a row sees only strictly earlier rows. Default:
            the first field of kind time, or the column of a split by time. With ``none``, or without either, training
            rows see training rows of other folds, and all other rows see the training rows.
        every: row, or day: a row sees what was known at the start of its day.
        rows: all, or train: labels of the other splits are never counted, even if they are earlier.
        folds: number of folds without a time.
    """

    time: str = ""
    every: str = "row"
    rows: str = "all"
    folds: int = 5


@dataclass(slots=True)
class FieldSpec:
    """One entry of ``fields``.

    Attributes:
        rate: numbers computed from the log itself instead of a column: how often labels were 1 for a key.
        count: like ``rate``: the number of rows with a key.
        kind: id, ids, numeric or time.
        column: column to read. Default: the name of the field.
        side: user, item, cross or context.
        min_count: id, ids: values with fewer occurrences are unknown.
        separator: ids: separator between values.
        weight_separator: ids: separator between a value and its weight, as in ``red:0.5``.
        max_values: ids: maximum number of values; longer lists are truncated.
        keep: ids: values kept in a truncated list: heaviest (ties keep the first), first or last.
        pooling: ids: mean or sum of the values' vectors.
        transform: numeric: standardise; log1p, sign(x) log(1 + abs(x)) standardised, for counts and amounts; or
            quantile, the id of an equal-sized bucket.
        buckets: numeric with quantile: number of buckets.
        format: time: text format such as ``%d.%m.%Y %H:%M``. By default the column holds dates, time stamps, ISO 8601
            text such as ``2023-11-14T10:00:00+08:00``, or numbers since 1970.
        unit: time: unit of numbers since 1970: s or ms.
        utc_offset: time: hours added before the parts are extracted; a stamp with a zone is first converted to UTC.
        parts: time: hour, weekday, day, month; each becomes an id field.
    """

    kind: str = "id"
    column: str = ""
    side: str = "context"
    min_count: int = 1
    separator: str = "|"
    weight_separator: str = ""
    max_values: int = 20
    keep: str = "heaviest"
    pooling: str = "mean"
    transform: str = "standardise"
    buckets: int = 20
    format: str = ""
    unit: str = "s"
    utc_offset: float = 0.0
    parts: list[str] = field(default_factory=lambda: ["hour", "weekday"])
    rate: Any = None
    count: Any = None


@dataclass(slots=True)
class TaskSpec:
    """One entry of ``tasks``.

    Attributes:
        label: column of 0 and 1, or an expression such as ``label == 0``.
        observed: column of 0 and 1, or an expression; if it is 0 or empty, the label is unknown.
        observed_where: the task counts only in rows where this other task is positive.
        train_on: observed (the default) or all.
        joint: name of the event "this task and its parents happened", measured over all rows.
        weight: weight of the task's loss.
        dislike: a positive shows that the user does not prefer the item.
    """

    label: str = ""
    observed: str = ""
    observed_where: str | None = None
    train_on: str = "observed"
    joint: str = ""
    weight: float = 1.0
    dislike: bool = False


@dataclass(slots=True)
class SplitSpec:
    """How rows are split into train, validation and test.

    Attributes:
        by: fraction (random rows), hash (of a column: all rows of a user together), time, or column (named values).
        column: column for hash, time and column.
        validation: fraction of rows; with ``by: column`` a list of values.
        test: fraction of rows; with ``by: column`` a list of values.
        validation_from: with ``by: time``: first value of validation, instead of a fraction; a number, or a time if the
            column holds times.
        test_from: with ``by: time``: first value of test, instead of a fraction.
        seed: seed of the hash.
        allow_one_class: do not require both classes of every task in validation and test.
    """

    by: str = "fraction"
    column: str = ""
    validation: Any = 0.1
    test: Any = 0.1
    validation_from: Any = None
    test_from: Any = None
    seed: int = 0
    allow_one_class: bool = False


@dataclass(slots=True)
class JoinSpec:
    """One entry of ``joins``: a second table joined to the rows by a key, such as user features.

    Attributes:
        file: path like those of ``files``; the columns used by a field are held in memory.
        by: key column of the main table.
        key: key column of the second table. Default: the same name.
    """

    file: str = ""
    by: str = ""
    key: str = ""


@dataclass(slots=True)
class TableSpec:
    """The whole YAML.

    Attributes:
        files: a path, or paths for train, test and optionally validation; relative to the YAML. ``*`` matches any part
            of a name, ``**`` matches any folders, and a folder stands for all CSV, TSV and Parquet files in it.
        joins: tables joined to the rows by a key, by name.
        obtain: where to get the files, for the message if one is missing.
        fields: inputs of the models, by name.
        tasks: labels, by name.
        split: how rows are split; with files for train and test, how validation is taken from train.
        rates: how rates and counts are computed.
        ignore: columns to ignore; the word ``rest`` ignores all columns that are not named.
        separator: separator of CSV columns. Default: depends on the file extension.
        header: whether the first line contains the column names.
        columns: column names of a file without a header.
        comment: lines starting with this are skipped.
        encoding: encoding of CSV files that are not UTF-8, such as gb18030, latin-1 or utf-16.
        quote: quote character of CSV cells; empty for none. Default: ``"``, unless it appears to swallow rows.
        null_values: texts of CSV cells that mean an empty cell, such as ``\\N``.
        user: field that identifies the user of a row.
        position: field with the position on the page.
    """

    files: Any = None
    joins: dict[str, JoinSpec] = field(default_factory=dict)
    obtain: str = ""
    fields: dict[str, FieldSpec] = field(default_factory=dict)
    tasks: dict[str, TaskSpec] = field(default_factory=dict)
    split: SplitSpec = field(default_factory=SplitSpec)
    rates: RatesSpec = field(default_factory=RatesSpec)
    ignore: Any = field(default_factory=list)
    separator: str = ""
    header: bool = True
    columns: list[str] = field(default_factory=list)
    comment: str = ""
    encoding: str = ""
    quote: str | None = None
    null_values: list[str] = field(default_factory=list)
    user: str | None = None
    position: str | None = None


def read_spec(path: Path) -> str:
    """Read the text of a spec. Raises UserError if that fails."""
    try:
        return path.read_text()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); data.spec names the YAML of a table") from None
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
    spec.fields = {str(k): _field(v, path, f"fields.{k}") for k, v in _mapping(spec.fields, path, "fields")}
    spec.tasks = {str(k): _task(v, path, f"tasks.{k}") for k, v in _mapping(spec.tasks, path, "tasks")}
    joins = _mapping(spec.joins, path, "joins") if spec.joins else []
    spec.joins = {str(k): _join(v, path, f"joins.{k}") for k, v in joins}
    if isinstance(spec.split, Mapping):
        spec.split = _fill(SplitSpec, spec.split, path, "split")
    if isinstance(spec.rates, Mapping):
        spec.rates = _fill(RatesSpec, spec.rates, path, "rates")
    _check(spec, path)
    return spec


def names_of(name: str, spec: FieldSpec) -> list[str]:
    """The schema fields that one entry of ``fields`` becomes."""
    if spec.kind == "time":
        return [f"{name}_{part}" for part in spec.parts]
    if spec.rate is not None:
        of = spec.rate.of
        return [*([name] if len(of) == 1 else [f"{name}_{task}" for task in of]), f"{name}_count"]
    return [name]


def expression(task: TaskSpec, path: Path, name: str, key: str = "label") -> Expression:
    """The parsed label of a task, or its ``observed``. A UserError names its place in the YAML."""
    try:
        return Expression(str(getattr(task, key)))
    except ValueError as error:
        raise UserError(f"{path}: tasks.{name}.{key}: {error}") from None


def choose(value: Any, choices: tuple[str, ...], path: Path, key: str) -> None:
    """Raise UserError unless ``value`` is one of ``choices``."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{path}: {key}: {value!r} is not one of {', '.join(choices)}{hint}")


def _mapping(value: Any, path: Path, key: str) -> list[tuple[Any, Any]]:
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{path}: {key}: names at least one of them, as a mapping")
    return list(value.items())


def _join(value: Any, path: Path, key: str) -> JoinSpec:
    spec = _fill(JoinSpec, value, path, key)
    for name in ("file", "by"):
        if not getattr(spec, name):
            raise UserError(f"{path}: {key}.{name}: must be set")
    spec.key = spec.key or spec.by
    return spec


def _field(value: Any, path: Path, key: str) -> FieldSpec:
    spec = _fill(FieldSpec, value, path, key)
    kinds = [k for k in ("rate", "count") if k in value]
    if not kinds:
        return spec
    others = [str(k) for k in value if k not in (kinds[0], "side")]
    if others:
        raise UserError(f"{path}: {key}.{others[0]}: does not go with {kinds[0]}, which is made from the log")
    asked = _fill(RateSpec, value[kinds[0]], path, f"{key}.{kinds[0]}")
    asked.by, asked.of = _texts(asked.by, path, f"{key}.{kinds[0]}.by"), _texts(asked.of, path, f"{key}.{kinds[0]}.of")
    if not asked.by:
        raise UserError(f"{path}: {key}.{kinds[0]}.by: must name a field or column")
    if bool(asked.of) != (kinds[0] == "rate"):
        hint = "must name a task, or be an expression" if kinds[0] == "rate" else "a count is of rows; leave it out"
        raise UserError(f"{path}: {key}.{kinds[0]}.of: {hint}")
    if kinds[0] == "count" and "smoothing" in value["count"]:
        raise UserError(f"{path}: {key}.count.smoothing: a count is not smoothed; leave it out")
    if not 1e-3 <= asked.smoothing <= 1e9:
        raise UserError(f"{path}: {key}.rate.smoothing: {asked.smoothing!r} is not a number of rows from 0.001 to 1e9")
    spec.kind = "rate"
    if len(asked.by) > 1 and "side" not in value:
        spec.side = "cross"
    setattr(spec, kinds[0], asked)
    return spec


def _texts(value: Any, path: Path, key: str) -> list[str]:
    """A text, or a list of unique texts, as a list."""
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(t, str) and t for t in texts) or len(set(texts)) < len(texts):
        raise UserError(f"{path}: {key}: {value!r} is neither a text nor a list of different texts")
    return texts


def _task(value: Any, path: Path, key: str) -> TaskSpec:
    return _fill(TaskSpec, value if isinstance(value, Mapping) else {"label": value}, path, key)


def _fill(kind: type[T], content: Any, path: Path, key: str) -> T:
    """Build a dataclass from a mapping, rejecting unknown keys and values of the wrong type."""
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: {key or 'the file'}: must be a mapping of settings")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for name, value in content.items():
        where = f"{key}.{name}" if key else str(name)
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {near[0]}?" if near else f" (keys: {', '.join(known)})"
            raise UserError(f"{path}: {where}: there is no such key{hint}")
        wanted = str(known[str(name)].type)
        if not _is_of_type(value, wanted):
            raise UserError(f"{path}: {where}: {value!r} is not {_TYPES[wanted]}")
    return kind(**content)


_TYPES = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}
_TYPES |= {
    "list[str]": "a list of texts",
    "str | None": "text",
    "SplitSpec": "a mapping of settings",
    "RatesSpec": "a mapping of settings",
}


def _is_of_type(value: Any, wanted: str) -> bool:
    """Whether a YAML value fits the annotation of a dataclass field; other annotations are checked elsewhere."""
    match wanted:
        case "str":
            return isinstance(value, str)
        case "int":
            return is_whole(value)
        case "float":
            return is_number(value)
        case "bool":
            return isinstance(value, bool)
        case "list[str]":
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        case "str | None":
            return value is None or isinstance(value, str)
        case "SplitSpec" | "RatesSpec":
            return isinstance(value, Mapping)
        case _:
            return True


def _check_name(name: str, path: Path, key: str) -> None:
    """Names become file names and parts of metric keys."""
    if not name or name.startswith(".") or "/" in name or "\0" in name or len(name.encode()) > 200:
        raise UserError(f"{path}: {key}: {name[:80]!r} cannot be a name (no slash, no full stop in front, 200 bytes)")


def _check(spec: TableSpec, path: Path) -> None:
    for name, item in spec.fields.items():
        key = f"fields.{name}"
        _check_name(name, path, key)
        if item.kind == "rate" and (item.rate or item.count):
            continue
        choose(item.kind, KINDS, path, f"{key}.kind")
        choose(item.transform, TRANSFORMS, path, f"{key}.transform")
        choose(item.pooling, tuple(Pooling), path, f"{key}.pooling")
        choose(item.unit, ("s", "ms"), path, f"{key}.unit")
        choose(item.keep, tuple(Keep), path, f"{key}.keep")
        if not abs(item.utc_offset) <= 24:
            raise UserError(f"{path}: {key}.utc_offset: {item.utc_offset!r} is not a number of hours up to 24")
        for part in item.parts:
            choose(part, tuple(TIME_PARTS), path, f"{key}.parts")
        if item.buckets < 2 or not 1 <= item.max_values < 2**15 or item.min_count < 1:
            raise UserError(f"{path}: {key}: buckets is at least 2, max_values 1 to 32767, min_count at least 1")
        item.column = item.column or name
    made = [name for n, f in spec.fields.items() for name in names_of(n, f)]
    for name in made:
        if made.count(name) > 1:
            raise UserError(f"{path}: fields.{name}: this name is also that of a part of a time field, or of a rate")
    for key, character in (("separator", spec.separator), ("quote", spec.quote or "")):
        if len(character.encode()) > 1:
            raise UserError(f"{path}: {key}: {character!r} is not a single character")
    _check_encoding(spec.encoding, path)
    for name in spec.columns:
        if spec.columns.count(name) > 1:
            raise UserError(f"{path}: columns: {name!r} occurs twice")
    for name, task in spec.tasks.items():
        _check_name(name, path, f"tasks.{name}")
        choose(task.train_on, ("observed", "all"), path, f"tasks.{name}.train_on")
        if task.observed_where is not None:
            choose(task.observed_where, tuple(spec.tasks), path, f"tasks.{name}.observed_where")
        expression(task, path, name)
        if not 0 <= task.weight < math.inf:
            raise UserError(f"{path}: tasks.{name}.weight: {task.weight!r} is not a number from 0")
        if task.observed:
            expression(task, path, name, "observed")
    try:
        check_targets([(name, task.joint, task.dislike) for name, task in spec.tasks.items()])
    except ValueError as error:
        raise UserError(f"{path}: tasks: {error}") from None
    _check_no_label(spec, path)
    for key in ("user", "position"):
        value = getattr(spec, key)
        if value is not None:
            choose(value, tuple(n for n, f in spec.fields.items() if f.kind != "rate"), path, key)
    _check_split(spec.split, path)
    _check_rates(spec, path)
    if not spec.header and not spec.columns:
        raise UserError(f"{path}: columns: name them, since header is false")


def _check_encoding(encoding: str, path: Path) -> None:
    try:
        text = not encoding or codecs.lookup(encoding)._is_text_encoding
    except (LookupError, ValueError):
        text = False
    if not text:
        raise UserError(f"{path}: encoding: {encoding!r} is none that is known, such as gb18030, latin-1 or utf-16")


def _check_no_label(spec: TableSpec, path: Path) -> None:
    """Reject a field read from a column of a label: it would leak the answer."""
    made = {
        column: f"tasks.{name}" for name, task in spec.tasks.items() for column in expression(task, path, name).columns
    }
    for name, item in spec.fields.items():
        if item.column in made:
            raise UserError(
                f"{path}: fields.{name}: column {item.column} is what the label of {made[item.column]} is made of, so "
                "a model would be told the answer; take it out of fields"
            )


def _check_rates(spec: TableSpec, path: Path) -> None:
    choose(spec.rates.every, ("row", "day"), path, "rates.every")
    choose(spec.rates.rows, ("all", "train"), path, "rates.rows")
    if not 2 <= spec.rates.folds <= 1000:
        raise UserError(f"{path}: rates.folds: {spec.rates.folds} is not a whole number from 2 to 1000")
    made = [name for name, item in spec.fields.items() if item.kind == "rate"]
    for name, item in spec.fields.items():
        for by in (item.rate or item.count).by if item.kind == "rate" else ():
            if by in made:
                raise UserError(f"{path}: fields.{name}: by {by}, which is a rate or count itself, and no key")
        for of in item.rate.of if item.rate else ():
            if of in spec.tasks:
                continue
            if len(item.rate.of) > 1:
                choose(of, tuple(spec.tasks), path, f"fields.{name}.rate.of")
            try:
                Expression(of)
            except ValueError as error:
                raise UserError(f"{path}: fields.{name}.rate.of: neither a task nor an expression: {error}") from None


def _check_split(split: SplitSpec, path: Path) -> None:
    choose(split.by, ("fraction", "hash", "time", "column"), path, "split.by")
    if split.by != "fraction" and not split.column:
        raise UserError(f"{path}: split.column: by {split.by} needs a column")
    for key in ("validation", "test"):
        value = getattr(split, key)
        if split.by == "column":
            # The defaults are fractions; without values there may still be a file for this split.
            values = [] if isinstance(value, float) or value is None else value
            texts = [str(v) for v in (values if isinstance(values, list) else [values])]
            found = id_text(pl.Series(texts, dtype=pl.String), path).to_list()
            if None in found:
                raise UserError(f"{path}: split.{key}: an empty value; rows without one are trained on")
            setattr(split, key, found)
        elif not is_number(value) or not 0 <= value < 1:
            raise UserError(f"{path}: split.{key}: {value!r} is not a share between 0 and 1")
    if split.by == "column" and (both := set(split.validation) & set(split.test)):
        raise UserError(f"{path}: split: {min(both)!r} is listed for validation and for test")
    if split.seed < 0:
        raise UserError(f"{path}: split.seed: {split.seed} is not a whole number from 0")
    if split.by != "column" and split.validation + split.test >= 1:
        raise UserError(f"{path}: split: validation and test leave no rows to train on")
    if (split.validation_from is None) != (split.test_from is None):
        raise UserError(f"{path}: split: set both validation_from and test_from, or neither")
    starts = [split.validation_from, split.test_from]
    if split.test_from is not None:
        for start in starts:
            if isinstance(start, bool) or not isinstance(start, int | float | str | date):
                raise UserError(
                    f"{path}: split.validation_from, test_from: {start!r} is neither a number in units of "
                    f"{split.column} nor a date or time"
                )
        if all(isinstance(start, int | float) for start in starts) and starts[0] > starts[1]:
            raise UserError(f"{path}: split.validation_from: {starts[0]} is later than test_from, {starts[1]}")
