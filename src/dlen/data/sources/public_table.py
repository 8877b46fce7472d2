"""Public data sets by name: the publishers' own files, described by a YAML that is part of the package."""

from __future__ import annotations

from pathlib import Path

from dlen.data.sources.table import Table
from dlen.errors import UserError

SPECS = Path(__file__).parent / "public"


class PublicTable(Table):
    """A public data set, read by :class:`Table` with a spec of this package.

    Args:
        name: name of the spec and of the data set, such as ``kuairand``.
        raw_dir: folder with the publisher's files.
        files: replaces the ``files`` of the spec, relative to ``raw_dir``, such as ``QB-video.csv``.
        bad_rows: maximum number of unreadable rows to skip, count and report; one more raises an error.
    """

    def __init__(self, name: str, raw_dir: str, files: str | None = None, bad_rows: int = 0) -> None:
        spec = SPECS / f"{name}.yaml"
        if not spec.exists():
            known = ", ".join(sorted(p.stem for p in SPECS.glob("*.yaml")))
            raise UserError(f"config data.name: {name!r} is not a public data set; choose one of {known}")
        chosen = None if files is None else str(Path(raw_dir) / files)
        super().__init__(str(spec), name, chosen, raw_dir, bad_rows=bad_rows)
