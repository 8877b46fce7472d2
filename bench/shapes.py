"""The shapes that the benches measure: a table with Ali-CCP's fields and sizes, the feed, and Ali-CCP's raw format."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from common import ALICCP_SIZES, DATA, run

from dlen.data.store import Store


@cache
def _store(data: tuple[str, ...]) -> Store:
    ran = run(["prepare.py", *data, f"data_dir={DATA}"])
    return Store(Path(ran.output.strip().splitlines()[-1].removeprefix("  in ")))


@dataclass(frozen=True, slots=True)
class Shape:
    """One data set and the paper's sizes for it.

    Attributes:
        name: name in the tables.
        data: arguments of train.py and prepare.py.
        experts: number of experts of MMoE, and of shared experts of PLE.
        task_experts: number of experts per task of PLE.
    """

    name: str
    data: tuple[str, ...]
    experts: int
    task_experts: int

    def store(self) -> Store:
        """The prepared store, written by prepare.py if missing."""
        return _store(self.data)

    def arrays(self) -> Path:
        """A file with the training rows for the peers: ids from 0 in each field, labels, and sizes."""
        store = self.store()
        path = store.folder / "arrays.npz"
        if not path.exists():
            split, schema = store.split("train"), store.schema
            starts = np.array([schema.offsets[f.name] for f in schema.fields], np.int32)
            rows = split.batch(torch.arange(len(split)))
            ids = rows.ids.numpy() - starts
            sizes = [f.vocab_size for f in schema.fields]
            counts = {"shared_experts": self.experts, "task_experts": self.task_experts}
            np.savez(path, ids=ids, labels=rows.labels.numpy().astype(np.uint8), sizes=np.array(sizes), **counts)  # type: ignore[arg-type]
        return path


def aliccp_table(rows: int) -> Shape:
    """Ali-CCP's fields with one id each and two tasks. Every id occurs at least once if there are enough rows."""
    folder = DATA / f"aliccp_table_{rows}"
    spec = folder / "aliccp.yaml"
    if not spec.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        click = rng.random(rows) < 0.04
        columns: dict[str, Any] = {f"f{name}": _ids(rng, rows, size) for name, size in ALICCP_SIZES.items()}
        columns |= {"click": click, "buy": click & (rng.random(rows) < 0.1)}
        pl.DataFrame(columns).with_columns(pl.col("click", "buy").cast(pl.Int8)).write_parquet(folder / "log.parquet")
        fields = {f"f{name}": {"kind": "id", "side": "user" if name < "2" else "item"} for name in ALICCP_SIZES}
        tasks = {"ctr": "click", "cvr": {"label": "buy", "observed_where": "ctr", "joint": "ctcvr"}}
        content = {"files": "log.parquet", "fields": fields, "tasks": tasks, "user": "f101"}
        content["split"] = {"by": "fraction", "validation": 0.05, "test": 0.1}
        spec.write_text(yaml.safe_dump(content, sort_keys=False))
    return Shape("Ali-CCP", ("data=table", f"data.spec={spec}", "paper.setting=funnel"), 2, 1)


def _ids(rng: np.random.Generator, rows: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Half of the rows have popular ids (log-uniform), the other half every id in turn."""
    popular = np.exp(rng.random(rows // 2) * np.log(size)).astype(np.int64) - 1
    return rng.permutation(np.concatenate([popular, np.arange(rows - len(popular)) % size]))


def feed(rows: int) -> Shape:
    """The feed simulator: 5 tasks, 5 experts."""
    return Shape("feed", ("data=feed", f"data.rows={rows}"), 5, 2)


def aliccp_raw(rows: int) -> Shape:
    """Ali-CCP's raw format, with multi-valued fields of up to 20 values."""
    raw = DATA / f"aliccp_raw_{rows}"
    return Shape("Ali-CCP, raw", ("data=aliccp_demo", f"data.rows={rows}", f"data.raw_dir={raw}"), 2, 1)
