"""Public data sets by name: their publishers' own files, described by a YAML that comes with the package."""

from __future__ import annotations

from pathlib import Path

from dlen.data.sources.table import Table
from dlen.errors import UserError

SPECS = Path(__file__).parent / "public"


class PublicTable(Table):
    """A public data set, read by :class:`Table` through a spec of ours.

    Args:
        name: of the spec, such as ``kuairand``, and of the data set.
        raw_dir: the folder with the publisher's files.
        files: overrides the spec's, below ``raw_dir``, such as ``QB-video.csv``.
        bad_rows: so many rows that cannot be read are left out, counted and shown; one more is an error.
    """

    def __init__(self, name: str, raw_dir: str, files: str | None = None, bad_rows: int = 0) -> None:
        spec = SPECS / f"{name}.yaml"
        if not spec.exists():
            known = ", ".join(sorted(p.stem for p in SPECS.glob("*.yaml")))
            raise UserError(f"config data.name: {name!r} is none of the public data sets ({known})")
        chosen = None if files is None else str(Path(raw_dir) / files)
        super().__init__(str(spec), name, chosen, raw_dir, bad_rows=bad_rows)
