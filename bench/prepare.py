"""Rows per second and peak memory of preparing Ali-CCP raw files, by number of rows, against a line-by-line script.

python bench/prepare.py                  # 0.5, 1 and 2 M generated rows
python bench/prepare.py 50000 100000     # other row counts
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from common import report, run

from dlen.data.sources.aliccp_demo import AliCCPDemo


def main() -> None:
    """Generate each pair of files, then prepare it in its own process."""
    rows: list[dict[str, Any]] = []
    for size in sorted(int(a) for a in sys.argv[1:]) or (500_000, 1_000_000, 2_000_000):
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder) / "raw"
            files = AliCCPDemo(str(raw), rows=size).files()
            megabytes = sum(f.stat().st_size for f in files) / 1e6
            asked = ["prepare.py", "data=aliccp", f"data.raw_dir={raw}"]
            alone = run([*asked, f"data_dir={folder}/alone", "prepare_workers=1"])
            ours = run([*asked, f"data_dir={folder}/data"])
            script = run(["bench/line_by_line.py", str(raw), f"{folder}/out.csv"])
            full = run(["bench/line_by_line.py", str(raw), f"{folder}/out.csv", "all"])
        total = size + size // 4
        for what, ran in (
            ("prepare.py", ours),
            ("prepare.py, one process", alone),
            ("line by line, all 23 fields", full),
            ("line by line, 17 single-valued fields", script),
        ):
            row = {"rows, train and test": f"{total:,}", "raw MB": f"{megabytes:.0f}", "what": what}
            row |= {"seconds": f"{ran.seconds:.1f}", "rows/s": f"{total / ran.seconds:,.0f}"}
            row |= {"prepare.py is x times": f"{ran.seconds / ours.seconds:.1f}"}
            rows.append(row | {"peak memory of a process, MiB": f"{ran.peak_mb:.0f}"})
    report("prepare", rows)


if __name__ == "__main__":
    main()
