"""What P(UP) comes to mean: the simulator's worlds with a known truth, and what P(UP) ranks on a real log.

python bench/views.py                    # the simulator's worlds, three seeds
python bench/views.py pure=DIR           # and KuaiRand-Pure, if you have it
python bench/views.py worlds=implied,play_time seeds=5

*implied* has a task that follows another one (data=feed_implied). *play_time* has rare labels and a play time that is
known only afterwards. *two_states* has clicks and long views with a taste of their own (data=feed_two_states).
KuaiRand-Pure has the fields of pure_rates in bench/accuracy.py; *held out* leaves a task out of
training and ranks it by P(UP) alone, beside the best other task of the same run. Runs are kept in bench/out/views.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
import yaml
from accuracy import tables
from common import DATA, OUT, ROOT, report
from hydra import initialize_config_dir

from dlen.comparing.plan import PlannedRun, plan_runs
from dlen.files import read_mapping
from dlen.metrics.functional import exact_auc
from dlen.overrides import register_resolvers
from dlen.training.module import RankingModule
from dlen.training.run_folder import BEST, SCORES

PLAIN = ["model=dlen", "model.head.views=none", "model.head.initial_up=0.5"]
ONE = ["model=dlen", "model.head.states=1"]
ALONE = ["~data.rates.long_view", "~data.follows.long_view"]
RARE = ["data=feed_sparse", "data.rows=250000", "loader.batch_size=1024", "trainer.max_epochs=6"]
WORLDS: dict[str, dict[str, list[str]]] = {
    "implied": {
        "MMoE": ["data=feed_implied", "model=mmoe"],
        "DLEN, all labels independent": ["data=feed_implied", *PLAIN],
        "DLEN, one state": ["data=feed_implied", *ONE],
        "DLEN": ["data=feed_implied", "model=dlen"],
        "DLEN without long_view": ["data=feed_implied", "model=dlen", *ALONE],
    },
    "play_time": {
        "DLEN": [*RARE, "model=dlen"],
        "DLEN with the play time": [*RARE, "model=dlen", "data.play_time=1"],
        "MMoE": [*RARE, "model=mmoe"],
    },
    "two_states": {
        "MMoE": ["data=feed_two_states", "model=mmoe"],
        "DLEN, all labels independent": ["data=feed_two_states", *PLAIN],
        "DLEN, click and long_view as one view": [
            "data=feed_two_states",
            *ONE,
            "model.head.views={watch:[click,long_view]}",
        ],
        "DLEN, two states": [
            "data=feed_two_states",
            "model=dlen",
            "model.head.states={watching:[click,long_view],liking:[like,share,follow,comment]}",
        ],
    },
}
HELD_OUT = ("like", "profile_enter")
FIGURES = ("test/auc/mean", "test/corr/up_truth", "test/corr/watching_truth", "test/auc/up_truth", "test/hidden/mean")


def trained(name: str, models: Mapping[str, Sequence[str]], seeds: int) -> dict[str, list[PlannedRun]]:
    """The runs of each model, by seed, trained if they are missing."""
    common = [f"data_dir={DATA}", f"runs_dir={OUT}/views", "metrics.by_user=false", "metrics.conflict_every=0"]
    found = {}
    for model, own in models.items():
        plan = plan_runs(name, model, {model: [*common, *own]}, range(seeds))
        found[model] = list(plan.runs.values())
        for run in found[model]:
            if not run.done:
                print(f"{name}: {model}, seed {run.seed}", file=sys.stderr, flush=True)
                shutil.rmtree(run.folder, ignore_errors=True)
                command = [sys.executable, "train.py", *run.overrides, f"run_dir={run.folder}"]
                subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return found


def metrics(run: PlannedRun) -> dict[str, Any]:
    """Content of the run's metrics.json."""
    return read_mapping(run.folder / "metrics.json")


def spread(values: Sequence[float]) -> str:
    """Mean and deviation over seeds; empty without values."""
    if not values:
        return ""
    return f"{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def of_world(name: str, seeds: int) -> list[dict[str, Any]]:
    """Rows of the report about one world."""
    rows = []
    for model, runs in trained(name, WORLDS[name], seeds).items():
        figures = [metrics(run) for run in runs]
        cells = {key.removeprefix("test/"): spread([f[key] for f in figures if key in f]) for key in FIGURES}
        rows.append({"world": name, "model": model, **cells})
    return rows


@torch.no_grad()
def up_of(run: PlannedRun) -> torch.Tensor:
    """(n,) P(UP) of the test rows."""
    model = RankingModule.load_from_checkpoint(run.folder / BEST).model
    split = run.store.split("test")
    batches = (split.batch(torch.arange(i, min(i + 8192, len(split)))) for i in range(0, len(split), 8192))
    return torch.cat([model(batch).latent.log_up for batch in batches]).exp()


def agreement(runs: Sequence[PlannedRun]) -> str:
    """Lowest correlation of P(UP) between two seeds."""
    states = [up_of(run).numpy() for run in runs]
    found = [float(np.corrcoef(a, b)[0, 1]) for a, b in combinations(states, 2)]
    return f"{min(found):.3f}" if found else ""


def of_pure(settings: list[str], seeds: int) -> list[dict[str, Any]]:
    """Rows of the report about KuaiRand-Pure: what P(UP) ranks, beside P(click) of the same runs."""
    rows = []
    for model, runs in trained("pure", variants(settings), seeds).items():
        figures, tasks = [metrics(run) for run in runs], runs[0].store.schema.task_names
        row = {"model": model, "P(UP)": spread([f["test/hidden/mean"] for f in figures])}
        row |= {"mean AUC": spread([f["test/auc/mean"] for f in figures]), "seeds agree": agreement(runs)}
        for task in tasks[1:]:
            by_click = aucs(runs, tasks[0], task)
            row[f"{task} by P(UP), by P({tasks[0]})"] = (
                f"{spread([f[f'test/hidden/auc/{task}'] for f in figures])}, {spread(by_click)}"
            )
        rows.append(row)
    return rows


def variants(settings: list[str]) -> dict[str, list[str]]:
    """DLEN before it knew views, with views and one state, and by its defaults."""
    return {
        "DLEN, all labels independent": [*settings, *PLAIN],
        "DLEN, one state": [*settings, *ONE],
        "DLEN": [*settings, "model=dlen"],
    }


def aucs(runs: Sequence[PlannedRun], score: str, task: str) -> list[float]:
    """By run, the test AUC of the score of one task for the label of another."""
    schema, test = runs[0].store.schema, runs[0].store.split("test")
    labels = test.labels_of(torch.arange(len(test)))
    scores = [torch.from_numpy(np.load(run.folder / SCORES))[:, schema.task_index(score)] for run in runs]
    return [float(exact_auc(of_run, labels[:, schema.task_index(task)])) for of_run in scores]


def held_out(spec: str, settings: list[str], seeds: int) -> list[dict[str, Any]]:
    """Rows of the report about tasks that are left out of training."""
    rows = []
    for task in HELD_OUT:
        path = OUT / f"kuairand_without_{task}.yaml"
        content = yaml.safe_load((ROOT / spec).read_text())
        content["tasks"][task] = {"label": content["tasks"][task], "weight": 0.0}
        for field in content["fields"].values():
            if task in (field.get("rate") or {}).get("of", []):
                field["rate"]["of"].remove(task)
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        own = [s for s in settings if not s.startswith("data.spec=")]
        for model, runs in trained(f"held out {task}", variants([*own, f"data.spec={path}"]), seeds).items():
            row = {"held out": task, "model": model}
            row["AUC of P(UP)"] = spread([metrics(run)[f"test/hidden/auc/{task}"] for run in runs])
            names = runs[0].store.schema.task_names
            others = {other: aucs(runs, other, task) for other in names if other != task}
            best = max(others, key=lambda other: statistics.mean(others[other]))
            by = {other: spread(others[other]) for other in ("click", "long_view")}
            rows.append(
                {**row, **{f"by {o}": v for o, v in by.items()}, "best other": f"{best} {spread(others[best])}"}
            )
    return rows


def main() -> None:
    """Run the worlds and, if it is there, KuaiRand-Pure; print and write the tables."""
    asked = dict(a.split("=", 1) for a in sys.argv[1:])
    register_resolvers()
    seeds = int(asked.get("seeds", 3))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        worlds = [name for name in asked.get("worlds", ",".join(WORLDS)).split(",") if name]
        if worlds:
            report("views", [row for name in worlds for row in of_world(name, seeds)])
        if "pure" in asked:
            settings = tables(asked)["pure_rates"]
            report("views_pure", of_pure(settings, seeds))
            spec = next(s.removeprefix("data.spec=") for s in settings if s.startswith("data.spec="))
            report("views_held_out", held_out(spec, settings, seeds))


if __name__ == "__main__":
    main()
