"""From a source to an open store: find it by fingerprint, or write it once, atomically and under a lock."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl

from dlen import __version__
from dlen.data.columns import FORMAT
from dlen.data.days import labels_of
from dlen.data.parallel import LocalPool, Pool
from dlen.data.split import Split
from dlen.data.store import Store
from dlen.data.writer import FINISHED, StoreWriter
from dlen.errors import UserError
from dlen.files import check_plain_name, check_writable, locked, write_json
from dlen.schema import Schema, Task

_SETTLED = 2_000_000_000  # in nanoseconds; after this, a change gets a new time stamp on any file system


class Source(Protocol):
    """A raw log that can be written as a prepared store.

    Attributes:
        name: name of the data set, and of its subfolder in the data folder.
    """

    name: str

    def settings(self) -> dict[str, Any]:
        """Everything that affects the written data, as plain values."""

    def files(self) -> list[Path]:
        """The raw files. Raises :class:`UserError` with instructions if one is missing."""

    def write(self, writer: StoreWriter) -> Schema:
        """Read the raw files and write the tables, splits and vocabularies."""


@runtime_checkable
class RowSource(Protocol):
    """A source that can read new rows for a trained model."""

    def read(self, path: Path, store: Store, labels: bool = False) -> Iterator[Split]:
        """Read ``path``, in the source's own format, in chunks encoded like the rows of the store.

        Labels are zero unless ``labels`` is set.
        """


@runtime_checkable
class KeepingSource(RowSource, Protocol):
    """A source that can also return columns of the new rows as they are."""

    def read_keeping(self, path: Path, store: Store, keep: Sequence[str]) -> Iterator[tuple[Split, pl.DataFrame]]:
        """Like ``read``, each chunk with its columns ``keep``.

        Raises:
            UserError: there is no such column.
        """


class Files:
    """Content hashes of the raw files, recomputed only if a file changes.

    A file is identified by a hash of its content, so every change is noticed and a copy counts as the same data. The
    hashes are cached next to the prepared data. A cached hash is valid while the file's size, inode number and both of
    its time stamps (of which a program can set only one) stay the same.

    Args:
        data_dir: folder of the cache, if it is writable.
    """

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / ".files.json"
        try:
            kept = json.loads(self.path.read_text())
        except (OSError, ValueError):
            kept = {}
        self.kept: dict[str, Any] = kept if isinstance(kept, dict) else {}
        self._changed = False

    def describe(self, path: Path) -> dict[str, Any]:
        """Name, size and hash of a file."""
        key, current = str(path.absolute()), record(path)
        kept = self.kept.get(key)
        if not isinstance(kept, dict) or kept.get("record") != current:
            hashed_at = time.time_ns()
            kept = {"record": current, "sha256": _hash(path)}
            if max(current[2:4]) + _SETTLED < hashed_at and record(path) == current:
                self.kept[key] = kept
                self._changed = True
        return {"name": path.name, "size": current[0], "sha256": kept["sha256"]}

    def keep(self) -> None:
        """Write new hashes to the cache."""
        if not self._changed:
            return
        with suppress(OSError):  # without a cache, the file is hashed again next time
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.kept)


def record(path: Path) -> list[int]:
    """Size, inode number, and modification and change times of a file."""
    status = path.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _hash(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identify(source: Source, data_dir: Path) -> dict[str, Any]:
    """Settings and files of the source, with their joint fingerprint.

    Args:
        source: the raw log.
        data_dir: folder of cached file hashes, see :class:`Files`.
    """
    files = Files(data_dir)
    causes = {"name": source.name, "settings": source.settings(), "files": [files.describe(p) for p in source.files()]}
    files.keep()
    text = json.dumps({"format": FORMAT, **causes}, sort_keys=True)
    return {"fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16], **causes}


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder next to ``folder`` that is renamed to it on success and removed on failure."""
    temporary = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def prepare(source: Source, data_dir: Path, workers: int | Pool = 1) -> Store:
    """Open the prepared store of a source, writing it first if it does not exist.

    A store is in ``data_dir/NAME/FINGERPRINT``. Other settings or changed files produce another store and leave this
    one unchanged.

    Args:
        source: the raw log.
        data_dir: folder of all stores.
        workers: most processes that write it; they import the main module, which must then do nothing when imported.
            Or a pool of processes on other machines, see :mod:`dlen.data.clusters`.

    Raises:
        UserError: files are missing or invalid, or the folder cannot be written.
    """
    check_plain_name(source.name)
    before = {path: record(path) for path in source.files()}
    identity = identify(source, data_dir)
    folder = data_dir / source.name / identity["fingerprint"]
    if folder.exists():
        return open_identified(folder, identity)
    check_writable(folder)
    with locked(data_dir / source.name / ".lock", "preparing this data"):
        if not folder.exists():
            _write(source, folder, identity, before, LocalPool(workers) if isinstance(workers, int) else workers)
    return open_identified(folder, identity)


def open_identified(folder: Path, identity: dict[str, Any]) -> Store:
    """Open the store of an identity; UserError if the folder holds another one."""
    store = Store(folder)
    if store.fingerprint != identity["fingerprint"]:
        raise UserError(f"{folder}: holds data of fingerprint {store.fingerprint}; delete it and run prepare.py")
    return store


@contextmanager
def _continuing(folder: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """Like :func:`replacing`, but an interruption leaves the shards that are finished to the next attempt."""
    temporary = folder.with_name(f".{folder.name}.writing")
    causes = {**identity, "versions": [__version__, pl.__version__, np.__version__]}
    record = temporary / "identity.json"
    if _causes(record) != json.loads(json.dumps(causes)):
        shutil.rmtree(temporary, ignore_errors=True)
    for path in [*temporary.glob("*"), *temporary.glob("shards/*")]:
        if path.name not in ("shards", record.name) and not (path / FINISHED).exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    temporary.mkdir(parents=True, exist_ok=True)
    write_json(record, causes)
    try:
        yield temporary
        record.unlink()
        temporary.rename(folder)
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    except BaseException:  # interrupted
        if not any(temporary.glob(f"shards/*/{FINISHED}")):
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _causes(record: Path) -> Any:
    """What an interrupted attempt was about to write."""
    try:
        return json.loads(record.read_text())
    except (OSError, ValueError):
        return None


def _write(source: Source, folder: Path, identity: dict[str, Any], before: dict[Path, list[int]], pool: Pool) -> None:
    started = time.monotonic()
    with _continuing(folder, identity) as temporary:
        writer = StoreWriter(temporary, pool)
        schema = source.write(writer)
        check_unchanged(before)
        writer.notes["prepare_seconds"] = round(time.monotonic() - started, 2)
        writer.finish(schema, identity)


def check_unchanged(before: dict[Path, list[int]]) -> None:
    """Raise UserError if a file is no longer as it was recorded by :func:`record`."""
    for path, recorded in before.items():
        if record(path) != recorded:
            raise UserError(f"{path}: changed while it was read; run prepare.py again")


def summary(store: Store) -> str:
    """A short description of a store's content."""
    content = store.content
    rows = ", ".join(f"{name} {count:,}" for name, count in store.rows.items())
    lines = [
        f"{content['name']}: {rows} rows; {store.schema.num_embeddings:,} ids in {len(store.schema.fields)} fields"
    ]
    if days := labels_of(store):
        lines.append(f"  appended days: {len(days)}, {days[0]} to {days[-1]}")
    lines += [_described(task) for task in store.schema.tasks]
    lines += [f"  {key.replace('_', ' ')}: {value}" for key, value in content["notes"].items()]
    lines += [f"  {line}" for line in unknown_lines(store)]
    return "\n".join([*lines, f"  in {store.folder}"])


def _described(task: Task) -> str:
    """A line about the training labels of a task."""
    if not task.is_regression:
        return f"  training rate of {task.name}: {task.rate:.4%}"
    if task.loss == "weighted_logistic":
        return f"  training mean of {task.name}: {task.deviation:.4g}"
    transformed = f"{task.transform} of " if task.transform != "none" else ""
    return f"  training mean of {transformed}{task.name}: {task.mean:.4g}, deviation {task.deviation:.4g}"


def unknown_lines(store: Store) -> list[str]:
    """For each field with unknown ids, their share in each split, largest first."""
    fields = {name for shares in store.unknown.values() for name, share in shares.items() if share}
    most = {name: max(shares[name] for shares in store.unknown.values()) for name in fields}
    ordered = sorted(fields, key=lambda name: (-most[name], name))
    return [
        f"unknown {name}: " + ", ".join(f"{shares[name]:.2%} of {split}" for split, shares in store.unknown.items())
        for name in ordered
    ]
