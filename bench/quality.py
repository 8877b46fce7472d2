"""The AUC gate: are the shipped experiments better, worse or even to what bench/quality.yaml remembers?

python bench/quality.py              # train and compare; exit code 1 if any model is worse
python bench/quality.py measure      # train and remember: after a change that is meant to move AUC
python bench/quality.py table1       # some of them

A model is even where its mean over seeds lies within the 95 % interval of a difference of two means, with the
remembered deviation over seeds. Runs are kept in bench/out/quality, and trained again when code or config has changed.
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

from dlen.config import code_fingerprint
from dlen.files import write_text

FILE = Path(__file__).with_suffix(".yaml")
LEAST = 2e-4  # below which no difference of AUC is worth a word, as when all seeds came out alike by chance


def measured(name: str, content: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Mean AUC over tasks of each model: mean and deviation over seeds."""
    asked = content["experiments"][name]
    out = OUT / "quality" / name
    settings = [f"experiment={name}", *asked.get("settings", content["settings"]), f"seeds={content['seeds']}"]
    # Runs are known by config and data; by code as well here, as it is the code that is tried.
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


def tolerance(before: dict[str, float], seeds: int) -> float:
    """Half of the 95 % interval of the difference of two means over seeds, by the remembered deviation."""
    quantile = float(stats.t.ppf(0.975, before["seeds"] - 1))
    return max(LEAST, quantile * before["deviation"] * math.sqrt(1 / before["seeds"] + 1 / seeds))


def judged(name: str, before: dict[str, dict[str, float]], now: dict[str, dict[str, float]]) -> list[dict[str, str]]:
    """A row for each model."""
    rows = []
    for model, found in now.items():
        row = {"experiment": name, "model": model, "AUC": f"{found['mean']:.4f}"}
        if model not in before:
            rows.append(row | {"before": "", "tolerance": "", "verdict": "new"})
            continue
        change, allowed = found["mean"] - before[model]["mean"], tolerance(before[model], int(found["seeds"]))
        verdict = "even" if abs(change) <= allowed else "better" if change > 0 else "worse"
        rows.append(row | {"before": f"{before[model]['mean']:.4f}", "tolerance": f"{allowed:.4f}", "verdict": verdict})
    return rows


def main() -> None:
    """All experiments, or those that are named."""
    remember, asked = "measure" in sys.argv[1:], [a for a in sys.argv[1:] if a != "measure"]
    text = FILE.read_text()
    content = yaml.safe_load(text)
    rows, found = [], dict(content["found"])
    for name in asked or content["experiments"]:
        now = measured(name, content)
        rows += judged(name, content["found"].get(name, {}), now)
        found[name] = now
    report("quality", rows)
    if remember:
        head = text[: text.index("\nfound:")]
        write_text(FILE, f"{head}\n{yaml.safe_dump({'found': found}, sort_keys=False, width=120)}")
    elif any(row["verdict"] == "worse" for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
