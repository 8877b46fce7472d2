"""Files that are written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20


def checksum(path: Path) -> int:
    """CRC-32 of a file, about 4 GB/s: every flipped bit shows."""
    found = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            found = zlib.crc32(block, found)
    return found


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, for a file that takes its place on success and vanishes on failure."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file as :func:`replacing_file` does."""
    with replacing_file(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, content: Any) -> None:
    """Write plain containers as JSON, as :func:`write_text` does."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV, as :func:`write_text` does."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
