"""What rates of ids bring, and what a count beside them costs, on logs whose rows have a time.

python bench/id_rates.py                                 # the simulator's feed, dense and sparse, two seeds
python bench/id_rates.py kuairand=LOG.tsv pure=DIR       # and real tables, if you have them
python bench/id_rates.py tables=sparse models=mmoe,dlen seeds=3

*dense* and *sparse* are the feed with 60 and 7 rows per user, written as a table in the order of its rows. *rates* are
what a table's ids get by themselves, *counts* adds a count by the same keys, *training* counts training rows alone.
Validation chose; the test is shown beside it. Runs are kept in bench/out/views.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import polars as pl
import torch
import yaml
from accuracy import tables
from common import DATA, OUT, ROOT, report
from hydra import initialize_config_dir
from views import metrics, spread, trained

from dlen.comparing.fit import store_of
from dlen.overrides import compose_train, register_resolvers

WORLDS = {"dense": [], "sparse": ["data.users=32000", "data.items=16000"]}
KEYS = {"user": "user", "item": "item", "user_id": "user", "video_id": "item", "author_id": "item", "music_id": "item"}


def feed_table(name: str) -> dict[str, Any]:
    """Write the rows of a feed as a Parquet file, and return the YAML that describes them."""
    store = store_of(compose_train(["data=feed", "data.rows=300000", *WORLDS[name], f"data_dir={DATA}"]), {})
    schema, frames = store.schema, []
    for split in ("train", "validation", "test"):
        rows = store.split(split)
        batch = rows.batch(torch.arange(len(rows)))
        columns = {field.name: batch.ids[:, place].numpy() for place, field in enumerate(schema.fields)}
        columns |= {task: batch.labels[:, place].byte().numpy() for place, task in enumerate(schema.task_names)}
        frames.append(pl.DataFrame(columns).with_columns(split=pl.lit(split)))
    path = OUT / "id_rates" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.concat(frames).with_row_index("row").write_parquet(path)
    return {
        "files": str(path),
        "fields": {field.name: {"side": field.side} for field in schema.fields},
        "tasks": {task: task for task in schema.task_names},
        "split": {"by": "column", "column": "split", "validation": ["validation"], "test": ["test"]},
        "rates": {"time": "row"},
        "user": "user",
    }


def variants(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The spec with each way of rates."""
    shared = spec.get("rates", {})
    keys = {name: side for name, side in KEYS.items() if name in spec["fields"]}
    counted = dict(spec["fields"])
    for name, side in keys.items():
        counted[f"{name}_rate"] = {"rate": {"of": list(spec["tasks"]), "by": name}, "side": side}
        counted[f"{name}_rows"] = {"count": {"by": name}, "side": side}
    return {
        "none": {**spec, "rates": {**shared, "ids": "none"}},
        "rates": spec,
        "counts": {**spec, "fields": counted},
        "training": {**spec, "rates": {**shared, "rows": "train"}},
    }


def settings_of(name: str, asked: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The YAML of a table, and the other settings of its data."""
    if name in WORLDS:
        return feed_table(name), []
    settings = tables(asked)[name]
    (path,) = [s.removeprefix("data.spec=") for s in settings if s.startswith("data.spec=")]
    content = yaml.safe_load((ROOT / path).read_text())
    return content, [s for s in settings if not s.startswith(("data.spec=", "data=table"))]


def main() -> None:
    """Train every model on every table with each way of rates, and print a table."""
    asked = dict(a.split("=", 1) for a in sys.argv[1:])
    register_resolvers()
    there = [*WORLDS, *(["kuairand"] if "kuairand" in asked else []), *(["pure_plain"] if "pure" in asked else [])]
    rows = []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for name in asked.get("tables", ",".join(there)).split(","):
            spec, settings = settings_of(name, asked)
            for way, content in variants(spec).items():
                path: Path = OUT / "id_rates" / f"{name}_{way}.yaml"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(yaml.safe_dump(content, sort_keys=False))
                for model in asked.get("models", "mmoe").split(","):
                    own = ["data=table", f"data.spec={path}", *settings, f"model={model}"]
                    runs = trained(f"{name}, {way}", {model: own}, int(asked.get("seeds", 2)))[model]
                    figures = [metrics(run) for run in runs]
                    row: dict[str, Any] = {"table": name, "rates": way, "model": model}
                    row["validation"] = spread([f["val/auc/weighted"] for f in figures])
                    row |= {
                        key.removeprefix("test/auc/"): spread([f[key] for f in figures])
                        for key in ("test/auc/mean", f"test/auc/{next(iter(spec['tasks']))}")
                    }
                    rows.append(row)
    report("id_rates", rows)


if __name__ == "__main__":
    main()
