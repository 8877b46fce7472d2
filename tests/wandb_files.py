"""Read W&B's offline run files with W&B's own record types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class WandbRun:
    """Content of an offline run file.

    Attributes:
        run_id: id of the run.
        group: group of the run.
        name: name of the run.
        job_type: job type of the run.
        tags: latest tags of the run.
        config: config, by top-level key.
        history: keys and values of each logged line.
        summary: last values, by key.
        artifacts: name, type, aliases and files of each artifact.
        exit_code: None if the run was not finished.
    """

    run_id: str = ""
    group: str = ""
    name: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[tuple[str, str, list[str], list[str]]] = field(default_factory=list)
    exit_code: int | None = None


def read_wandb(file: Path) -> WandbRun:
    """Read everything in a ``run-ID.wandb`` file."""
    from wandb.proto import wandb_internal_pb2

    found = WandbRun()
    for data in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.ParseFromString(data)
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                found.run_id, found.group, found.name = run.run_id, run.run_group, run.display_name
                found.job_type, found.tags = run.job_type, list(run.tags)
                found.config |= {item.key: json.loads(item.value_json) for item in run.config.update}
            case "config":
                found.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            case "history":
                found.history.append({})
                _put(found.history[-1], record.history.item)
            case "summary":
                _put(found.summary, record.summary.update)
            case "artifact":
                one = record.artifact
                files = [entry.path for entry in one.manifest.contents]
                found.artifacts.append((one.name, one.type, list(one.aliases), files))
            case "exit":
                found.exit_code = record.exit.exit_code
            case "request" | _:
                pass
    return found


def _put(values: dict[str, Any], items: Any) -> None:
    """Add items. A histogram or image is several items with a path of keys."""
    for item in items:
        path, at = list(item.nested_key) or [item.key], values
        for key in path[:-1]:
            if not isinstance(at.get(key), dict):
                at[key] = {}
            at = at[key]
        at[path[-1]] = json.loads(item.value_json)


def _records(content: bytes) -> Iterator[bytes]:
    """LevelDB's log format after 7 bytes of W&B's own: blocks of 32 KiB that contain parts of records."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""
