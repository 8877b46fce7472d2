"""Atomic writes, and defensive reads of files that may be malicious."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import math
import os
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from omegaconf._utils import get_yaml_loader

from dlen.checks import is_number
from dlen.errors import UserError

_BLOCK = 1 << 20
_YAML_BYTES = 1 << 18  # a config has two thousand bytes
_JSON_BYTES = 1 << 24  # a study of ten thousand trials has four million bytes
_MOST_PLAIN = 1 << 12  # characters of an unquoted value; longer ones take seconds to parse as base-60 numbers
_MOST_TURNS = 10_000  # attempts to be the only writer of a file
_MOST_LEVELS = 64  # of nested lists and mappings
_MOST_WHOLE = 1 << 63  # limit of 64-bit integers
_TEXTS = ("model", "data", "version", "code", "data_fingerprint", "config_hash", "checkpoint", "state")
_FIGURES = ("test/", "val/", "validation/", "train/", "fit/", "model/", "gates/")


def checksum(path: Path) -> int:
    """CRC-32 of a file, at about 4 GB/s: detects every flipped bit."""
    crc = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def crc32_combine(first: int, second: int, length: int) -> int:
    """CRC-32 of the concatenation of two byte strings, of which the second has ``length`` bytes.

    Args:
        first: CRC-32 of the first one, which ``length`` zero bytes multiply by x^(8 length), modulo the polynomial.
        second: CRC-32 of the second one.
    """
    power, factor = 1 << 31, 1 << 23  # x^0 and x^8; the highest bit is the lowest power
    while length:
        power = _multiply(power, factor) if length & 1 else power
        factor, length = _multiply(factor, factor), length >> 1
    return _multiply(first, power) ^ second


def _multiply(a: int, b: int) -> int:
    """Product of two polynomials over GF(2), modulo that of CRC-32."""
    product = 0
    for bit in range(31, -1, -1):
        product ^= b if a >> bit & 1 else 0
        b = (b >> 1) ^ (0xEDB88320 if b & 1 else 0)
    return product


def check_regular(path: Path) -> int:
    """Size of a file; UserError if it is missing, or a pipe or device, which may never end."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: is not a regular file; delete it")
    return status.st_size


def _read_text(path: Path, most: int) -> str:
    """Read a whole file; UserError if it is larger than ``most`` bytes."""
    check_regular(path)
    try:
        with path.open("rb") as file:  # the reported size may be wrong, as under /proc
            content = file.read(most + 1)
        if len(content) > most:
            raise UserError(f"{path}: is larger than {most:,} bytes, the limit for a file of its kind")
        return content.decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is not JSON, or has content that dlen never writes: very deep nesting, numbers beyond 64 bits,
            NaN.
    """
    try:
        content = json.loads(_read_text(path, _JSON_BYTES))
    except RecursionError:
        raise _too_deep(path) from None
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error})") from None
    _check_plain(path, content)
    return content


def read_yaml(path: Path) -> Any:
    """Read a YAML file, with OmegaConf's rules for numbers.

    Raises:
        UserError: it is not YAML, or has content that dlen never writes: anchors, tags, and what :func:`read_json`
            refuses.
    """
    text = _read_text(path, _YAML_BYTES)
    try:
        _check_events(path, text)
        content = yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise _too_deep(path) from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: is not valid YAML ({' '.join(str(error).split())[:200]})") from None
    _check_plain(path, content)
    return content


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Parses like OmegaConf's loader, ten times faster."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers


def _check_events(path: Path, text: str) -> None:
    """Check the parser events before building objects: nested aliases would expand without limit."""
    level = 0
    for event in yaml.parse(text, Loader=_Loader):
        problem = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            problem = "an anchor or alias; write it out"
        elif getattr(event, "tag", None) not in (None, "!"):
            problem = "a tag; remove it"
        elif isinstance(event, yaml.ScalarEvent) and event.implicit[0] and len(event.value) > _MOST_PLAIN:
            problem = f"a value of {len(event.value):,} characters without quotes; quote it"
        if problem is not None:
            line = "" if event.start_mark is None else f", line {event.start_mark.line + 1}"
            raise UserError(f"{path}{line}: contains {problem}")
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > _MOST_LEVELS:
            raise _too_deep(path)


def _check_plain(path: Path, content: Any) -> None:
    """Check values level by level: a recursive function would hit the recursion limit on malicious nesting."""
    level = [content]
    for _ in range(_MOST_LEVELS + 1):
        for value in level:
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{path}: contains the number {value}; every number must be finite")
            if isinstance(value, int) and not -_MOST_WHOLE <= value < _MOST_WHOLE:
                raise UserError(f"{path}: contains a whole number beyond 64 bits")
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list) and v]
        level = [value for values in inner for value in values]
        if not level:
            return
    raise _too_deep(path)


def _too_deep(path: Path) -> UserError:
    return UserError(f"{path}: is nested deeper than {_MOST_LEVELS} levels, the limit for a config or record")


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON mapping with :func:`read_json`."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a mapping of names to values")
    return content


def read_figures(path: Path) -> dict[str, Any]:
    """Read a ``metrics.json``, whose metrics are numbers or null.

    Raises:
        UserError: it cannot be read, or an entry has the wrong type.
    """
    content = read_mapping(path)
    for key, value in content.items():
        if key in _TEXTS and not isinstance(value, str):
            raise UserError(f"{path}: {key} is {_shown(value)}, not text")
        number = is_number(value)
        if key.startswith(_FIGURES) and key != "fit/precision" and value is not None and not number:
            raise UserError(f"{path}: {key} is {_shown(value)}, neither a number nor null")
        if key == "seed" and not (number and isinstance(value, int)):
            raise UserError(f"{path}: {key} is {_shown(value)}, not a whole number")
    return content


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 50 else f"{text[:50]}..."


def check_links(folder: Path) -> None:
    """Raise UserError if an output folder contains links that lead out of it. The folder itself may be a link.

    W&B's folder is skipped: it links to a log in the user's cache, and W&B follows no links that it finds there.
    """
    top = os.path.realpath(folder)
    for name, folders, files in os.walk(folder):
        for entry in (Path(name, inner) for inner in (*folders, *files)):
            if entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(top):
                raise UserError(f"{entry}: is a link out of {folder}, where nothing is written; delete it")
            if entry.exists() and not entry.is_dir() and not entry.is_file():
                raise UserError(f"{entry}: is not a regular file; delete it")
        folders[:] = [inner for inner in folders if inner != "wandb"]


def check_writable(folder: Path) -> None:
    """Raise UserError if a folder can be neither created nor written."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{folder}: cannot be written ({existing} is not a writable folder); set data_dir")


def check_plain_name(name: object, key: str = "data.name") -> None:
    """Raise UserError unless the name at a config key is a valid folder name that cannot point elsewhere."""
    if not isinstance(name, str) or not name or name.startswith(".") or not name.isprintable() or "/" in name:
        raise UserError(
            f"config {key}: {name!r} is not a valid folder name; use printable characters, no slash and no leading dot"
        )


@contextmanager
def locked(path: Path, doing: str, *, quiet: bool = False, wait: bool = True) -> Iterator[int]:
    """Lock out other processes, which wait and report it unless ``quiet``. The system frees a dead process's lock.

    Args:
        path: file that is locked, created if missing.
        doing: what this process does meanwhile, for the report of the others.
        quiet: wait without a report.
        wait: False raises BlockingIOError if another process has the lock.

    Yields:
        The file descriptor of the lock. A child that inherits it keeps the lock if this process dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:  # append mode: if the path is a link, its target is not truncated
        told = None if quiet else f"{path.parent}: waiting for another process, which is {doing}"
        if not lock(file.fileno(), told, wait=wait):
            print(
                f"warning: {path.parent}: its file system has no locks; use it from one process at a time",
                file=sys.stderr,
            )
        yield file.fileno()


def lock(file: int, told: str | None = None, *, wait: bool = True) -> bool:
    """Lock an open file until it is closed.

    Args:
        file: file descriptor.
        told: line that is printed if another process has the lock.
        wait: False raises BlockingIOError then.

    Returns:
        False on a file system without locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise
        if told is not None:
            print(told, file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Provide a temporary file next to ``path`` that replaces it on success and is deleted on failure.

    Processes and threads that write the same file take turns, and the last one's content stays. The next one also
    overwrites what a dead process left. Without locks in the file system, each writes to a name of its own, which
    stays if it dies.
    """
    temporary = path.with_name(f".{path.name}.writing")
    file = _own(temporary, f"{path.parent}: waiting for another process, which writes {path.name}")
    if file is None:
        temporary = path.with_name(f".{path.name}.{uuid4().hex}.writing")
        file = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:  # not before: the temporary name is free from here on
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)  # a forked process may have the file open as well
        os.close(file)


def _own(temporary: Path, told: str) -> int | None:
    """An open, empty and locked file of that name, which no other writer uses and no link leads to.

    None on a file system without locks.
    """
    for _ in range(_MOST_TURNS):
        try:
            file = os.open(temporary, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link, a socket
                raise
            temporary.unlink(missing_ok=True)
            continue
        try:
            if not lock(file, told):
                temporary.unlink(missing_ok=True)
                os.close(file)
                return None
            found = os.fstat(file)
            if _is_at(temporary, found):
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                    os.ftruncate(file, 0)
                    return file
                temporary.unlink(missing_ok=True)  # planted: what it leads to is not ours to overwrite
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # the writer before has renamed or deleted it
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(temporary))


def _is_at(path: Path, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.lstat(), file)
    except FileNotFoundError:
        return False


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, with :func:`replacing_file`."""
    with replacing_file(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, content: Any) -> None:
    """Write plain containers as JSON with :func:`write_text`; nan and infinity become null."""
    write_text(path, json.dumps(finite(content), indent=1, allow_nan=False) + "\n")


def content_checksum(content: Mapping[str, Any]) -> int:
    """CRC-32 of the content of a JSON file, independent of its formatting, the same before writing and after reading.

    It reveals changes that were not meant to be hidden: whoever edits a file can also write the new checksum.
    """
    plain = json.loads(json.dumps(content))  # same types as after reading the file
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


def is_intact(content: Mapping[str, Any]) -> bool:
    """Whether the entry ``crc32`` of a JSON file is the :func:`content_checksum` of everything else in it."""
    return content.get("crc32") == content_checksum({k: v for k, v in content.items() if k != "crc32"})


def finite(value: Any) -> Any:
    """Plain containers as JSON holds them: nan and infinity are None."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV with :func:`write_text`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
