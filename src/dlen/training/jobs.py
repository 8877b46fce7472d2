"""The table that ends ``--multirun``: one row per job, and the mean and deviation over seeds."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_COLUMNS = {"val/auc/weighted": "val AUC, weighted", "val/auc/mean": "val AUC, mean", "test/auc/mean": "test AUC, mean"}
_SEED = re.compile(r"^\+*seed=")


class JobTable(Callback):
    """Collects the metrics of each job of a multirun and prints them at the end.

    Hydra's launcher runs the callback where the jobs run, so jobs of a launcher that submits them elsewhere are not
    listed.
    """

    def __init__(self) -> None:
        self.jobs: list[tuple[list[str], dict[str, Any]]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Keep the metrics of a job."""
        if job_return.status is JobStatus.COMPLETED and isinstance(job_return.return_value, dict):
            self.jobs.append((list(job_return.overrides or []), job_return.return_value))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table."""
        if len(self.jobs) < 2:
            return
        shared = set.intersection(*(set(overrides) for overrides, _ in self.jobs))
        own = [([o for o in overrides if o not in shared], metrics) for overrides, metrics in self.jobs]
        used = {key: title for key, title in _COLUMNS.items() if any(key in metrics for _, metrics in own)}
        table = Table(title=f"{len(own)} jobs")
        table.add_column("job")
        for title in used.values():
            table.add_column(title, justify="right")
        for overrides, metrics in own:
            cells = [f"{metrics[key]:.4f}" if isinstance(metrics.get(key), float) else "" for key in used]
            table.add_row(escape(" ".join(overrides)), *cells)
        for label, group in _over_seeds(own).items():
            table.add_row(escape(label), *(_mean_and_deviation([m.get(key) for m in group]) for key in used))
        terminal = Console()
        (terminal if terminal.is_terminal else Console(width=200)).print(table)


def _over_seeds(jobs: list[tuple[list[str], dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Jobs that differ only by their seed, by their other overrides; those of several seeds alone."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for overrides, metrics in jobs:
        groups[" ".join(o for o in overrides if not _SEED.match(o))].append(metrics)
    seeds = any(_SEED.match(o) for overrides, _ in jobs for o in overrides)
    return {f"{label or 'all'}, {len(g)} seeds": g for label, g in groups.items() if seeds and len(g) > 1}


def _mean_and_deviation(values: list[Any]) -> str:
    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) < len(values):
        return ""
    return f"{statistics.mean(numbers):.4f} ± {statistics.stdev(numbers):.4f}"
