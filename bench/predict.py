"""predict.py on a small and a large file, and export.py of a table above 1 GiB: time, memory, and whether it works.

python bench/predict.py                   # 1 and 10 M rows; about 5 minutes, 8 GiB of memory and 8 GB of disk
python bench/predict.py 100000 1000000
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from common import DATA, OUT, report, run
from memory import peaks

from dlen.batch import Batch
from dlen.models import DLEN
from dlen.ranking.fusion import Fusion, Score
from dlen.schema import Field, Kind, Schema, Task
from dlen.serving.export import Serving, check_export, dense, write_export

RUN = OUT / "predict"
SIZES = {"user": 4000, "age": 7, "gender": 2, "city": 60, "item": 2000, "category": 40, "author": 300, "hour": 24}
CHUNK = 1 << 20
LARGE_IDS = 22_000_000  # 16 numbers each: 1.3 GiB


def predicted(rows: int, folder: Path) -> dict[str, str]:
    """Predict a CSV with this many rows, including some unknown users."""
    rng, path = np.random.default_rng(0), folder / f"{rows}.csv"
    with path.open("wb") as file:
        for start in range(0, rows, CHUNK):
            number = min(CHUNK, rows - start)
            frame = pl.DataFrame({name: rng.integers(size + 1, size=number) for name, size in SIZES.items()})
            frame.write_csv(file, include_header=start == 0)
    asked = [f"run={RUN}", f"input={path}", f"output={folder / 'scores.parquet'}"]
    started = time.perf_counter()
    own, mapped = peaks(["predict.py", *asked])
    seconds = time.perf_counter() - started
    assert pl.scan_parquet(folder / "scores.parquet").select(pl.len()).collect().item() == rows
    size = path.stat().st_size / 2**20
    path.unlink()
    return {
        "what": f"predict {rows:,} rows",
        "file, MiB": f"{size:.0f}",
        "seconds": f"{seconds:.0f}",
        "rows/s": f"{rows / seconds:,.0f}",
        "own memory, MiB": f"{own:.0f}",
        "mapped files, MiB": f"{mapped:.0f}",
    }


def exported(folder: Path) -> dict[str, str]:
    """Export a model whose table exceeds the size limit of a graph, so it is stored in a separate file."""
    fields = (Field("user", Kind.ID, "user", LARGE_IDS), Field("tags", Kind.IDS, "item", 1000))
    schema = Schema(fields, (Task("click", 0.2), Task("like", 0.1)), user="user")
    model = DLEN(schema, embedding_dim=16).eval()
    serving = Serving(model, Score(Fusion(up=1.0), torch.ones(2))).eval()
    batch = _rows()
    started = time.perf_counter()
    inputs = dense(batch, schema)
    write_export(serving, inputs, folder / "model.onnx", folder / "model.pt2")
    worst = max(check_export(serving, [(inputs, batch)], folder / "model.onnx", folder / "model.pt2"))
    assert worst < 1e-5, worst
    sizes = ", ".join(f"{p.name} {p.stat().st_size / 2**20:,.0f} MiB" for p in sorted(folder.iterdir()))
    return {"what": f"export {LARGE_IDS:,} ids", "file, MiB": sizes, "seconds": f"{time.perf_counter() - started:.0f}"}


def _rows() -> Batch:
    """512 rows with random users, and lists of up to four tags."""
    rng, rows = np.random.default_rng(0), 512
    lengths = torch.from_numpy(rng.integers(0, 5, (1, rows)))
    tags = LARGE_IDS + torch.from_numpy(rng.integers(1000, size=int(lengths.sum())))
    ids, none = torch.from_numpy(rng.integers(LARGE_IDS, size=(rows, 1))), torch.zeros(rows, 0)
    return Batch(ids, none, lengths, tags, torch.rand(len(tags)), torch.zeros(rows, 2), none)


def main() -> None:
    """Measure the requested row counts, then the export."""
    if not (RUN / "metrics.json").exists():
        run(["train.py", "model=dlen", "trainer.max_epochs=1", f"data_dir={DATA}", f"run_dir={RUN}"])
    rows = []
    with tempfile.TemporaryDirectory(dir=OUT) as folder:
        rows += [predicted(int(a), Path(folder)) for a in sys.argv[1:] or (1_000_000, 10_000_000)]
    with tempfile.TemporaryDirectory(dir=OUT) as folder:
        rows.append(exported(Path(folder)))
    report("predict", [{key: row.get(key, "") for key in rows[0]} for row in rows])


if __name__ == "__main__":
    main()
