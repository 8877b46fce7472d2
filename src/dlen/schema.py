"""Field, Task and Schema: the contract between prepared data and models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from dlen.errors import UserError
from dlen.files import read_mapping
from dlen.label_patterns import Patterns


class Kind(StrEnum):
    """How a field's values enter a model."""

    ID = "id"  # exactly one id per row; a missing id counts as unknown
    IDS = "ids"  # any number of weighted ids per row
    NUMERIC = "numeric"  # one float per row, scaled with statistics of the training rows
    SEQUENCE = "sequence"  # an ordered list of ids, such as the videos that a user watched, oldest first
    VECTOR = "vector"  # a fixed number of floats per row, such as a pretrained vector of the video, scaled


class Pooling(StrEnum):
    """How the embeddings of a multi-valued field are combined."""

    MEAN = "mean"  # weighted mean: weights say which values matter more
    SUM = "sum"  # weighted sum: the weight itself is a signal, such as a match score


class TaskKind(StrEnum):
    """What a task predicts."""

    BINARY = "binary"  # the probability that something happens
    REGRESSION = "regression"  # a number, such as the seconds watched


@dataclass(frozen=True, slots=True)
class Field:
    """One input of a model.

    Attributes:
        name: unique name in the schema.
        kind: single id, multiple ids, a number, an ordered list of ids, or a vector.
        side: what the field describes: ``user``, ``item``, ``cross`` or ``context``.
        vocab_size: number of ids, including id 0 for unknown; 0 for fields without ids.
        pooling: how the vectors of multiple ids are combined.
        share: field whose ids and vectors this field uses, such as the candidate's for a history of candidates; empty
            for a field with its own.
        sequence: name of the sequence that a field of kind ``sequence`` is a list of. All lists of a sequence have the
            same length in a row: values at the same place belong together. Empty for all other fields.
        dim: length of the vectors of a field with ids of its own, if shorter than the model's; 0 for the model's.
        size: number of floats of a field of kind ``vector``; 0 for all other fields.
    """

    name: str
    kind: Kind
    side: str = "context"
    vocab_size: int = 0
    pooling: Pooling = Pooling.MEAN
    share: str = ""
    sequence: str = ""
    dim: int = 0
    size: int = 0

    @property
    def has_ids(self) -> bool:
        """Whether the values are ids, which have rows in the embedding table."""
        return self.kind not in (Kind.NUMERIC, Kind.VECTOR)


@dataclass(frozen=True, slots=True)
class Task:
    """One label to predict.

    Attributes:
        name: unique name; also the last part of metric keys.
        rate: positive rate among the training rows that train this task; .5 for a regression task, as its prediction
            enters rankings by its logistic function, which is .5 at the mean of training.
        observed_where: parent task; this task is evaluated on rows where the parent is positive (cvr where ctr).
        train_on: ``observed`` trains on the rows that evaluate the task, ``all`` on every row.
        joint: name of the joint event "this task and its whole chain of parents are positive", which is evaluated over
            all rows (``ctcvr``); empty for tasks without ``observed_where``.
        weight: factor of this task's loss in the sum.
        dislike: a positive means that the user does *not* prefer the item (hide, report, hate). It is not an
            interaction in the paper's sense, and the latent head swaps its two conditional probabilities.
        kind: binary, or regression.
        loss: loss of a regression task: ``mse``, ``huber`` or ``weighted_logistic``; see
            :class:`dlen.models.values.PointValues`.
        transform: what is standardised in a regression task: the label (``none``), or sign(y) log(1 + abs(y))
            (``log1p``).
        mean: of the transformed label in the training rows, which is subtracted; 0 for ``weighted_logistic``.
        deviation: of the transformed label in the training rows, which it is divided by; for ``weighted_logistic``
            the mean.
    """

    name: str
    rate: float
    observed_where: str | None = None
    train_on: str = "observed"
    joint: str = ""
    weight: float = 1.0
    dislike: bool = False
    kind: TaskKind = TaskKind.BINARY
    loss: str = "mse"
    transform: str = "none"
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def is_regression(self) -> bool:
        """Whether the task predicts a number."""
        return self.kind is TaskKind.REGRESSION


@dataclass(frozen=True, slots=True)
class View:
    """A column that is known only afterwards, such as a play time: evidence for DLEN's hidden state, never an input.

    Attributes:
        name: unique name in the schema.
        bins: number of bins of its values.
        of: tasks whose labels its values depend on as well, such as a click and a long view.
    """

    name: str
    bins: int
    of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Schema:
    """The fields and tasks of a prepared data set.

    All id fields, single and multi-valued, share one embedding table: field ``f`` owns the rows
    ``offset(f) .. offset(f) + vocab_size - 1``, the first of which is its unknown id. A field with ``share`` has the
    rows of the other field. The rows of fields with a ``dim`` come last.

    Attributes:
        fields: all fields; within each kind, in the column order of a batch.
        tasks: all tasks, in the order of every (B, T) tensor.
        truth: names of columns known only to a simulator, used for evaluation but never as input.
        user: name of the field that identifies the user of an impression.
        position: name of the field with the position on the page.
        views: columns known only afterwards, in the order of :attr:`Batch.views`.
        patterns: how often labels occur together in the training rows, see :mod:`dlen.label_patterns`; empty for a
            schema that was not prepared from data.

    Raises:
        ValueError: names repeat or clash with metric names, ``observed_where`` names an unknown or circular parent or
            a regression task, a regression task has a setting of binary tasks, ``share`` names a field that has no ids
            of its own or another number of them, a view is of no binary task, a field without ids of its own has a
            ``dim``, or a field of kind ``vector`` has no size.

    Example:
        >>> fields = (Field("user", Kind.ID, "user", 100), Field("tags", Kind.IDS, "item", 50))
        >>> schema = Schema(fields, (Task("click", 0.2), Task("buy", 0.1, observed_where="click")), user="user")
        >>> schema.offsets
        {'user': 0, 'tags': 100}
        >>> schema.task_names
        ['click', 'buy']
    """

    fields: tuple[Field, ...]
    tasks: tuple[Task, ...]
    truth: tuple[str, ...] = ()
    user: str | None = None
    position: str | None = None
    views: tuple[View, ...] = ()
    patterns: Patterns = ()

    def __post_init__(self) -> None:
        for kind, names in (("field", [f.name for f in self.fields]), ("task", self.task_names)):
            repeated = {n for n in names if names.count(n) > 1}
            if repeated:
                raise ValueError(f"{kind} names repeat: {', '.join(sorted(repeated))}")
        owners = {f.name: f for f in self.owners}
        for field in self.fields:
            if (field.kind is Kind.VECTOR) != (field.size > 0):
                raise ValueError(f"field {field.name}: size must be above 0 for kind vector alone, got {field.size}")
            if field.share and (field.share not in owners or owners[field.share].vocab_size != field.vocab_size):
                raise ValueError(f"field {field.name}: share must name a field with the same ids, got {field.share!r}")
            if field.dim and field.name not in owners:
                raise ValueError(f"field {field.name}: dim is for fields with ids of their own, got {field.dim}")
        for task in self.tasks:
            parents = list(self.chain(task.name))[1:]
            if any(self.tasks[parent].is_regression for parent in parents):
                raise ValueError(f"task {task.name}: observed_where names a regression task, which cannot happen")
            if task.is_regression and (task.dislike or task.joint or task.train_on != "observed"):
                raise ValueError(
                    f"task {task.name}: dislike, joint and train_on are of binary tasks, not of regression"
                )
        for view in self.views:
            wrong = set(view.of) - {task.name for task in self.tasks if not task.is_regression}
            if wrong:
                raise ValueError(f"view {view.name}: of must name binary tasks, got {', '.join(sorted(wrong))}")
        check_targets([(t.name, t.joint, t.dislike) for t in self.tasks])

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, in order."""
        return [task.name for task in self.tasks]

    @property
    def regressions(self) -> list[int]:
        """Indices of the regression tasks."""
        return [index for index, task in enumerate(self.tasks) if task.is_regression]

    @property
    def binary(self) -> Schema:
        """The schema without its regression tasks."""
        return replace(self, tasks=tuple(task for task in self.tasks if not task.is_regression), patterns=())

    def of_kind(self, kind: Kind) -> list[Field]:
        """The fields of one kind, in the column order of a batch."""
        return [f for f in self.fields if f.kind is kind]

    @property
    def user_column(self) -> int | None:
        """Column of the user field in :attr:`Batch.ids`; None if no single id names the user."""
        names = [f.name for f in self.of_kind(Kind.ID)]
        return names.index(self.user) if self.user in names else None

    @property
    def owners(self) -> list[Field]:
        """The fields that have their own rows in the embedding table, in the order of these rows."""
        return sorted((f for f in self.fields if f.has_ids and not f.share), key=lambda f: f.dim)

    @property
    def by_dim(self) -> dict[int, Schema]:
        """The fields with ids for each ``dim``, in the order of their rows; 0 comes first, even without fields."""
        dims = {f.name: f.dim for f in self.owners}
        fields = [(dims[f.share or f.name], f) for f in self.fields if f.has_ids]
        return {
            dim: replace(self, fields=tuple(f for own, f in fields if own == dim))
            for dim in sorted({0, *dims.values()})
        }

    @property
    def sequences(self) -> dict[str, list[Field]]:
        """The lists of each sequence, by its name, in the order of :attr:`Batch.sequences`."""
        lists = self.of_kind(Kind.SEQUENCE)
        return {name: [f for f in lists if f.sequence == name] for name in dict.fromkeys(f.sequence for f in lists)}

    @property
    def lists(self) -> list[Field]:
        """The lists of all sequences, those of a sequence next to each other."""
        return [field for lists in self.sequences.values() for field in lists]

    def owner(self, name: str) -> str:
        """Name of the field whose ids a field uses: itself, or the one that it shares them with."""
        return next((f.share for f in self.fields if f.name == name and f.share), name)

    @property
    def num_embeddings(self) -> int:
        """Rows of the shared embedding table."""
        return sum(f.vocab_size for f in self.owners)

    @property
    def offsets(self) -> dict[str, int]:
        """First row of each id field in the shared embedding table."""
        own = first_rows({f.name: f.vocab_size for f in self.owners})
        return {f.name: own[f.share or f.name] for f in self.fields if f.has_ids}

    def rows(self, name: str) -> slice:
        """Rows of an id field in the shared embedding table; the first is its unknown id."""
        first = self.offsets[name]
        return slice(first, first + next(f.vocab_size for f in self.fields if f.name == name))

    def task_index(self, name: str) -> int:
        """Index of a task; ``ValueError`` for an unknown name."""
        return self.task_names.index(name)

    def chain(self, name: str) -> Iterator[int]:
        """Yield the indices of a task and its parents, nearest first."""
        seen: list[str] = []
        current: str | None = name
        while current is not None:
            if current in seen:
                raise ValueError(f"task {name}: observed_where is circular ({' -> '.join(seen)})")
            if current not in self.task_names:
                raise ValueError(f"task {seen[-1]}: observed_where names an unknown task {current!r}")
            seen.append(current)
            index = self.task_index(current)
            yield index
            current = self.tasks[index].observed_where

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain containers, as written to ``schema.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Schema:
        """Build a schema from the result of :meth:`to_dict`."""
        fields = tuple(
            Field(**{**f, "kind": Kind(f["kind"]), "pooling": Pooling(f["pooling"])}) for f in data["fields"]
        )
        tasks = tuple(Task(**{**t, "kind": TaskKind(t.get("kind", "binary"))}) for t in data["tasks"])
        views = tuple(View(**{**view, "of": tuple(view["of"])}) for view in data.get("views", ()))
        return cls(fields, tasks, tuple(data["truth"]), data["user"], data["position"], views, _patterns(data, tasks))


def _patterns(data: dict[str, Any], tasks: Sequence[Task]) -> Patterns:
    patterns = tuple((str(pattern), float(weight)) for pattern, weight in data.get("patterns", ()))
    if any(len(pattern) != len(tasks) or set(pattern) - set("01-") for pattern, _ in patterns):
        raise ValueError("patterns: expected one of 0, 1 and - for each task")
    return patterns


def check_known_tasks(setting: str, names: Iterable[str], tasks: Sequence[str]) -> None:
    """Raise ValueError if a setting by task names an unknown task."""
    for name in names:
        if name not in tasks:
            raise ValueError(f"{setting} name an unknown task {name}; the tasks are {', '.join(tasks)}")


def check_targets(tasks: Sequence[tuple[str, str, bool]]) -> None:
    """Check that names of tasks and joint events are unique: they become metric keys such as ``test/auc/click``.

    Args:
        tasks: for each task: name, joint event (or an empty string), and whether it is a dislike.

    Raises:
        ValueError: a name is that of another target or of another metric.
    """
    taken = dict.fromkeys(("mean", "weighted", "labels", "up_any", "up_truth"), "a metric over all tasks")
    taken |= {f"up_{name}": f"a metric of P(UP) against {name}" for name, _, dislike in tasks if dislike}
    for kind, names in (("task", [t[0] for t in tasks]), ("joint event", [t[1] for t in tasks if t[1]])):
        for name in names:
            if name in taken:
                raise ValueError(f"{kind} {name}: the name is already used for {taken[name]}; choose another")
            taken[name] = f"another {kind}"


def read_schema(path: Path) -> Schema:
    """Read the ``schema.json`` of a run folder.

    Raises:
        UserError: the file is not such a schema.
    """
    try:
        return Schema.from_dict(read_mapping(path))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is not the schema of a run ({error!r})") from None


def first_rows(sizes: Mapping[str, int]) -> dict[str, int]:
    """First row of each field in an embedding table, by the numbers of rows of the fields in their order."""
    return dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
