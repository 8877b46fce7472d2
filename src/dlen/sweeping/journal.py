"""A study's journal file in Optuna's format that ignores incompletely written records."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileSymlinkLock

from dlen.files import lock

_BEGIN = b'{"op_code"'  # start of every record


class Journal(BaseJournalBackend):
    """One record per line, from any number of processes.

    Optuna's own class appends to whatever the file ends with. If a full disk or a kill truncates a line, the next
    record is lost with it, and so is the study. Here the writer, who holds the lock, first truncates the file after its
    last complete record, and readers stop there.

    Args:
        path: path of the file; created if missing.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = JournalFileSymlinkLock(str(path))
        self._ends = [0]  # where the first n records of the file end
        path.open("ab").close()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the records from this number on.

        Raises:
            ValueError: the file is not a journal, or a broken line has records after it.
        """
        number = min(log_number_from, len(self._ends) - 1)
        size, end, torn = self._path.stat().st_size, self._ends[number], False
        with self._path.open("rb") as file:
            file.seek(end)
            for line in file:
                end += len(line)
                if end > size:  # is being written
                    return
                record = _record(line)
                if record is None:
                    if number == 0 and not torn and line[: len(_BEGIN)] != _BEGIN[: len(line)]:
                        raise ValueError(f"is not a journal file; for SQLite, use sqlite:///{self._path}")
                    torn = True
                    continue
                if torn:
                    raise ValueError(f"is damaged: line {number + 1} is not a record, but records follow it")
                number += 1
                self._ends[number:] = [end]
                if number > log_number_from:
                    yield record

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records after the last complete one."""
        content = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._lock.acquire()
        try:
            with self._path.open("r+b") as file:
                lock(file.fileno())  # Optuna's own is taken from a writer that is stopped for 30 s
                deque(self.read_logs(len(self._ends) - 1), maxlen=0)
                file.truncate(self._ends[-1])
                file.seek(self._ends[-1])
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        finally:
            with suppress(RuntimeError):  # it was taken away
                self._lock.release()


def _record(line: bytes) -> dict[str, Any] | None:
    """Parse a line; None if it is truncated. Another program may have appended a record to a truncated one."""
    begins = {0, max(line.rfind(_BEGIN), 0)} if line.endswith(b"\n") else set()
    for begin in sorted(begins):
        try:
            record = json.loads(line[begin:])
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and "op_code" in record:
            return record
    return None
