"""train: turn a composed config into a run folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from dlen import __version__
from dlen.data.prepare import summary
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.files import write_json
from dlen.models.baseline import Baseline
from dlen.models.model import Model
from dlen.models.ranker import Ranker
from dlen.nn.embedding import deferred_tables
from dlen.training.advice import base_rate_warnings, unknown_id_warnings, unseen_sequence_warnings
from dlen.training.baseline import fit_baseline
from dlen.training.building import (
    build_callbacks,
    build_id_dropout,
    build_model,
    build_module,
    build_schedule,
    build_trainer,
    modes,
    quiet,
    ranks_within_users,
)
from dlen.training.callbacks import Meter, ScoreWriter, StepSeed
from dlen.training.checkpoints import restoring
from dlen.training.checks import check_by_user, check_interval, check_measurable, check_optimizer, check_processes
from dlen.training.configs import build, code_fingerprint, config_hash
from dlen.training.conflict import GradientConflict
from dlen.training.dashboard import Dashboard, Draw
from dlen.training.datamodule import RankingDataModule, tested_rows
from dlen.training.diagnostics import attention_maps, diagnostics
from dlen.training.environment import environment
from dlen.training.fresh_tables import FreshTables
from dlen.training.gates import GateMonitor
from dlen.training.graphing import static_step
from dlen.training.latent import view_warnings
from dlen.training.latent import warnings as hidden_state_warnings
from dlen.training.loggers import log_config, log_final, make_loggers, wandb_finished
from dlen.training.memory import check_memory
from dlen.training.module import RankingModule
from dlen.training.plain_checks import check_settings
from dlen.training.run_folder import (
    BEST,
    DIAGNOSTICS,
    RUN_DIR,
    SCORES,
    check_same_data,
    check_same_run,
    flatten,
    only_training,
    read_base,
    resume_from,
    run_folder,
    start_of,
    unwrite_start,
    write_start,
)
from dlen.training.selection import Selection, monitored
from dlen.training.size import size_figures
from dlen.training.stores import open_store
from dlen.training.terminal import print_figures
from dlen.training.threads import FreeThreads
from dlen.training.warm_start import warm_start


@dataclass(slots=True)
class Fitted:
    """A model that is trained but not yet tested.

    Attributes:
        module: module with the weights of the last step.
        selection: tracks the best validation.
        base: metrics of the run that gains are measured against; None without one.
        metrics: the part of ``metrics.json`` that is known before the test.
    """

    store: Store
    folder: Path
    trainer: L.Trainer
    module: RankingModule
    data: RankingDataModule
    gates: GateMonitor
    dashboard: Dashboard
    selection: Selection
    base: dict[str, Any] | None
    metrics: dict[str, Any]


def train(config: DictConfig, draw: Draw | None = None, store: Store | None = None) -> dict[str, Any]:
    """Prepare the data if needed, fit, test the best checkpoint, and write a run folder.

    Args:
        config: composed config of ``train.py``.
        draw: function that draws the plots of a finished run for W&B; None for no plots.
        store: the config's data, if they are already open.

    Returns:
        The content of ``metrics.json``.

    Raises:
        UserError: the input or a setting is invalid.
    """
    with wandb_finished(), ExitStack() as held:
        return _fit_and_test(config, draw, store, held)


def _fit_and_test(config: DictConfig, draw: Draw | None, store: Store | None, held: ExitStack) -> dict[str, Any]:
    def scores(folder: Path) -> list[Callback]:
        return [ScoreWriter(folder / SCORES)] if config.metrics.scores else []

    fitted = fit(config, held, scores, store=store)
    trainer, module, folder, metrics = fitted.trainer, fitted.module, fitted.folder, fitted.metrics
    best = folder / BEST
    if not best.exists():
        print("training ended before the first validation: the last weights are tested", file=sys.stderr)
        trainer.save_checkpoint(best, weights_only=True)
    trainer.test(module, datamodule=fitted.data, ckpt_path=best, weights_only=True, verbose=False)
    metrics |= fitted.selection.best
    metrics |= flatten(module.figures["test"], "test")
    metrics["test/rows"] = tested_rows(trainer, fitted.data)
    attention = attention_maps(module, fitted.store, "test")  # in every process, because the table may be sharded
    if trainer.is_global_zero:
        write_json(folder / "metrics.json", metrics)
        print_figures(metrics, "test", module.targets.names, fitted.base, len(fitted.store.split("test")))
        write_json(
            folder / DIAGNOSTICS.format("test"), diagnostics(module.figures["test"], fitted.gates.last, attention)
        )
        dropout = None if isinstance(module.model, Baseline) else module.id_dropout
        advice = (
            []
            if config.trainer.get("fast_dev_run")
            else base_rate_warnings(metrics, fitted.store, module.targets, dropout)
        )
        for line in [*_hidden_state_warnings(module), *fitted.gates.warnings(), *advice]:
            print(f"warning: {line}", file=sys.stderr)
        upload_checkpoint = bool(OmegaConf.select(config, "logger.wandb.checkpoint"))
        fitted.dashboard.close(metrics, module.targets.names, folder, draw, checkpoint=upload_checkpoint)
        log_final(trainer.loggers, metrics, trainer.global_step)
        print(f"Run folder: {folder}")
    return metrics


def fit(
    config: DictConfig,
    held: ExitStack,
    make_callbacks: Callable[[Path], Sequence[Callback]] = lambda folder: (),
    *,
    checkpoints: bool = True,
    store: Store | None = None,
) -> Fitted:
    """Prepare the data if needed and fit. The run folder has everything except the test metrics.

    Args:
        config: composed config of ``train.py``.
        held: gets the lock of the run folder, to be closed once nothing more is written to it.
        make_callbacks: function that returns additional callbacks for a run folder.
        checkpoints: save the best and the last checkpoint.
        store: the config's data, if they are already open.

    Raises:
        UserError: the input or a setting is invalid.
    """
    quiet()
    check_settings(config)
    store = open_store(config) if store is None else store
    check_measurable(store)
    check_interval(config, store)
    check_by_user(config, store)
    config.monitor = monitored(config.monitor, store.schema)
    mode_of = modes(config, store.schema)
    mode = mode_of(config.monitor)
    id_dropout = build_id_dropout(config, store)
    base, resume = read_base(config.base_run, store), resume_from(config)
    check_same_run(config)
    check_same_data(resume, store)
    check_memory(config, store)
    L.seed_everything(config.seed, workers=True, verbose=False)
    with deferred_tables() if config.sharding else nullcontext():
        model = build_model(config, store)
    origin = warm_start(model, store, config) if config.get("init_from") and resume is None else []
    make_optimizer = build(config.optimizer, "optimizer")
    check_optimizer(config, make_optimizer, model)
    size = size_figures(model)
    with run_folder(config) as folder:
        loggers = make_loggers(config, folder, store.fingerprint)
        dashboard = Dashboard(loggers)
        meter, conflict, gates = Meter(), GradientConflict(config.metrics.conflict_every), GateMonitor()
        selection, threads = Selection(config.monitor, mode), FreeThreads()
        reset = False if config.get("init_from") else config.get("reset_embeddings", False)  # a run of before has none
        fresh = FreshTables(reset, config.seed, selection)
        callbacks = [StepSeed(config.seed), *build_callbacks(config, folder, meter, mode_of, checkpoints=checkpoints)]
        callbacks += [conflict, gates, dashboard, selection, fresh, threads]
        callbacks += make_callbacks(folder)
        trainer: L.Trainer = build_trainer(config, folder, loggers, callbacks, meter)
        rows = {"val": len(store.split("validation")), "test": len(store.split("test"))}
        by_user = ranks_within_users(config, rows["test"])
        module = build_module(
            config,
            model,
            make_optimizer=make_optimizer,
            rows=rows,
            base=base,
            by_user=by_user,
            sharding=config.sharding,
            id_dropout=id_dropout,
            make_schedule=build_schedule(config, mode),
            make_static=partial(static_step, config.get("cuda_graph", "auto"), config.get("compile", False)),
        )
        data = RankingDataModule(store, config.loader.batch_size, config.loader.eval_batch_size, config.seed)
        check_processes(config, trainer, model)
        previous_files: dict[Path, bytes] | None = None  # only in the first process, which started before the others
        if trainer.is_global_zero:
            held.enter_context(only_training(folder))
            previous_files = {p: p.read_bytes() for p in start_of(folder) if p.exists()}
            write_start(config, folder, store)
            print(summary(store), file=sys.stderr)
            print(_describe(config, size, folder), file=sys.stderr, flush=True)
            for line in _label_notes(model):
                print(line, file=sys.stderr)
            for line in origin:
                print(f"init_from: {line}", file=sys.stderr)
            if isinstance(model, Baseline):
                warnings = unseen_sequence_warnings(store, model.name)
            else:
                warnings = unknown_id_warnings(store, id_dropout)
            for line in warnings:
                print(f"warning: {line}", file=sys.stderr)
    record: dict[str, Any] = {"version": __version__, "code": code_fingerprint(), "data_fingerprint": store.fingerprint}
    record |= {"data_test": store.labels_identity("test")}
    record |= {"config_hash": config_hash(config), **environment()}
    record["machine/processes"] = trainer.world_size
    log_config(loggers, config, {**record, **size})
    try:
        if isinstance(model, Baseline):
            record |= fit_baseline(trainer, module, data, meter, folder / BEST if checkpoints else None)
        else:
            _fit(trainer, module, data, folder, resume)
    except UserError:  # a refused resume restores the run; a run that never started leaves no files
        if previous_files is not None:
            for path, content in previous_files.items():
                path.write_bytes(content)
            if not previous_files:
                unwrite_start(folder)
        raise
    metrics: dict[str, Any] = {"model": config.model_name, "data": config.data_name, "seed": config.seed}
    metrics |= record
    metrics |= {"fit/precision": str(trainer.precision), "fit/steps": trainer.global_step}
    metrics["machine/fewest_threads"] = threads.fewest or record["machine/threads"]  # baselines have no steps
    metrics |= {"fit/reset_from_epoch": fresh.first + 1} if fresh.first >= 0 else {}
    metrics |= size
    metrics |= meter.figures(trainer.world_size) | conflict.figures(store.schema.task_names) | gates.figures()
    return Fitted(store, folder, trainer, module, data, gates, dashboard, selection, base, metrics)


def _hidden_state_warnings(module: RankingModule) -> list[str]:
    """Warnings about DLEN's hidden state in the last validation; empty for other models."""
    figures = module.figures.get("val")
    if figures is None or figures.hidden is None:
        return []
    lines = hidden_state_warnings(figures.values, module.model.schema.binary.task_names)
    views = module.model.head.view_names if isinstance(module.model, Ranker) else None
    return lines if views is None else [*lines, *view_warnings(figures.hidden.pairs, views)]


def _label_notes(model: Model) -> list[str]:
    """Lines about the views of more than one task, and about a second hidden state; empty for models without P(UP)."""
    if not isinstance(model, Ranker) or model.head.view_names is None:
        return []
    head, lines = model.head, []
    if head.second_tasks:
        tasks, name = " and ".join(head.second_tasks), head.state_names[1]
        lines.append(f"{tasks} hang on a second hidden state, {name}; model.head.states=1 has P(UP) alone")
    for view in head.view_names or []:
        if len(view) > 1 and not set(view) <= set(head.second_tasks):
            lines.append(f"{' and '.join(view)} are one sign of P(UP); model.head.views=none parts them")
    return lines


def _fit(trainer: L.Trainer, module: RankingModule, data: RankingDataModule, folder: Path, resume: Path | None) -> None:
    """Train. Ctrl-C exits with code 130 and prints how to resume."""
    os.environ[RUN_DIR] = str(folder)
    try:
        with restoring(trainer, f"config ckpt: {resume}"):
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit:  # Lightning exits this way after Ctrl-C
        if not trainer.interrupted:
            raise
        print(f"interrupted: resume with run_dir={folder} ckpt=last and the same settings", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        del os.environ[RUN_DIR]


def _describe(config: DictConfig, size: dict[str, float], folder: Path) -> str:
    if not size:  # a baseline's size is known only after the fit
        return f"{config.model_name}; run folder {folder}"
    table, dense = size["model/embedding_parameters"], size["model/dense_parameters"]
    return f"{config.model_name}: {table:,} embedding and {dense:,} dense parameters; run folder {folder}"
