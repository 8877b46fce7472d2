"""A table of raw values with one column per schema field, the format of new rows for sources without a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dlen.data.sources.table import Table
from dlen.data.sources.table_spec import FieldSpec, TableSpec, TaskSpec
from dlen.data.split import Split
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.schema import Field, Kind


def rows_by_field(path: Path, store: Store, max_values: int = 20, labels: bool = False) -> Iterator[Split]:
    """Read rows of a CSV, TSV or Parquet file with one column per field of the store's schema.

    Ids are written as in the raw log. Several ids are a list, or separated by ``|``, each followed by ``:`` and its
    weight.

    Args:
        path: path of the file.
        store: store whose vocabularies encode the rows.
        max_values: maximum number of values of a multi-valued field in a row; the heaviest are kept.
        labels: also read the labels, from one column per task.

    Raises:
        UserError: a column is missing, or a cell cannot be read.
    """
    for field in store.schema.of_kind(Kind.NUMERIC):
        raise UserError(f"{path}: cannot read numeric field {field.name}; its scaling is known to its own source only")
    fields = {f.name: _spec(f, max_values) for f in store.schema.fields}
    name = store.content["name"]
    tasks = {task: TaskSpec(label=f"col({task!r})") for task in store.schema.task_names}
    content = TableSpec(fields=fields, tasks=tasks)
    return Table(f"the fields of {name}", name, files=str(path), content=content).read(path, store, labels)


def _spec(field: Field, max_values: int) -> FieldSpec:
    several = field.kind is Kind.IDS
    return FieldSpec(
        kind="ids" if several else "id",
        column=field.name,
        weight_separator=":" if several else "",
        max_values=max_values,
        pooling=str(field.pooling),
    )
