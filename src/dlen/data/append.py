"""Appends new files to a prepared store, a day at a time: a new store that has the shards of the old one and more."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dlen.data.columns import FORMAT
from dlen.data.days import in_order
from dlen.data.prepare import Source, check_unchanged, identify, open_identified, record, replacing
from dlen.data.store import Store
from dlen.data.writer import DayWriter, write_content
from dlen.errors import UserError
from dlen.files import check_plain_name, check_writable, locked
from dlen.schema import Schema


@runtime_checkable
class GrowingSource(Source, Protocol):
    """A source whose log gets new files. Its settings have their addresses, by group and in order, under ``files``."""

    def day_of(self, path: Path) -> str:
        """The label of the shard that has the rows of a new file.

        Raises:
            UserError: the file cannot be appended.
        """

    def append(self, paths: Sequence[Path], store: Store, writer: DayWriter) -> Schema:
        """Write the rows of the new files of one day as they follow those of a store. Returns the grown schema."""


def append(source: Source, data_dir: Path) -> Store:
    """Prepare the files of a source that the latest store of its other files does not have.

    The new store has the fingerprint that :func:`dlen.data.prepare.prepare` gives these files. It shares the old one's
    shards (hard links, or copies on another file system). What was learned from the training rows stays; vocabularies
    grow at the end, and rates and histories go on. The old store stays as it is.

    Raises:
        UserError: there is no such store, no file is new, an old file has changed, or a file is invalid.
    """
    check_plain_name(source.name)
    if not isinstance(source, GrowingSource):
        raise UserError(f"config append: only tables can be appended to, and {source.name} is none")
    files = source.files()
    before = {path: record(path) for path in files}
    identity = identify(source, data_dir)
    folder = data_dir / source.name / identity["fingerprint"]
    if folder.exists():
        raise UserError(f"config append: nothing is new; {folder} has all of the {len(files)} files")
    check_writable(folder)
    with locked(data_dir / source.name / ".lock", "preparing this data"):
        if folder.exists():  # another process has prepared it meanwhile
            return open_identified(folder, identity)
        old, new = _latest(data_dir / source.name, identity)
        days: dict[str, list[Path]] = {}
        for path, address in zip(files, _hashes(identity), strict=True):
            if address in new:
                days.setdefault(source.day_of(path), []).append(path)
        with replacing(folder) as temporary:
            content = Store(old).content | identity
            _link(old, temporary)
            for label in sorted(days, key=in_order):
                write_content(temporary, content)
                store = Store(temporary, verify=False)
                store.as_of(len(store.shards) - 1)
                writer = DayWriter(temporary, len(store.shards), label)
                content = writer.extend(store.content, source.append(days[label], store, writer))
            write_content(temporary, content)
            check_unchanged(before)
    return open_identified(folder, identity)


def could_append(source: Source, data_dir: Path) -> str | None:
    """A line that tells which store lacks only some files of a source; None if there is none, or nothing to prepare."""
    if not isinstance(source, GrowingSource):
        return None
    identity = identify(source, data_dir)
    folder = data_dir / source.name
    if (folder / identity["fingerprint"]).exists():
        return None
    try:
        old, new = _latest(folder, identity)
    except UserError:
        return None
    return (
        f"preparing all {len(_hashes(identity))} files; {old} lacks {len(new)} of them, which append=true adds alone, "
        "as days that follow its rows"
    )


def _hashes(content: Mapping[str, Any]) -> dict[str, str]:
    """Hash of each file of an identity, by address."""
    addresses = [address for group in content["settings"]["files"].values() for address in group]
    return dict(zip(addresses, (file["sha256"] for file in content["files"]), strict=True))


def _latest(folder: Path, identity: Mapping[str, Any]) -> tuple[Path, set[str]]:
    """The store with most of the files of an identity, and the addresses of those that it does not have."""
    paths = folder.glob("[!.]*/store.json")  # not of an attempt that was killed
    stores = [(path.parent, content) for path in paths if (content := _alike(path, identity))]
    if not stores:
        raise UserError(
            f"config append: {folder} has no data that were prepared with the same YAML; run prepare.py without append"
        )
    problems = []
    for store, content in sorted(stores, key=lambda found: -len(found[1]["files"])):
        then, now = _hashes(content), _hashes(identity)
        new = {address: value for address, value in now.items() if then.get(address) != value}
        for address, value in then.items():
            moved = address if now.get(address) == value else next((a for a, v in new.items() if v == value), None)
            if moved is None:
                reason = "has changed since" if address in now else "is no longer one of the files, but"
                problems.append(f"{address}: {reason} {store} was prepared from it; run prepare.py without append")
                break
            new.pop(moved, None)
        else:
            return store, set(new)
    raise UserError(problems[0])


def _alike(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of a store of the same settings, apart from the files; None for another one."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        settings = [{k: v for k, v in c["settings"].items() if k != "files"} for c in (content, identity)]
        return content if content["format"] == FORMAT and settings[0] == settings[1] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _link(old: Path, new: Path) -> None:
    """Make the files of a store those of another one too, apart from its ``store.json``."""
    for path in (p for folder in old.iterdir() for p in (folder.rglob("*") if folder.is_dir() else [folder])):
        target = new / path.relative_to(old)
        if path.is_dir() or path == old / "store.json":
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copy2(path, target)
