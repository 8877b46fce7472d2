"""Finds the files that a table's YAML names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from dlen.data.remote import RemoteFiles, is_address
from dlen.data.sources.expression import Expression
from dlen.data.sources.table_partitions import partition_of, selected
from dlen.data.sources.table_spec import TableSpec
from dlen.errors import UserError

SPLITS = ("train", "validation", "test")
_ENDINGS = tuple(f".{kind}{p}" for kind in ("csv", "tsv", "tab", "txt") for p in ("", ".gz", ".bz2", ".xz"))
_ENDINGS += (".parquet", ".pq")  # files of a folder that are read


def matching_in(place: str | Path, remote: RemoteFiles, pattern: str) -> list[Path]:
    """The files of a path, pattern or folder, see :func:`matching`; copies, yet to be made, of those elsewhere.

    Args:
        place: path or address of the folder that the paths of a table are relative to.
        remote: lists and copies files at addresses.
        pattern: path or address of a file or folder, or a pattern.
    """
    address = pattern
    if is_address(str(place)) and not is_address(pattern):
        address = f"{str(place).rstrip('/')}/{pattern}"
    if is_address(address):
        return remote.matching(address, _is_table_in_folder)
    return matching(Path(place), pattern)


def files_by_split(spec: TableSpec, files: object, find: Callable[[str], list[Path]]) -> dict[str, list[Path]]:
    """The files of a table by split; ``all`` if one table is to be split.

    Args:
        spec: spec of the table.
        files: its ``files``, or what replaces them.
        find: finds the files of a path, a pattern or a folder.

    Raises:
        UserError: no file is named, one is named twice, or the splits are incomplete.
    """
    if files is None:
        raise UserError(f"{spec.path}: files: is missing; name the files of the table here, or set data.files=FILE")
    patterns = files if isinstance(files, dict) else {"all": files}
    if set(patterns) not in ({"all"}, {"train", "test"}, set(SPLITS)):
        raise UserError(
            f"{spec.path}: files: has the keys {', '.join(map(str, patterns))}; give one table, or files for train and "
            "test, or for train, validation and test"
        )
    split = spec.split
    if split.by == "column" and set(patterns) != set(SPLITS) and not split.validation:
        raise UserError(
            f"{spec.path}: split.validation: is empty; list the values of {split.column} that form the validation split"
        )
    by_split = {
        name: [match for p in (given if isinstance(given, list) else [given]) for match in find(str(p))]
        for name, given in patterns.items()
    }
    _check_unique([p for paths in by_split.values() for p in paths], spec.path)
    where = Expression(spec.where) if spec.where else None
    kept = {name: selected(paths, where, spec.path) for name, paths in by_split.items()}
    for name, paths in kept.items():
        if not paths and by_split[name]:
            of = "" if name == "all" else f" of {name}"
            raise UserError(f"{spec.path}: where: {spec.where} leaves none of the {len(by_split[name])} files{of}")
    return kept


def join_files(spec: TableSpec, find: Callable[[str], list[Path]]) -> dict[str, list[Path]]:
    """The files of each join."""
    return {name: find(join.file) for name, join in spec.joins.items()}


def _check_unique(files: list[Path], path: Path) -> None:
    seen: dict[Path, Path] = {}
    for file in files:
        other = seen.setdefault(file.resolve(), file)
        if other is not file:
            also = "" if other == file else f", also as {other}"
            raise UserError(f"{path}: files: {file} is listed twice{also}, so its rows would count twice; list it once")


def _tables_in(folder: Path) -> Iterator[Path]:
    """Tables in a folder and in its partitions."""
    for path in folder.iterdir():
        if path.is_dir() and partition_of(path.name) is not None:
            yield from _tables_in(path)
        elif path.is_file() and _is_table(path.name):
            yield path


def _is_table(name: str) -> bool:
    return name.lower().endswith(_ENDINGS) and not name.startswith((".", "_"))


def _is_table_in_folder(path: str) -> bool:
    """Whether a file of a folder is one of the table, by its path in the folder."""
    *folders, name = path.split("/")
    return _is_table(name) and all(partition_of(folder) is not None for folder in folders)


def matching(folder: Path, pattern: str) -> list[Path]:
    """Files matching a path, pattern or folder, sorted. Without a match, the path itself, for the error message.

    An existing path is taken literally, whatever characters it contains. ``*`` matches any part of a name, and ``**``
    matches any folders.
    """
    path = folder / pattern
    if path.is_dir():
        return sorted(_tables_in(path)) or [path]
    if path.exists() or "*" not in pattern:
        return [path]
    literal, parts = folder, list(Path(pattern).parts)
    while "*" not in parts[0]:
        literal /= parts.pop(0)
    escaped = "/".join(part.replace("[", "[[]").replace("?", "[?]") for part in parts)
    try:
        return sorted(p for p in literal.glob(escaped) if p.is_file()) or [path]
    except ValueError:
        raise UserError(f"{path}: ** must stand for whole folders, as in logs/**/part-*.csv") from None
