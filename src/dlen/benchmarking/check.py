"""check: rerun runs of a benchmark, and tell whether their test metrics are those of its file."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dlen.benchmarking.benchmark import common_overrides
from dlen.benchmarking.claims import Claim
from dlen.comparing.plan import PlannedRun, plan_runs
from dlen.comparing.statistics import next_seed
from dlen.comparing.workers import train_missing
from dlen.data.store import Store
from dlen.devices import available, number_of_workers
from dlen.errors import UserError
from dlen.files import check_links, check_writable, read_figures
from dlen.overrides import compose_train, written
from dlen.training.configs import plain_values
from dlen.training.rerun import causes, must_match
from dlen.trust import check_config, packages

_NOT_OF_A_RUN = {"hydra", "trust", "run_dir", "runs_dir"}  # what the file of somebody else does not decide
_CIRCUMSTANCES = ("config_hash", "data_fingerprint", "fit/precision")


def check(claims: Sequence[Claim], config: DictConfig) -> bool:
    """Train the claimed runs again, in ``runs_dir/check``, and print a line about each.

    Metrics agree if they are identical or, where code, libraries, machine or settings differ, if the mean AUC is where
    one more seed would be: training amplifies the last digits, so that another sum is like another seed.

    Args:
        config: config of ``benchmark.py``.

    Returns:
        Whether all agree.

    Raises:
        UserError: the data have other test rows, the file names code that is not trusted, or a run fails.
    """
    runs_dir = Path(config.runs_dir) / "check"
    check_writable(runs_dir)
    check_links(runs_dir)
    stores: dict[str, Store] = {}
    runs = [_planned(claim, config, runs_dir, stores) for claim in claims]
    for run in runs:
        if run.done:
            shutil.rmtree(run.folder)
    train_missing(runs, _workers(config.workers, claims), "check", "benchmark")
    agree = True
    for claim, run in zip(claims, runs, strict=True):
        agrees, line = verdict(claim, read_figures(run.folder / "metrics.json"))
        print(line, file=sys.stdout if agrees else sys.stderr)
        agree &= agrees
    return agree


def _planned(claim: Claim, config: DictConfig, runs_dir: Path, stores: dict[str, Store]) -> PlannedRun:
    """The run of a claim; UserError if its test rows are others here."""
    settings = [o for o in claim.settings if not set(re.split(r"\W", o.split("=")[0])) & _NOT_OF_A_RUN]
    overrides = [*common_overrides(settings), f"runs_dir={written(str(runs_dir), quote=True)}"]
    check_config(plain_values(compose_train(overrides)), packages(config.trust), Path(config.check))
    seed = claim.run["seed"]
    run = plan_runs(claim.data_set, claim.model, {claim.model: overrides}, [seed], stores).runs[claim.model, seed]
    here, there = run.store.labels_identity("test"), claim.run.get("data_test")
    if here != there:
        raise UserError(
            f"{claim.data_set}: the test rows are others here ({here}) than in {config.check} ({there}); use its files"
        )
    return run


def _workers(asked: int | str, claims: Sequence[Claim]) -> int:
    """Number of concurrent runs; ``auto`` gives each as many threads as it had, as their number changes last digits."""
    if asked != "auto":
        return number_of_workers(asked, len(claims))
    return max(1, available() // max(int(claim.run.get("machine/threads", 1)) for claim in claims))


def verdict(claim: Claim, now: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the metrics of a rerun agree with its claim, and the line that says so."""
    was = claim.run
    keys = [key for key in was if key.startswith("test/") and must_match(key)]
    mean, here = was[claim.measure], float(now[claim.measure])
    line = f"{claim.data_set}, {claim.model}, seed {was['seed']}: mean {claim.measure.split('/')[1].upper()} {here:.6f}"
    if all(now.get(key) == was[key] for key in keys):
        return True, f"{line}, and all {len(keys)} test metrics are identical"
    line += f", in the file {mean:.6f}"
    changes = causes(was, now, _CIRCUMSTANCES)
    if now.get("machine/gpu") is not None:
        changes.append("a GPU sums in a varying order")
    if not changes:
        return False, f"{line}: does not agree, though settings, code, libraries and machine are the same"
    if len(claim.auc) < 2:
        return False, f"{line}: not identical, and one seed has no spread to judge it by; {'; '.join(changes)}"
    low, high = next_seed(claim.auc)
    agrees = low <= here <= high
    line += f", and one more seed would be from {low:.6f} to {high:.6f} (95 %)"
    return agrees, f"{line}: {'agrees' if agrees else 'does not agree'}; {'; '.join(changes)}"
