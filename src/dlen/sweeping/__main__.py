"""A worker as a program: ``python -m dlen.sweeping SPEC NAME NUMBER``."""

from __future__ import annotations

import sys
from pathlib import Path

from dlen.cli import importing
from dlen.files import read_mapping

with importing():
    from dlen.sweeping.spec import Spec
    from dlen.sweeping.worker import work

if __name__ == "__main__":
    work(Spec(**read_mapping(Path(sys.argv[1]))), sys.argv[2], int(sys.argv[3]), watch=True)
