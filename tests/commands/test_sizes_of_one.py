"""One task, one field, one user, a batch of one row: every model trains on each of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hydra import initialize_config_dir

from dlen.overrides import compose_train
from dlen.training.fit import train
from tests.conftest import ROOT

FIELDS = {"user": "{kind: id, side: user}", "tags": "{kind: ids}", "age": "{kind: numeric}", "one": "{kind: id}"}
TWO = "{click: click, like: like}"
TABLES = {
    "one task": (["user", "tags", "age"], "{click: click}", "user"),
    "one id": (["user"], TWO, "user"),
    "one list": (["tags"], TWO, None),
    "one number": (["age"], TWO, None),
    "one user": (["user", "one"], TWO, "one"),
    "one task of one user with one value": (["one"], "{click: click}", "one"),
}
SMALL = ["model.backbone.expert=[8]", "model.head.tower=[8]"]
MODELS = {
    "dlen": ["model.backbone.expert=[8]", "model.head.hidden=[8]", "model.head.tower=[8]"],
    "dlen without a network for P(UP)": ["model=dlen", "model.head.hidden=null", "model.head.tower=[8]"],
    "mmoe": SMALL,
    "single_task": SMALL,
    "cross_stitch": SMALL,
    "adatt": SMALL,
    "pepnet": SMALL,
    "home": SMALL,
    "mran": SMALL,
    "stem": SMALL,
    "dbmtl": SMALL,
}


def trained(folder: Path, table: str, settings: list[str]) -> dict[str, float]:
    """The metrics of a run on a small table."""
    rng, rows = np.random.default_rng(0), 200
    columns = {"user": rng.integers(0, 20, rows), "tags": [f"t{t}|t1" for t in rng.integers(0, 9, rows)]}
    columns |= {"age": rng.normal(size=rows), "one": np.zeros(rows, int)}
    columns |= {name: rng.integers(0, 2, rows) for name in ("click", "like")}
    pl.DataFrame(columns).write_csv(folder / "log.csv")
    fields, tasks, user = TABLES[table]
    told = "".join(f"  {name}: {FIELDS[name]}\n" for name in fields)
    whose = f"user: {user}\n" if user else ""
    (folder / "log.yaml").write_text(f"files: log.csv\nignore: rest\nfields:\n{told}tasks: {tasks}\n{whose}")
    places = [f"data_dir={folder / 'data'}", f"runs_dir={folder / 'runs'}", f"run_dir={folder / 'run'}"]
    data = ["data=table", f"data.spec={folder / 'log.yaml'}", "trainer.max_epochs=1"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        train(compose_train([*places, *data, *settings]))
    found: dict[str, float] = json.loads((folder / "run" / "metrics.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("table", ["one task", "one task of one user with one value"])
def test_every_kind_of_model_trains_on_one_task(model: str, table: str, tmp_path: Path) -> None:
    named = [] if MODELS[model][0].startswith("model=") else [f"model={model}"]
    assert trained(tmp_path, table, [*named, *MODELS[model], "loader.batch_size=64"])


@pytest.mark.slow
@pytest.mark.parametrize("table", list(TABLES))
def test_every_table_trains_in_batches_of_one(table: str, tmp_path: Path) -> None:
    assert trained(
        tmp_path, table, ["model=dlen", *MODELS["dlen"], "loader.batch_size=1", "trainer.val_check_interval=1.0"]
    )
