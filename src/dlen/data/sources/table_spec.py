"""The YAML that describes the columns of a user's table, as dataclasses that declare its valid values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from dlen.data.ragged import Keep
from dlen.data.sources.expression import Expression
from dlen.errors import UserError
from dlen.schema import Pooling, TaskKind
from dlen.valid import Matching, OneOf, Range

TIME_PARTS = {"hour": 24, "weekday": 7, "day": 31, "month": 12}

LabelWeight = Annotated[float, Range(0)] | Annotated[str, Matching(".+", "the name of a column")]


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
    smoothing: Annotated[float, Range(1e-3, 1e9)] = 20.0


@dataclass(slots=True)
class HistorySpec:
    """A field's ``history``: what happened in earlier rows with the same key, newest last.

    Attributes:
        of: a field of kind id whose values are listed, or several fields, each of which becomes a list. A list shares
            the vocabulary and vectors of its field.
        by: field or column used as the key, or several that form a key together.
        where: a task or label expression: only rows in which it is 1 are listed. Default: all rows.
        labels: tasks whose labels are told for each listed row, together as one id.
        length: maximum number of listed rows; the newest stay.
        gap: also list how long before the row each listed row was, as one of 32 buckets that double.
    """

    of: Any = field(default_factory=list)
    by: Any = field(default_factory=list)
    where: str = ""
    labels: list[str] = field(default_factory=list)
    length: Annotated[int, Range(1, 2**15 - 1)] = 50
    gap: bool = True


@dataclass(slots=True)
class RatesSpec:
    """Settings shared by all rates, counts and histories.

    Attributes:
        time: a field of kind time, or a column of increasing numbers: a row sees only strictly earlier rows. Default:
            the field of kind time, or the column of a split by time; needed with several. With ``none``, or without
            either, training rows see training rows of other folds, and all other rows see the training rows; histories
            need a time.
        every: row, or day: a row sees what was known at the start of its day.
        rows: all, or train: labels of the other splits are never counted, even if they are earlier.
        folds: number of folds without a time.
        ids: auto, or none: whether id fields get a rate of every binary task by themselves, if the rows have a time and
            the YAML has no rate or count of its own. A field has to have more than 256 ids, and a quarter of the rows
            an id that occurred before.
    """

    time: str = ""
    every: Annotated[str, OneOf("row", "day")] = "row"
    rows: Annotated[str, OneOf("all", "train")] = "all"
    folds: Annotated[int, Range(2, 1000)] = 5
    ids: Annotated[str, OneOf("auto", "none")] = "auto"


@dataclass(slots=True)
class FieldSpec:
    """One entry of ``fields``.

    Attributes:
        rate: numbers computed from the log itself instead of a column: how often labels were 1 for a key.
        count: like ``rate``: the number of rows with a key.
        history: ordered lists computed from the log itself: the earlier rows with the same key.
        kind: id, ids, sequence, numeric, vector, time or view. A sequence is an ordered list of ids, such as a user's
            last videos; a vector is a list of numbers, as many in each cell, such as a pretrained vector of the video;
            a view is a number known only afterwards, such as a play time: evidence in training, never an input.
        column: column to read. Default: the name of the field.
        side: user, item, cross or context.
        min_count: id, ids: values with fewer occurrences are unknown.
        hash: id, ids, sequence: number of buckets that values are hashed to, without a vocabulary; 0 for a vocabulary.
        dim: id, ids, sequence: length of each id's vector, if shorter than the model's; 0 for the model's.
        share: id, ids, sequence: use the vocabulary and the vectors of this other field of kind id or ids.
        order: sequence: oldest_first or newest_first, the order in the cell.
        along: sequence: name of another sequence; this is a parallel list of it, with one value for each of its values.
        separator: ids, sequence, vector: separator between values.
        weight_separator: ids: separator between a value and its weight, as in ``red:0.5``.
        max_values: ids, sequence: maximum number of values; longer lists are truncated. Of a sequence the newest stay.
        keep: ids: values kept in a truncated list: heaviest (ties keep the first), first or last.
        pooling: ids: mean or sum of the values' vectors.
        transform: numeric: standardise; log1p, sign(x) log(1 + abs(x)) standardised, for counts and amounts; or
            quantile, the id of an equal-sized bucket.
        buckets: numeric with quantile, view: number of buckets.
        of: view: task, or tasks, whose labels the number depends on, such as a long view whose time this is.
        format: time: text format such as ``%d.%m.%Y %H:%M``. By default the column holds dates, time stamps, ISO 8601
            text such as ``2023-11-14T10:00:00+08:00``, or numbers since 1970.
        unit: time: unit of numbers since 1970: s or ms.
        utc_offset: time: hours added before the parts are extracted; a stamp with a zone is first converted to UTC.
        parts: time: hour, weekday, day, month; each becomes an id field.
    """

    kind: Annotated[str, OneOf("id", "ids", "sequence", "numeric", "vector", "time", "view")] = "id"
    column: str = ""
    side: Annotated[str, OneOf("user", "item", "cross", "context")] = "context"
    min_count: Annotated[int, Range(1)] = 1
    hash: Annotated[int, Range(0, 10**8)] = 0
    dim: Annotated[int, Range(0)] = 0
    share: str = ""
    order: Annotated[str, OneOf("oldest_first", "newest_first")] = "oldest_first"
    along: str = ""
    separator: str = "|"
    weight_separator: str = ""
    max_values: Annotated[int, Range(1, 2**15 - 1)] = 20
    keep: Annotated[str, OneOf(*Keep)] = "heaviest"
    pooling: Annotated[str, OneOf(*Pooling)] = "mean"
    transform: Annotated[str, OneOf("standardise", "log1p", "quantile")] = "standardise"
    buckets: Annotated[int, Range(2)] = 20
    of: Any = None
    format: str = ""
    unit: Annotated[str, OneOf("s", "ms")] = "s"
    utc_offset: Annotated[float, Range(-24, 24)] = 0.0
    parts: Annotated[list[str], OneOf(*TIME_PARTS)] = field(default_factory=lambda: ["hour", "weekday"])
    rate: Any = None
    count: Any = None
    history: Any = None


@dataclass(slots=True)
class TaskSpec:
    """One entry of ``tasks``.

    Attributes:
        label: column of 0 and 1, or an expression such as ``label == 0``; of a regression, a column of numbers.
        observed: column of 0 and 1, or an expression; if it is 0 or empty, the label is unknown.
        observed_where: the task counts only in rows where this other task is positive.
        train_on: observed (the default) or all.
        joint: name of the event "this task and its parents happened", measured over all rows.
        weight: factor of the task's loss; or a column with the weight of the label in each row of training.
        dislike: a positive shows that the user does not prefer the item.
        kind: binary; or regression, which predicts the number in the column of the label.
        loss: regression: mse, huber or weighted_logistic.
        transform: regression: none, or log1p.
    """

    label: str = ""
    observed: str = ""
    observed_where: str | None = None
    train_on: Annotated[str, OneOf("observed", "all")] = "observed"
    joint: str = ""
    weight: LabelWeight = 1.0
    dislike: bool = False
    kind: Annotated[str, OneOf(*TaskKind)] = "binary"
    loss: Annotated[str, OneOf("mse", "huber", "weighted_logistic")] = "mse"
    transform: Annotated[str, OneOf("none", "log1p")] = "none"

    @property
    def is_regression(self) -> bool:
        """Whether the task predicts a number."""
        return self.kind == TaskKind.REGRESSION


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

    by: Annotated[str, OneOf("fraction", "hash", "time", "column")] = "fraction"
    column: str = ""
    validation: Any = 0.1
    test: Any = 0.1
    validation_from: Any = None
    test_from: Any = None
    seed: Annotated[int, Range(0)] = 0
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
            of a name, ``**`` matches any folders, and a folder stands for all CSV, TSV and Parquet files in it and in
            its partitions, folders such as ``day=2026-11-24`` whose names are columns of the files in them.
        joins: tables joined to the rows by a key, by name.
        obtain: where to get the files, for the message if one is missing.
        fields: inputs of the models, by name.
        tasks: labels, by name.
        weight: column with the weight of each row in training.
        where: expression, as of a label, that rows have to satisfy; others are left out when the table is prepared.
        split: how rows are split; with files for train and test, how validation is taken from train.
        rates: how rates, counts and histories are computed.
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
        path: path of the YAML itself, for messages.
    """

    files: Any = None
    joins: dict[str, JoinSpec] = field(default_factory=dict)
    obtain: str = ""
    fields: dict[str, FieldSpec] = field(default_factory=dict)
    tasks: dict[str, TaskSpec] = field(default_factory=dict)
    weight: str = ""
    where: str = ""
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
    path: Path = field(default=Path(), init=False)


def names_of(name: str, spec: FieldSpec) -> list[str]:
    """The schema fields that one entry of ``fields`` becomes."""
    if spec.kind == "time":
        return [f"{name}_{part}" for part in spec.parts]
    if spec.rate is not None:
        return [name] if len(spec.rate.of) == 1 else [f"{name}_{task}" for task in spec.rate.of]
    if spec.history is not None:
        lists = [name] if len(spec.history.of) == 1 else [f"{name}_{of}" for of in spec.history.of]
        further = {"labels": bool(spec.history.labels), "gap": spec.history.gap}
        return [*lists, *(f"{name}_{part}" for part, wanted in further.items() if wanted)]
    return [name]


def weight_columns(spec: TableSpec) -> dict[str, str]:
    """The columns that hold weights, by the key that names them."""
    of_tasks = {f"tasks.{name}.weight": t.weight for name, t in spec.tasks.items() if isinstance(t.weight, str)}
    return ({"weight": spec.weight} if spec.weight else {}) | of_tasks


def expression(spec: TableSpec, task: str, key: str = "label") -> Expression:
    """The parsed label of a task, or its ``observed``. A UserError names its place in the YAML."""
    try:
        return Expression(str(getattr(spec.tasks[task], key)))
    except ValueError as error:
        raise UserError(f"{spec.path}: tasks.{task}.{key}: {error}") from None
