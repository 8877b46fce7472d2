"""The AUC gate: are the shipped experiments better than, worse than or even with bench/quality.yaml?

python bench/quality.py              # train and compare; exit code 1 if any model is worse
python bench/quality.py measure      # train and update the YAML, after a change that is meant to change AUC
python bench/quality.py table1       # only some of them

A model is even if its mean over seeds is within the 95 % interval of a difference of two means, with Bonferroni
correction for all models judged together. The standard deviation over seeds is that of the model, or the pooled one of
all models in its experiment if that is larger: three seeds can agree by chance. Runs are kept in bench/out/quality, and
trained again if code or config has changed.
"""

from __future__ import annotations

import csv
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml
from common import DATA, OUT, report, run
from scipy import stats

from dlen.files import write_text
from dlen.training.configs import code_fingerprint

FILE = Path(__file__).with_suffix(".yaml")
LEAST = 2e-4  # smallest AUC difference to report, in case all seeds agree by chance


def measured(name: str, content: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Mean AUC over tasks of each model: mean and standard deviation over seeds."""
    asked = content["experiments"][name]
    out = OUT / "quality" / name
    settings = [f"experiment={name}", *asked.get("settings", content["settings"]), f"seeds={content['seeds']}"]
    # Runs are identified by config and data. Here the code is part of the identity, because the code is what is tested.
    places = [f"data_dir={DATA}", f"runs_dir={OUT}/quality/runs-{code_fingerprint()}", f"out={out}"]
    if "models" in asked:
        quoted = ",".join(f'"{model}"' for model in asked["models"])
        settings.append(f"models=[{quoted}]")
    run(["compare.py", *settings, *places])
    of_seeds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (out / "table.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            of_seeds[row["model"]][row["seed"]].append(float(row["auc"]))
    means = {model: [statistics.mean(each) for each in seeds.values()] for model, seeds in of_seeds.items()}
    return {
        model: {"mean": round(statistics.mean(m), 5), "deviation": round(statistics.stdev(m), 5), "seeds": len(m)}
        for model, m in means.items()
    }


def tolerance(experiment: dict[str, dict[str, float]], model: str, seeds: int, judged_together: int) -> float:
    """Half-width of the interval of the difference of two means over seeds, from the stored deviations."""
    pooled = math.sqrt(statistics.mean(found["deviation"] ** 2 for found in experiment.values()))
    before, freedom = experiment[model], sum(found["seeds"] - 1 for found in experiment.values())
    quantile = float(stats.t.ppf(1 - 0.025 / judged_together, freedom))
    return max(LEAST, quantile * max(before["deviation"], pooled) * math.sqrt(1 / before["seeds"] + 1 / seeds))


def judged(
    name: str, before: dict[str, dict[str, float]], now: dict[str, dict[str, float]], together: int
) -> list[dict[str, str]]:
    """One row per model; ``together`` is the number of models judged together."""
    rows = []
    for model, found in now.items():
        row = {"experiment": name, "model": model, "AUC": f"{found['mean']:.4f}"}
        if model not in before:
            rows.append(row | {"before": "", "tolerance": "", "verdict": "new"})
            continue
        change, allowed = found["mean"] - before[model]["mean"], tolerance(before, model, int(found["seeds"]), together)
        verdict = "even" if abs(change) <= allowed else "better" if change > 0 else "worse"
        rows.append(row | {"before": f"{before[model]['mean']:.4f}", "tolerance": f"{allowed:.4f}", "verdict": verdict})
    return rows


def main() -> None:
    """Run all experiments, or the named ones."""
    remember, asked = "measure" in sys.argv[1:], [a for a in sys.argv[1:] if a != "measure"]
    text = FILE.read_text()
    content = yaml.safe_load(text)
    rows, found = [], dict(content["found"])
    now = {name: measured(name, content) for name in asked or content["experiments"]}
    together = sum(len(models) for models in now.values())
    for name, models in now.items():
        rows += judged(name, content["found"].get(name, {}), models, together)
        found[name] = models
    report("quality", rows)
    if remember:
        head = text[: text.index("\nfound:")]
        write_text(FILE, f"{head}\n{yaml.safe_dump({'found': found}, sort_keys=False, width=120)}")
    elif any(row["verdict"] == "worse" for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
