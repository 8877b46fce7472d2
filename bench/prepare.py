"""Rows per second and peak memory of preparing Ali-CCP raw files, by number of rows, against a line-by-line script,
and of preparing a CSV file with Ali-CCP's fields against peers.

python bench/prepare.py                                      # 0.5, 1 and 2 M generated rows, and a table of 1 M
python bench/prepare.py rows=50000,100000 fuxictr=FOLDER     # other row counts; FuxiCTR from a copy of its repository
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from beside import PYTHON, check_peers
from common import DATA, Ran, report, run
from shapes import aliccp_table

from dlen.data.sources.aliccp_demo import AliCCPDemo

TABLE_ROWS = 1_000_000


def raw(size: int) -> list[dict[str, Any]]:
    """Generate a pair of files of Ali-CCP's raw format, then prepare it in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raw"
        files = AliCCPDemo(str(path), rows=size).files()
        megabytes = sum(f.stat().st_size for f in files) / 1e6
        asked = ["prepare.py", "data=aliccp", f"data.raw_dir={path}"]
        ran = {"prepare.py": run([*asked, f"data_dir={folder}/data"])}
        ran["prepare.py, one process"] = run([*asked, f"data_dir={folder}/alone", "prepare_workers=1"])
        script = ["bench/line_by_line.py", str(path), f"{folder}/out.csv"]
        ran["line by line, all 23 fields"] = run([*script, "all"])
        ran["line by line, 17 single-valued fields"] = run(script)
    return beside(ran, size + size // 4, megabytes)


def table(fuxictr: str) -> list[dict[str, Any]]:
    """Prepare a CSV file of ids as we and peers do."""
    spec = yaml.safe_load(Path(aliccp_table(TABLE_ROWS).data[1].removeprefix("data.spec=")).read_text())
    with tempfile.TemporaryDirectory() as folder:
        csv, ours = Path(folder) / "log.csv", Path(folder) / "log.yaml"
        pl.read_parquet(DATA / f"aliccp_table_{TABLE_ROWS}" / spec["files"]).write_csv(csv)
        ours.write_text(yaml.safe_dump(spec | {"files": csv.name}, sort_keys=False))
        asked = ["prepare.py", "data=table", f"data.spec={ours}"]
        ran = {"prepare.py": run([*asked, f"data_dir={folder}/data"])}
        ran["prepare.py, one process"] = run([*asked, f"data_dir={folder}/alone", "prepare_workers=1"])
        script = "bench/peers/prepare.py"
        if PYTHON.exists():
            ran["pandas and LabelEncoder"] = run([script, "pandas", str(csv), folder], PYTHON)
        if PYTHON.exists() and fuxictr:
            ran["FuxiCTR"] = run([script, "FuxiCTR", str(csv), folder, fuxictr], PYTHON)
        return beside(ran, TABLE_ROWS, csv.stat().st_size / 1e6)


def beside(ran: dict[str, Ran], rows: int, megabytes: float) -> list[dict[str, Any]]:
    """One line of a report for each way of preparing the same files."""
    ours = ran["prepare.py"].seconds
    return [
        {
            "rows": f"{rows:,}",
            "raw MB": f"{megabytes:.0f}",
            "what": what,
            "seconds": f"{each.seconds:.1f}",
            "rows/s": f"{rows / each.seconds:,.0f}",
            "prepare.py is x times": f"{each.seconds / ours:.1f}",
            "peak memory of a process, MiB": f"{each.peak_mb:.0f}",
        }
        for what, each in ran.items()
    ]


def main() -> None:
    """Measure the sizes that the arguments request, and report."""
    asked = dict(a.split("=") for a in sys.argv[1:])
    check_peers()
    sizes = sorted(int(size) for size in asked.get("rows", "500000,1000000,2000000").split(","))
    report("prepare", [row for size in sizes for row in raw(size)])
    report("prepare_table", table(asked.get("fuxictr", "")))


if __name__ == "__main__":
    main()
