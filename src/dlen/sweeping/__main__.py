"""A worker as a program: ``python -m dlen.sweeping SPEC NAME NUMBER``."""

from __future__ import annotations

import sys

from dlen.cli import importing

with importing():
    from dlen.sweeping.worker import work_from

if __name__ == "__main__":
    work_from(sys.argv[1], sys.argv[2], int(sys.argv[3]), watch=True)
