"""Test AUC of our models, LightGBM, logistic regression and torch-rechub on the same rows, with seeds and intervals.

python bench/accuracy.py                                            # feed and feed_sparse
python bench/accuracy.py adult=DIR kuairand=LOG.tsv pure=DIR        # and real tables, if you have them
python bench/accuracy.py tables=pure pure=DIR seeds=3 'models=LightGBM,MMoE,DLEN'
python bench/accuracy.py tables=pure against=pure_rates pure=DIR models=MMoE    # what histories bring to a model

The DIR of adult holds census-income.data and .test, that of pure log.parquet, users.parquet, videos.parquet and
histories.parquet. pure_rates is pure without histories, pure_plain also without rates. kuairand is the subset with
likes and hates, joined with the features in pure's folder. Every model uses its default settings and selects its
weights on the validation rows. torch-rechub runs through its own trainer if `make bench-peers` has installed it
(peers=mmoe for only one of its models, peers=no for none), with our sizes, batch size and epochs, at its best epoch.
Differences are paired with LightGBM's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from common import DATA, OUT, ROOT
from hydra import initialize_config_dir
from omegaconf import DictConfig

from dlen.comparing.compare import summarise
from dlen.comparing.plan import Plan, PlannedRun, plan_runs
from dlen.comparing.tables import markdown, write_comparison
from dlen.data.store import Store
from dlen.metrics.functional import exact_auc
from dlen.overrides import compose_train, register_resolvers
from dlen.schema import Kind
from dlen.serving.export import dense
from dlen.targets import Targets
from dlen.training.run_folder import SCORES

PEER_PYTHON = ROOT / "bench/peers/.venv/bin/python"
EXPERIMENT = ROOT / "conf/experiment/baselines.yaml"
PEERS = {"torch-rechub MMoE": "mmoe", "torch-rechub PLE": "ple"}
# KuaiRand-Pure with less and less of the log's own history: kinds of fields that are left out
WITHOUT = {"pure_rates": ("history", "sequence"), "pure_plain": ("history", "sequence", "rate")}


def tables(asked: dict[str, str]) -> dict[str, list[str]]:
    """Settings of the available data sets."""
    found = {"feed": ["data=feed"], "feed_sparse": ["data=feed_sparse", "data.rows=400000", "loader.batch_size=1024"]}
    if "adult" in asked:
        files = f"{{train: {asked['adult']}/census-income.data, test: {asked['adult']}/census-income.test}}"
        found["adult"] = ["data=table", "data.spec=examples/adult.yaml", f"data.files={files}"]
    if "kuairand" in asked and "pure" in asked:
        spec = ["data=table", "data.spec=examples/kuairand_features.yaml", f"data.files={asked['kuairand']}"]
        found["kuairand"] = [*spec, f"data.folder={asked['pure']}"]
    if "pure" in asked:
        found["pure"] = ["data=table", "data.spec=examples/kuairand_pure.yaml", f"data.folder={asked['pure']}"]
        for name, kinds in WITHOUT.items():
            path = OUT / f"kuairand_{name}.yaml"
            write_without(kinds, path)
            found[name] = ["data=table", f"data.spec={path}", f"data.folder={asked['pure']}"]
    return found


def write_without(kinds: tuple[str, ...], path: Path) -> None:
    """Write the spec of KuaiRand-Pure without some kinds of fields."""
    spec = yaml.safe_load((ROOT / "examples/kuairand_pure.yaml").read_text())
    spec["fields"] = {
        name: f for name, f in spec["fields"].items() if f.get("kind") not in kinds and not set(kinds) & set(f)
    }
    if "sequence" in kinds:
        del spec["joins"]["histories"]
    OUT.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(spec, sort_keys=False))


def trained(name: str, settings: list[str], seeds: int, chosen: list[str]) -> Plan:
    """Train the models of experiment=baselines with compare.py, and return a plan whose runs are complete."""
    experiment = yaml.safe_load(EXPERIMENT.read_text())["experiment"]
    base = experiment["base"]
    models = {m: own for m, own in experiment["models"].items() if not chosen or m in (base, *chosen)}
    common = [*settings, f"data_dir={DATA}", f"runs_dir={OUT}/accuracy/runs"]
    quoted = ",".join(f'"{model}"' for model in models)
    arguments = ["compare.py", "experiment=baselines", *common, f"seeds={seeds}", f"models=[{quoted}]"]
    subprocess.run(
        [sys.executable, *arguments, f"out={OUT}/accuracy/{name}-own"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    return plan_runs(name, base, {m: [*common, *own] for m, own in models.items()}, range(seeds))


def inputs(name: str, found: dict[str, list[str]], base: str, model: str, seeds: int) -> None:
    """Print what the inputs of a table bring to a model beside those of another table with the same rows."""
    own = yaml.safe_load(EXPERIMENT.read_text())["experiment"]["models"][model]
    models = {table: [*found[table], *own] for table in (base, name)}
    content = {"experiment": {"title": f"{model}: {name} against {base}", "base": base, "models": models}}
    path = OUT / "conf" / "experiment" / "of_inputs.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# @package _global_\n" + yaml.safe_dump(content, sort_keys=False))
    kept = [f"data_dir={DATA}", f"runs_dir={OUT}/accuracy/runs", f"out={OUT}/accuracy/{name}-{base}-{model}"]
    command = ["compare.py", f"--config-dir={OUT}/conf", "experiment=of_inputs", *found[name], *kept, f"seeds={seeds}"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def arrays(store: Store, config: DictConfig) -> Path:
    """Write the splits in the peers' format: ids from 0 in each field, padded lists, numbers and labels."""
    path, schema = store.folder / "peers.npz", store.schema
    if path.exists():
        return path
    singles, bags = schema.of_kind(Kind.ID), schema.of_kind(Kind.IDS)
    parts: dict[str, Any] = {
        "sizes": [f.vocab_size for f in singles],
        "bag_sizes": [f.vocab_size for f in bags],
        **dict(config.paper[config.paper.setting]),
    }
    for name in ("train", "validation", "test"):
        batch = store.split(name).batch(torch.arange(len(store.split(name))))
        ids, numeric, bag_ids, weights, *_ = dense(batch, schema)
        parts[f"{name}_ids"] = (ids - torch.tensor([schema.offsets[f.name] for f in singles])).int().numpy()
        own = bag_ids - torch.tensor([schema.offsets[f.name] for f in bags], dtype=torch.int64)[:, None] + 1
        parts[f"{name}_bags"] = torch.where(weights > 0, own, 0).int().numpy()
        parts[f"{name}_numeric"], parts[f"{name}_labels"] = numeric.numpy(), batch.labels.numpy()
    np.savez(path, **parts)
    return path


def with_peers(plan: Plan, settings: list[str], peers: dict[str, str]) -> Plan:
    """Add runs of torch-rechub to the plan, training the missing ones."""
    store = next(iter(plan.runs.values())).store
    config = compose_train([*settings, f"data_dir={DATA}"])
    missing = [part for shard in store.shards for split in shard["splits"].values() for part in split["missing"]]
    if any(missing) or any(task.observed_where for task in store.schema.tasks):
        print("torch-rechub knows no task that is observed in some rows, so it is left out", file=sys.stderr)
        return plan
    runs = dict(plan.runs)
    for label, model in peers.items():
        for seed in plan.seeds:
            folder = OUT / "accuracy" / "peers" / f"{store.fingerprint}-{model}-{seed}"
            if not (folder / "metrics.json").exists():
                print(f"{plan.title}: {label}, seed {seed}", file=sys.stderr, flush=True)
                run_peer(model, seed, folder, store, config)
            runs[label, seed] = PlannedRun(label, seed, (), folder, store)
    return replace(plan, models=[*plan.models, *peers], runs=runs)


def run_peer(model: str, seed: int, folder: Path, store: Store, config: DictConfig) -> None:
    """Train one peer, and write the files that a comparison reads from a run."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [str(config.loader.batch_size), str(config.trainer.max_epochs)]
    command = [str(PEER_PYTHON), "bench/peers/accuracy.py", model, str(arrays(store, config)), str(seed), *sizes]
    with (folder / "train.log").open("w") as log:
        subprocess.run([*command, str(folder / SCORES)], cwd=ROOT, check=True, stdout=log, stderr=log)
    test, scores = store.split("test"), torch.from_numpy(np.load(folder / SCORES))
    labels = test.labels_of(torch.arange(len(test)))
    names = Targets(store.schema).names
    auc = {f"test/auc/{n}": float(exact_auc(scores[:, i], labels[:, i])) for i, n in enumerate(names)}
    auc["test/auc/mean"] = float(np.mean(list(auc.values())))
    (folder / "metrics.json").write_text(json.dumps({"model": model, "seed": seed, "data": "", **auc}))


def main() -> None:
    """Run every table in turn; print each result and write it to bench/out/accuracy."""
    asked = dict(a.split("=", 1) for a in sys.argv[1:])
    register_resolvers()
    found = tables(asked)
    chosen = asked["tables"].split(",") if "tables" in asked else list(found)
    models = asked["models"].split(",") if "models" in asked else []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for name in chosen:
            if "against" in asked:
                for model in models:
                    inputs(name, found, asked["against"], model, int(asked.get("seeds", 5)))
                continue
            plan = trained(name, found[name], int(asked.get("seeds", 5)), models)
            peers = asked.get("peers", ",".join(PEERS.values())).split(",")
            if PEER_PYTHON.exists() and peers != ["no"]:
                plan = with_peers(plan, found[name], {label: m for label, m in PEERS.items() if m in peers})
            comparison = summarise(plan)
            print(markdown(comparison), flush=True)
            out = OUT / "accuracy" / name
            out.mkdir(parents=True, exist_ok=True)
            write_comparison(comparison, out)


if __name__ == "__main__":
    main()
