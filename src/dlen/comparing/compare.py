"""compare: from an experiment's config to trained runs, paired statistics and tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dlen.comparing.delong import row_variances
from dlen.comparing.grid import cells_of, parse_grid
from dlen.comparing.plan import Plan, PlannedRun, make_plan
from dlen.comparing.session_policies import parse_sessions, run_sessions
from dlen.comparing.session_tables import sessions_markdown, write_sessions
from dlen.comparing.statistics import Difference, paired
from dlen.comparing.surface import Surface
from dlen.comparing.tables import Comparison, Row, markdown, print_markdown, write_comparison
from dlen.comparing.workers import train_missing
from dlen.data.store import Store
from dlen.devices import number_of_workers
from dlen.errors import UserError
from dlen.files import check_links, check_regular, check_writable, read_figures
from dlen.metric_names import own_names
from dlen.schema import Schema
from dlen.targets import Targets
from dlen.training.configs import code_fingerprint, plain_values
from dlen.training.loggers import sync_command
from dlen.training.run_folder import SCORES

_CHUNK = 1 << 18
_SIZES = ("model/dense_parameters", "model/flops_per_row", "fit/samples_per_second", "fit/seconds")
_EXTRAS = ("auc/up_any", "auc/up_truth", "corr/up_truth")


def compare(config: DictConfig) -> None:
    """Train missing runs, pair every model with the base model, and print and write the table.

    An experiment with a ``grid`` becomes one comparison per cell, and a surface over all cells.

    Args:
        config: config of ``compare.py``, which :func:`~dlen.comparing.settings.check_comparison` has accepted.

    Raises:
        UserError: a setting is wrong or a run fails.
    """
    grid = parse_grid(config)
    cells = cells_of(grid) if grid else []
    plans = [make_plan(config, grid.settings(cell)) for cell in cells] if grid else [make_plan(config)]
    runs = list({run.folder: run for plan in plans for run in plan.runs.values()}.values())
    workers = number_of_workers(config.workers, len(runs))
    name = f"{HydraConfig.get().runtime.choices['experiment']}-{config.data_name}"
    out = Path(config.out) if config.out is not None else Path(config.runs_dir) / "compare" / name
    check_writable(out)
    check_links(out)
    node = config.experiment.get("sessions")
    session_plan = None if node is None or grid else parse_sessions(node)
    train_missing(runs, workers, name, "compare")
    comparisons = [summarise(plan) for plan in plans]
    _warn_of_other_code(runs)
    out.mkdir(parents=True, exist_ok=True)
    if grid:
        surface = Surface(plans[0].title, grid, cells, comparisons)
        print_markdown(surface.markdown())
        surface.write(out)
        print(f"Surface: {out}/surface.md, surface.csv, surface.json")
    else:
        print_markdown(markdown(comparisons[0]))
        write_comparison(comparisons[0], out)
        print(f"Tables: {out}/table.md, table.csv, table.json")
    if session_plan is not None:
        online = config.experiment.get("online")
        sessions = run_sessions(plans[0], session_plan, {} if online is None else plain_values(online))
        print_markdown(sessions_markdown(sessions))
        write_sessions(sessions, out)
        print(f"Sessions: {out}/sessions.md, sessions.csv, sessions.json")
    if OmegaConf.select(config, "logger.wandb") is not None:
        print(sync_command(Path(config.runs_dir) / "compare" / "cache" / "*" / "wandb"))


def _warn_of_other_code(runs: list[PlannedRun]) -> None:
    """Warn if cached runs were trained by another version of the package's source."""
    now = code_fingerprint()
    other = [run.folder for run in runs if _read(run).get("code") != now]
    if other:
        print(
            f"warning: {len(other)} of {len(runs)} runs were trained by another version of the source code; to train "
            f"them again, delete their folders, such as {other[0]}",
            file=sys.stderr,
        )


def summarise(plan: Plan) -> Comparison:
    """Collect the metrics of a plan whose runs are done."""
    metrics = {key: _read(run) for key, run in plan.runs.items()}
    store = plan.runs[plan.base, plan.seeds[0]].store
    binary = store.schema.binary
    targets, tasks = Targets(binary), len(binary.tasks)
    keys = _keys(store.schema)
    labels, mask = (_of_events(part, store.schema) for part in _labels_and_mask(store))
    base_scores = [_of_events(_scores(plan.runs[plan.base, seed]), store.schema) for seed in plan.seeds]
    rows = []
    for model in plan.models:
        of_model = [metrics[model, seed] for seed in plan.seeds]
        auc = {n: [_figure(m, key) for m in of_model] for n, key in keys.items()}
        differences: dict[str, Difference] = {}
        if model != plan.base:
            scores = [_of_events(_scores(plan.runs[model, seed]), store.schema) for seed in plan.seeds]
            variances = row_variances(scores, base_scores, labels, mask, tasks)
            of_rows = dict(zip([*targets.names, "mean"], variances.tolist(), strict=True))
            for name, key in keys.items():
                base = [_figure(metrics[plan.base, seed], key) for seed in plan.seeds]
                if not np.isnan([*auc[name], *base]).any():
                    differences[name] = paired(auc[name], base, of_rows.get(name, np.nan))
        extras = {k: [_figure(m, f"test/{k}") for m in of_model] for k in _EXTRAS}
        extras |= {k: [_figure(m, f"train/conflict/{k}") for m in of_model] for k in ("share", "rows")}
        extras |= {k: [_figure(m, k) for m in of_model] for k in _SIZES}
        extras |= {k: [_figure(m, f"test/{k}") for m in of_model] for k in _errors(store.schema)}
        user_keys = dict.fromkeys(f"{name}/mean" for m in of_model for name in own_names(m, "test"))
        extras |= {k: [_figure(m, f"test/{k}") for m in of_model] for k in user_keys}
        rows.append(Row(model, auc, differences, {k: v for k, v in extras.items() if not np.isnan(v).all()}))
    first = metrics[plan.base, plan.seeds[0]]
    oracle = {n: float(first[f"test/oracle/{n}"]) for n in targets.names if first.get(f"test/oracle/{n}") is not None}
    if binary.tasks and all(task in oracle for task in binary.task_names):
        oracle["mean"] = float(np.mean([oracle[task] for task in binary.task_names]))
    positives = {t.name: round(t.rate * len(store.split("train"))) for t in binary.tasks}
    identity = {"data": first.get("data"), "data_fingerprint": store.fingerprint, "test_rows": len(store.split("test"))}
    identity["training_positives"] = positives
    return Comparison(
        plan.title,
        plan.base,
        [n for n in keys if n != "mean"],
        tasks,
        plan.seeds,
        rows,
        oracle,
        plan.paper,
        identity,
        {f"{model}, seed {seed}": run.folder.name for (model, seed), run in plan.runs.items()},
    )


def _keys(schema: Schema) -> dict[str, str]:
    """The metric of each column: the AUC of binary targets, the XAUC of regression tasks, and a mean."""
    values = [f"xauc/{schema.tasks[index].name}" for index in schema.regressions]
    keys = {name: f"test/auc/{name}" for name in Targets(schema.binary).names}
    keys |= {name: f"test/{name}" for name in values}
    return keys | {"mean": "test/auc/mean" if schema.binary.tasks else "test/xauc/mean"}


def _of_events(columns: Any, schema: Schema) -> Any:
    """(N, K) columns of all measured targets, without those of regression tasks."""
    if not schema.regressions:
        return columns
    names = Targets(schema.binary).names
    return columns[:, [place for place, name in enumerate(Targets(schema).names) if name in names]]


def _errors(schema: Schema) -> list[str]:
    """Keys of the errors of regression tasks."""
    return [f"{measure}/{schema.tasks[index].name}" for index in schema.regressions for measure in ("rmse", "mae")]


def _read(run: PlannedRun) -> dict[str, Any]:
    return read_figures(run.folder / "metrics.json")


def _figure(metrics: Mapping[str, Any], key: str) -> float:
    value = metrics.get(key)
    return float("nan") if value is None else float(value)


def _scores(run: PlannedRun) -> Any:
    """(N, K) memory-mapped log-odds of the measured targets of the test split."""
    path = run.folder / SCORES
    check_regular(path)
    shape = (len(run.store.split("test")), len(Targets(run.store.schema).names))
    try:
        scores = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise UserError(f"{path}: is not a score array ({error}); delete {run.folder}") from None
    if scores.dtype != np.float32 or scores.shape != shape:
        raise UserError(f"{path}: has {scores.dtype} {scores.shape}, expected float32 {shape}; delete {run.folder}")
    return scores


def _labels_and_mask(store: Store) -> tuple[Any, Any]:
    """(N, K) labels and mask of the measured targets of the test split, as uint8."""
    split, targets = store.split("test"), Targets(store.schema)
    parts = [targets.labels(split.labels_of(rows)) for rows in torch.arange(len(split)).split(_CHUNK)]
    labels, mask = (torch.cat([part[i].to(torch.uint8) for part in parts]).numpy() for i in (0, 1))
    return labels, mask
