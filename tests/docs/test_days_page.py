"""docs/days.md: the YAML of a log that grows by a folder a day."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl

from dlen.data.append import append
from dlen.data.prepare import prepare
from dlen.data.sources.table import Table
from tests.conftest import ROOT

ROWS = 200


def write_day(folder: Path, day: int) -> None:
    draw = np.random.default_rng(day)
    path = folder / f"logs/day=2026-11-{day}/part-0.parquet"
    path.parent.mkdir(parents=True)
    columns = {"user": draw.integers(0, 40, ROWS), "item": draw.integers(0, 30, ROWS)}
    pl.DataFrame(columns | {task: draw.integers(0, 2, ROWS) for task in ("click", "like")}).write_parquet(path)


def test_its_yaml_prepares_the_first_days_and_appends_another(tmp_path: Path) -> None:
    found = re.search(r"```yaml\n(# log\.yaml\n.*?)```", (ROOT / "docs/days.md").read_text(), re.DOTALL)
    assert found
    (tmp_path / "log.yaml").write_text(found[1])
    for day in (20, 21, 22):
        write_day(tmp_path, day)
    store = prepare(Table(str(tmp_path / "log.yaml"), "log"), tmp_path / "data")
    assert store.rows == {"train": ROWS, "validation": ROWS, "test": ROWS}
    write_day(tmp_path, 23)
    assert append(Table(str(tmp_path / "log.yaml"), "log"), tmp_path / "data").rows["days"] == ROWS
