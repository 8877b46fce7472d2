"""Files of an object store or a web server, which are copied to a local folder before they are read."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dlen.errors import UserError, one_line
from dlen.files import locked, read_mapping, replacing_file, write_json
from dlen.progress import Stage

_LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}
_LIBRARIES |= {"hdfs": "pyarrow", "http": "aiohttp", "https": "aiohttp"}
_MEMORY = "memory"  # fsspec's own store, for tests
_WEB = ("http", "https")  # they have no folders
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CONTAINERS = ("abfs://", "abfss://", "az://")
_SECRET = re.compile(rf"{_ADDRESS.pattern}\S+")  # addresses in messages of others
_VERSIONS = ("ETag", "etag", "generation", "LastModified", "last_modified", "updated", "mtime", "created", "blob_id")
_THREADS = 8


@dataclass(frozen=True, slots=True)
class _Remote:
    """A file at an address.

    Attributes:
        address: its address, as it may be recorded: without a password, and with a hash of a signature.
        place: its name within the file system.
        size: bytes; None if they are not known.
        version: changes with the content; None if nothing tells, so that each copy is made anew.
    """

    address: str
    place: str
    size: int | None
    version: str | None


def is_address(text: str) -> bool:
    """Whether a text is an address, such as ``s3://bucket/logs``, and not a path."""
    return _ADDRESS.match(text) is not None


class RemoteFiles:
    """Lists the files at addresses, and copies those that are read.

    An address goes through fsspec, with the library of its kind (s3fs, gcsfs, adlfs, ...), which takes credentials,
    regions and endpoints from where its users keep them: the environment, the files of the cloud's own tools, or the
    machine's role. A copy is kept until the file changes, by what its server tells: an ETag, a generation or a time.

    Args:
        folder: folder of the copies. A file's copy has the path of its address, so partitions keep their names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[Path, tuple[Any, _Remote]] = {}  # file system and file, by the path of the copy

    def matching(self, address: str, is_table: Callable[[str], bool]) -> list[Path]:
        """Paths of the copies of the files at an address, sorted. Nothing is copied yet.

        Args:
            address: a file, a pattern with ``*``, or a folder. Web servers have files alone.
            is_table: whether a file in a folder is to be read, by its path within the folder.

        Raises:
            UserError: nothing is there, or it cannot be reached.
        """
        kind = address.split("://")[0].lower()
        with _told(address):
            system, place = _open(address, kind)
            if kind in _WEB:
                found = {place: system.info(place)}
            elif "*" in place:
                found = system.glob(place, detail=True)
            elif system.isdir(place):
                start = place.rstrip("/") + "/"
                found = system.find(place, detail=True)
                found = {name: info for name, info in found.items() if is_table(name.removeprefix(start))}
            else:
                found = {place: system.info(place)}
            files = {name: info for name, info in found.items() if info["type"] == "file"}
        if not files:
            raise UserError(f"{_shown(address)}: there are no files; correct the address")
        paths = []
        for name, info in files.items():
            remote = _Remote(_recorded(str(system.unstrip_protocol(name))), name, info.get("size"), _version(info))
            paths.append(self.folder / _copy_of(remote.address))
            self._found[paths[-1]] = (system, remote)
        return sorted(paths)

    def address(self, path: Path) -> str:
        """The address of a copy; the path itself for other files."""
        return self._found[path][1].address if path in self._found else str(path)

    def copy(self, paths: Sequence[Path]) -> None:
        """Copy those of ``paths`` that come from :meth:`matching` and have no copy of their present version.

        Raises:
            UserError: a file cannot be read.
        """
        remote = {path: self._found[path] for path in paths if path in self._found}
        if not remote:
            return
        with locked(self.folder / ".lock", "copying remote files"):
            record = self.folder / ".versions.json"
            versions: dict[str, str | None] = read_mapping(record) if record.exists() else {}
            stale = {
                path: found
                for path, found in remote.items()
                if found[1].version is None or versions.get(found[1].address) != found[1].version or not path.is_file()
            }
            try:
                self._copy_all(stale, versions)
            finally:
                write_json(record, versions)

    def _copy_all(self, stale: dict[Path, tuple[Any, _Remote]], versions: dict[str, str | None]) -> None:
        if not stale:
            return
        total = sum(remote.size or 0 for _, remote in stale.values())
        with Stage(f"copying {len(stale)} remote files", total, "B") as stage, ThreadPoolExecutor(_THREADS) as pool:
            jobs = {pool.submit(_copy, system, remote, path): remote for path, (system, remote) in stale.items()}
            try:
                for done in as_completed(jobs):
                    done.result()
                    versions[jobs[done].address] = jobs[done].version
                    stage.advance(jobs[done].size or 0)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _open(address: str, kind: str) -> tuple[Any, str]:
    """The file system of an address, and the place in it."""
    if kind not in (*_LIBRARIES, _MEMORY):
        known = ", ".join(f"{name}://" for name in _LIBRARIES)
        raise UserError(f"{_shown(address)}: addresses of this kind cannot be read; there are {known}")
    from fsspec.core import url_to_fs  # here: most tables are local

    try:
        system, place = url_to_fs(address)
    except ImportError:
        raise UserError(f"{_shown(address)}: {kind}:// needs a library; pip install {_LIBRARIES[kind]}") from None
    return system, str(place)


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Turn what goes wrong at an address into one line, without its secrets."""
    shown = _shown(address)
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{shown}: there is no such file, or its server does not answer") from None
    except Exception as error:  # each cloud's library has errors of its own
        said = one_line(_SECRET.sub(lambda found: _shown(found[0]), str(error)))
        reason = said[:200] or type(error).__name__
        raise UserError(f"{shown}: cannot be read ({reason}); check the address and your credentials") from None


def _copy(system: Any, remote: _Remote, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _told(remote.address), replacing_file(path) as temporary:
        with system.open(remote.place, "rb") as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 22)
        size = temporary.stat().st_size
        if remote.size is not None and size != remote.size:
            raise UserError(f"{remote.address}: gave {size:,} of {remote.size:,} bytes; run the command again")


def _version(info: dict[str, Any]) -> str | None:
    """What changes with a file's content, from its entry in a listing."""
    known = {key: info[key] for key in _VERSIONS if info.get(key) is not None}
    if not known:
        return None
    times = {key: value.timestamp() if isinstance(value, datetime) else value for key, value in known.items()}
    return hashlib.sha256(repr([info.get("size"), sorted(times.items())]).encode()).hexdigest()


def _recorded(address: str) -> str:
    """An address without secrets: no user and password, and a hash in place of a query, which may be a signature."""
    place, question, query = _without_password(address).partition("?")
    return place + (f"?{hashlib.sha256(query.encode()).hexdigest()[:16]}" if question else "")


def _shown(address: str) -> str:
    """An address for a message: without user, password and query."""
    place, question, _ = _without_password(address).partition("?")
    return place + ("?..." if question else "")


def _without_password(address: str) -> str:
    """An address without user and password; what precedes the @ of ``abfs://CONTAINER@ACCOUNT`` is neither."""
    kept = address.lower().startswith(_CONTAINERS)
    return re.sub(r"://[^/]*:[^/]*@" if kept else r"://[^/]*@", "://", address, count=1)


def _copy_of(address: str) -> Path:
    """The path of a copy within the folder of copies, from its recorded address."""
    kind, rest = address.split("://", 1)
    place, _, query = rest.partition("?")
    parts = place.lstrip("/").split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise UserError(f"{address}: has an empty folder name, . or .. in it, which no copy can have")
    return Path(kind, *([query] if query else []), *parts)
