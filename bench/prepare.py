"""Rows per second and peak memory of preparing Ali-CCP raw files, at rising row counts.

python bench/prepare.py                  # 0.5, 1 and 2 M generated rows
python bench/prepare.py 50000 100000     # other row counts
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from common import report, run

from dlen.data.sources.aliccp_demo import AliCCPDemo


def main() -> None:
    """Draw each pair of files, then prepare it in a process of its own; the smallest first, for the peaks."""
    rows = []
    for size in sorted(int(a) for a in sys.argv[1:]) or (500_000, 1_000_000, 2_000_000):
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder) / "raw"
            files = AliCCPDemo(str(raw), rows=size).files()
            megabytes = sum(f.stat().st_size for f in files) / 1e6
            ran = run(["prepare.py", "data=aliccp", f"data.raw_dir={raw}", f"data_dir={folder}/data"])
        total = size + size // 4
        row = {"rows, train and test": f"{total:,}", "raw MB": f"{megabytes:.0f}", "seconds": f"{ran.seconds:.1f}"}
        row |= {"rows/s": f"{total / ran.seconds:,.0f}", "MB/s": f"{megabytes / ran.seconds:.0f}"}
        rows.append(row | {"peak memory, MiB": f"{ran.peak_mb:.0f}"})
    report("prepare", rows)


if __name__ == "__main__":
    main()
