"""Records of finished shards, from which an interrupted preparation goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlen.data.writer import FINISHED, WrittenPart, shard_folder
from dlen.files import write_text


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """A shard that is complete, and what else the work on its piece found.

    Attributes:
        content: plain values.
        bad: arguments of :class:`~dlen.data.bad_rows.BadRowError` for rows that were left out.
    """

    shard: WrittenPart
    content: Mapping[str, Any]
    bad: Sequence[tuple[Path, list[int], str, str]] = ()

    def save(self, folder: Path, number: int) -> None:
        """Record it in the folder of a store that is being written."""
        record = folder / shard_folder(number) / FINISHED
        shutil.rmtree(record.parent, ignore_errors=True)
        record.parent.mkdir(parents=True)  # a piece may have no rows
        kept = {"shard": asdict(self.shard), "content": self.content, "bad": self.bad}
        write_text(record, json.dumps(kept, default=str))

    @classmethod
    def of(cls, folder: Path, number: int) -> FinishedShard | None:
        """The record of a shard; None if the shard is not finished."""
        record = folder / shard_folder(number) / FINISHED
        if not record.exists():
            return None
        found = json.loads(record.read_text())
        patterns = {int(code): float(weight) for code, weight in found["shard"]["patterns"].items()}
        bad = [(Path(path), lines, problem, where) for path, lines, problem, where in found["bad"]]
        return cls(WrittenPart(found["shard"]["entry"], patterns), found["content"], bad)
