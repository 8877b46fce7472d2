"""train and evaluate: from a composed config to a run folder, and from a run folder back to its figures."""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from dlen import __version__
from dlen.config import build, code_fingerprint, config_hash, open_store, read_config
from dlen.data.prepare import check_plain_name, summary
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.files import check_links, read_figures, read_mapping, write_json, write_text
from dlen.metrics.by_user import BY_USER_ROWS
from dlen.models.baseline import Baseline
from dlen.models.model import Model
from dlen.models.ranker import Ranker
from dlen.nn.embedding import deferred_tables
from dlen.nn.id_dropout import IdDropout
from dlen.nn.sharded import SHARDINGS, check_shardable, check_torchrec
from dlen.reports.plots import plot_attention, plot_hidden_state
from dlen.reports.terminal import print_figures
from dlen.training.advice import base_rate_warnings, unknown_id_warnings
from dlen.training.balancing import Balancer
from dlen.training.baseline import check_baseline, fit_baseline
from dlen.training.callbacks import Meter, Patience, PlainProgress, ScoreWriter, StepSeed, TerminalProgress
from dlen.training.conflict import GradientConflict
from dlen.training.dashboard import Dashboard
from dlen.training.datamodule import RankingDataModule
from dlen.training.diagnostics import AttentionMap, diagnostics
from dlen.training.environment import environment
from dlen.training.gates import GateMonitor
from dlen.training.latent import warnings as hidden_state_warnings
from dlen.training.loggers import log_config, log_final, make_loggers, wandb_finished
from dlen.training.measures import AUC_KINDS, Figures
from dlen.training.module import RankingModule
from dlen.training.optimizers import split_for_sharding
from dlen.training.selection import Selection, monitor_mode
from dlen.training.size import size_figures
from dlen.training.targets import Targets

BEST = "checkpoints/best.ckpt"
_MOST_TRIES = 1000  # for a folder's name
_UNSCALED = ("auto", "32-true", "bf16-mixed")  # precisions of 32-bit weights whose gradients are not scaled
_RUN_DIR = "DLEN_RUN_DIR"  # tells the processes of one run where its folder is
# What a run keeps from its first step to its last: a change of it would be half another run, or not be used at all.
_LASTING = ("model", "balancing", "optimizer", "id_dropout", "seed", "monitor", "loader.batch_size")
_SHOWN = 4096  # rows that a picture of attention is the mean of
SPLITS = ("train", "validation", "test")
DIAGNOSTICS = "diagnostics_{}.json"  # of a split: curves, hidden state, gates
SCORES = "scores_test.npy"  # (rows, targets) log-odds of the test split, in stored order


def build_model(config: DictConfig, store: Store) -> Model:
    """The config's model for the store's schema."""
    model: Model = build(config.model, "model", store.schema)
    return model


@dataclass(slots=True)
class Fitted:
    """A model that has been trained and not yet tested.

    Attributes:
        store: its data.
        folder: its run folder.
        trainer: that trained it.
        module: with the weights of the last step.
        data: the batches of its splits.
        gates: what was seen of its gates.
        dashboard: what W&B is shown.
        selection: the best validation.
        base: figures of the run that gains are measured against; None without one.
        metrics: for ``metrics.json``: what is known before the test.
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


def train(config: DictConfig) -> dict[str, Any]:
    """Prepare if needed, fit, test the best checkpoint, and leave a run folder.

    Returns:
        The content of ``metrics.json``.

    Raises:
        UserError: for wrong input or settings.
    """
    with wandb_finished():
        return _fit_and_test(config)


def _fit_and_test(config: DictConfig) -> dict[str, Any]:
    fitted = fit(config, lambda folder: [ScoreWriter(folder / SCORES)] if config.metrics.scores else [])
    trainer, module, folder, metrics = fitted.trainer, fitted.module, fitted.folder, fitted.metrics
    best = folder / BEST
    if not best.exists():
        print("training ended before the first validation: the last weights are tested", file=sys.stderr)
        trainer.save_checkpoint(best, weights_only=True)
    trainer.test(module, datamodule=fitted.data, ckpt_path=best, weights_only=True, verbose=False)
    metrics |= fitted.selection.best
    metrics |= flatten(module.figures["test"], "test")
    metrics["test/rows"] = tested_rows(trainer, fitted.data)
    attention = _attention(module, fitted.store)  # in every process, as the table may be shared out
    if trainer.is_global_zero:
        write_json(folder / "metrics.json", metrics)
        print_figures(metrics, "test", module.targets.names, fitted.base, len(fitted.store.split("test")))
        _show_hidden_state(module, folder)
        if attention:
            plot_attention(attention).savefig(folder / "attention.png")
        fitted.gates.plot(folder / "gates.png")
        write_json(
            folder / DIAGNOSTICS.format("test"), diagnostics(module.figures["test"], fitted.gates.last, attention)
        )
        dropout = None if isinstance(module.model, Baseline) else module.id_dropout
        advice = base_rate_warnings(metrics, fitted.store, module.targets, dropout)
        for line in [*fitted.gates.warnings(), *advice]:
            print(f"warning: {line}", file=sys.stderr)
        keep = bool(OmegaConf.select(config, "logger.wandb.checkpoint"))
        fitted.dashboard.close(metrics, module.targets.names, folder, checkpoint=keep)
        log_final(trainer.loggers, metrics, trainer.global_step)
        print(f"Run folder: {folder}")
    return metrics


def fit(
    config: DictConfig, more: Callable[[Path], Sequence[Callback]] = lambda folder: (), *, checkpoints: bool = True
) -> Fitted:
    """Prepare if needed and fit; the run folder has everything but the figures of the test.

    Args:
        config: of ``train.py``.
        more: callbacks beside the usual ones, for this run folder.
        checkpoints: keep the best and the last.

    Raises:
        UserError: for wrong input or settings.
    """
    quiet()
    _check(config)
    store = open_store(config)
    _check_measurable(store)
    _check_interval(config, store)
    _check_by_user(config, store)
    mode = monitor_mode(config.monitor, store.schema)
    id_dropout = build_id_dropout(config, store)
    base, resume = _read_base(config.base_run, store), _resume_from(config)
    _check_same_run(config)
    _check_same_data(resume, store)
    L.seed_everything(config.seed, workers=True, verbose=False)
    with deferred_tables() if config.sharding else nullcontext():
        model = build_model(config, store)
    make_optimizer = build(config.optimizer, "optimizer")
    _check_fitting(config, make_optimizer, model)
    size = size_figures(model)
    with _run_folder(config) as folder:
        loggers = make_loggers(config, folder, store.fingerprint)
        dashboard = Dashboard(loggers)
        meter, conflict, gates = Meter(), GradientConflict(config.metrics.conflict_every), GateMonitor()
        selection = Selection(config.monitor, mode)
        callbacks = [StepSeed(config.seed), *_callbacks(config, folder, meter, mode, checkpoints=checkpoints)]
        callbacks += [conflict, gates, dashboard, selection]
        callbacks += more(folder)
        trainer: L.Trainer = build_trainer(config, folder, loggers, callbacks, meter)
        rows = {"val": len(store.split("validation")), "test": len(store.split("test"))}
        by_user = _by_user(config, rows["test"])
        module = build_module(
            config,
            model,
            make_optimizer,
            rows,
            base,
            by_user,
            sharding=config.sharding,
            id_dropout=id_dropout,
        )
        data = RankingDataModule(store, config.loader.batch_size, config.loader.eval_batch_size, config.seed)
        _check_processes(config, trainer, model)
        earlier: dict[Path, bytes] | None = None  # in the first process, which began before the others
        if trainer.is_global_zero:
            earlier = {p: p.read_bytes() for p in _start_of(folder) if p.exists()}
            _write_start(config, folder, store)
            print(summary(store), file=sys.stderr)
            print(_describe(config, size, folder), file=sys.stderr, flush=True)
            for line in [] if isinstance(model, Baseline) else unknown_id_warnings(store, id_dropout):
                print(f"warning: {line}", file=sys.stderr)
    about: dict[str, Any] = {"version": __version__, "code": code_fingerprint(), "data_fingerprint": store.fingerprint}
    about |= {"data_test": store.labels_identity("test")}
    about |= {"config_hash": config_hash(config), **environment()}
    about["machine/processes"] = trainer.world_size
    log_config(loggers, config, {**about, **size})
    try:
        if isinstance(model, Baseline):
            about |= fit_baseline(trainer, module, data, meter, folder / BEST if checkpoints else None)
        else:
            _fit(trainer, module, data, folder, resume)
    except UserError:  # a resume that is refused leaves the run as it was, and what never began leaves nothing
        if earlier is not None:
            for path, content in earlier.items():
                path.write_bytes(content)
            if not earlier:
                _unwrite_start(folder)
        raise
    metrics: dict[str, Any] = {"model": config.model_name, "data": config.data_name, "seed": config.seed}
    metrics |= about
    metrics |= {"fit/precision": str(trainer.precision), "fit/steps": trainer.global_step}
    metrics |= size
    metrics |= meter.figures(trainer.world_size) | conflict.figures(store.schema.task_names) | gates.figures()
    return Fitted(store, folder, trainer, module, data, gates, dashboard, selection, base, metrics)


def _show_hidden_state(module: RankingModule, folder: Path) -> None:
    """For DLEN, a picture of the test split's hidden state, and warnings from the last validation."""
    hidden = module.figures["test"].hidden
    if hidden is None:
        return
    plot_hidden_state(hidden).savefig(folder / "hidden_state.png")
    if "val" in module.figures:
        for line in hidden_state_warnings(module.figures["val"].values, module.model.schema.task_names):
            print(f"warning: {line}", file=sys.stderr)


def _attention(module: RankingModule, store: Store) -> dict[str, AttentionMap]:
    """Of a backbone with attention, what attends to what, on average over the first rows of the test split."""
    model = module.model
    if not isinstance(model, Ranker):
        return {}
    split, tasks = store.split("test"), store.schema.task_names
    batch = split.batch(torch.arange(min(len(split), _SHOWN))).to(module.device)
    with torch.no_grad():
        features = model.eval().features(batch).without(model.without)
        attention = model.backbone.attention(features)
    if attention is None:
        return {}
    fields = [*features.spec.fields, *features.spec.numbers]
    maps = {
        "field to fields": (attention.fields.mean((0, 1)), fields, fields),
        "task to fields": (attention.tasks.mean((0, 1)), tasks, fields),
        "task to tasks": (attention.transfer.mean(0), tasks, tasks),
    }
    return {title: (mean.double().cpu().numpy(), lines, columns) for title, (mean, lines, columns) in maps.items()}


def _fit(trainer: L.Trainer, module: RankingModule, data: RankingDataModule, folder: Path, resume: Path | None) -> None:
    """Train; Ctrl-C exits with 130 and a line that says how to go on."""
    os.environ[_RUN_DIR] = str(folder)
    try:
        with _restoring(trainer, f"config ckpt: {resume}"):
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit:  # how Lightning ends after Ctrl-C
        if not trainer.interrupted:
            raise
        print(f"interrupted: go on with run_dir={folder} ckpt=last and the same settings", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        del os.environ[_RUN_DIR]


@contextmanager
def _restoring(trainer: L.Trainer, checkpoint: str) -> Iterator[None]:
    """Tell in one line that a checkpoint does not fit, of which Lightning says whatever it stumbles over."""
    try:
        yield
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        if not trainer._checkpoint_connector._loaded_checkpoint:  # it has been restored, or there is none
            raise
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{checkpoint} is of another model or balancing than config.yaml says ({why})") from None


def build_balancer(config: DictConfig) -> Balancer:
    """The config's balancing of tasks.

    Raises:
        UserError: it is none, or does not go with the trainer's settings.
    """
    balancer: Balancer = build(config.balancing, "balancing")
    if balancer.on_gradients:
        for key, allowed in (("accumulate_grad_batches", (1,)), ("precision", _UNSCALED)):
            if config.trainer[key] not in allowed:
                wanted = " or ".join(str(a) for a in allowed)
                raise UserError(f"config balancing: gradient surgery needs trainer.{key}={wanted}")
    return balancer


def build_id_dropout(config: DictConfig, store: Store) -> IdDropout:
    """The config's replacement of rare ids, by the store's counts.

    Raises:
        UserError: a setting is wrong.
    """
    if not OmegaConf.is_dict(config.id_dropout):
        raise UserError("config id_dropout: is a group of settings; set id_dropout.k=0 for none")
    try:
        return IdDropout(store.schema, store.counts, **_plain(config.id_dropout))
    except (TypeError, ValueError) as error:
        raise UserError(f"config id_dropout: {error}") from None


def build_module(
    config: DictConfig,
    model: Model,
    make_optimizer: Callable[[nn.Module], Optimizer] | None,
    rows: dict[str, int],
    base: dict[str, float] | None,
    by_user: bool,
    sharding: str | None = None,
    id_dropout: IdDropout | None = None,
) -> RankingModule:
    """The LightningModule with the config's balancing of tasks."""
    balancer = build_balancer(config)
    try:
        return RankingModule(
            model, make_optimizer, config.metrics.auc, rows, base, by_user, balancer, sharding, id_dropout
        )
    except ValueError as error:
        raise UserError(f"config balancing: {error}") from None


def build_trainer(
    config: DictConfig, folder: Path, logger: list[Any], callbacks: list[Callback], meter: Meter
) -> L.Trainer:
    """Lightning's trainer from the config group ``trainer``."""
    arguments = _plain(config.trainer)
    if arguments.get("gradient_clip_val"):
        raise UserError("config trainer.gradient_clip_val: row-sparse gradients cannot be clipped; lower optimizer.lr")
    if arguments["precision"] == "auto":
        arguments["precision"] = choose_precision(str(arguments["accelerator"]))
    bar = any(isinstance(c, TerminalProgress) for c in callbacks)
    try:
        return L.Trainer(
            **arguments,
            enable_progress_bar=bar,
            inference_mode=not config.get("sharding"),  # FBGEMM knows nothing of it; older runs have no such key
            enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
            logger=logger,
            callbacks=callbacks,
            plugins=[meter.checkpoints],
            default_root_dir=folder,
        )
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"config trainer: {str(error).splitlines()[0]}") from None


def _by_user(config: DictConfig, rows: int) -> bool:
    """Whether to rank within users, which takes memory for each row."""
    asked = config.metrics.by_user
    return rows <= BY_USER_ROWS if asked == "auto" else bool(asked)


def choose_precision(accelerator: str) -> str:
    """``bf16-mixed`` where the device has the instructions, else ``32-true``: a CPU without them is 20 times slower.

    Args:
        accelerator: of the trainer, such as ``auto`` or ``cpu``.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    known = torch.cpu.get_capabilities()
    native = any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16-mixed" if native and accelerator in ("auto", "cpu") else "32-true"


def evaluate(config: DictConfig) -> dict[str, Any]:
    """Measure a finished run's checkpoint on a split, as its own test did.

    Returns:
        The content of ``metrics_<split>.json``.

    Raises:
        UserError: the folder is no run, or the data are not those of the run.
    """
    quiet()
    folder = Path(config.run)
    if config.split not in SPLITS:
        raise UserError(f"config split: {config.split!r} is not one of {', '.join(SPLITS)}")
    run_config, store = open_run(folder, config.trust)
    check_links(folder)
    rows, base = {"test": len(store.split(config.split))}, _read_base(run_config.base_run, store)
    by_user = _by_user(run_config, rows["test"])
    module = build_module(run_config, build_model(run_config, store), None, rows, base, by_user)
    loader = run_config.loader
    data = RankingDataModule(store, loader.batch_size, loader.eval_batch_size, run_config.seed, config.split)
    checkpoint = folder / "checkpoints" / f"{config.checkpoint}.ckpt"
    if not checkpoint.exists():
        raise UserError(f"{checkpoint}: no such checkpoint; checkpoint is best or last")
    run_config.trainer = OmegaConf.merge(run_config.trainer, config.trainer)
    meter = Meter()
    gates = GateMonitor()
    progress: list[Callback] = [TerminalProgress(meter)] if sys.stderr.isatty() else []
    trainer = build_trainer(run_config, folder, [], [*progress, gates], meter)
    with _restoring(trainer, str(checkpoint)):
        trainer.test(module, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False)
    metrics: dict[str, Any] = {
        "model": run_config.model_name,
        "data": run_config.data_name,
        "seed": run_config.seed,
        "checkpoint": config.checkpoint,
        "data_fingerprint": store.fingerprint,
    }
    metrics |= flatten(module.figures["test"], config.split)
    metrics[f"{config.split}/rows"] = tested_rows(trainer, data)
    if trainer.is_global_zero:
        write_json(folder / f"metrics_{config.split}.json", metrics)
        found = diagnostics(module.figures["test"], gates.last, _attention(module, store))
        write_json(folder / DIAGNOSTICS.format(config.split), found)
        print_figures(metrics, config.split, module.targets.names, base, rows["test"])
    return metrics


def open_run(folder: Path, trust: Sequence[str] = ()) -> tuple[DictConfig, Store]:
    """The resolved config of a run folder, and its data.

    Args:
        folder: of the run.
        trust: packages whose classes its config may name beside those of dlen.

    Raises:
        UserError: the folder is no run, or the data are not those of the run.
    """
    config = load_run_config(folder, trust)
    return config, open_kept_store(folder, config)


def open_kept_store(folder: Path, config: DictConfig) -> Store:
    """The prepared data that a run was trained on, by the place that it remembers: the raw log may be gone or another.

    Where they are gone they are prepared again, if the raw log still gives the same.

    Raises:
        UserError: they are gone, and what the raw log gives now is something else.
    """
    kept = read_identity(folder)
    place, wanted = Path(kept["store"]), kept["fingerprint"]
    store = Store(place) if (place / "store.json").exists() else open_store(config)
    if store.fingerprint != wanted:
        raise UserError(
            f"{folder}: was trained on data {wanted}, which are no longer in {place}, and the raw files now give "
            f"{store.fingerprint}"
        )
    return store


def load_run_config(folder: Path, trust: Sequence[str] = ()) -> DictConfig:
    """The resolved config of a run folder.

    Args:
        folder: of the run.
        trust: packages whose classes it may name beside those of dlen.

    Raises:
        UserError: the folder is no run, or its config names other code.
    """
    path = folder / "config.yaml"
    if not path.exists():
        raise UserError(f"{folder}: not a run folder (no config.yaml); set run=DIR")
    return read_config(path, trust)


def read_identity(folder: Path) -> dict[str, str]:
    """Which data a run was trained on, and where they were prepared: ``fingerprint`` and ``store``.

    Raises:
        UserError: its schema.json does not say so.
    """
    path = folder / "schema.json"
    content = read_mapping(path)
    found = {key: content.get(key) for key in ("fingerprint", "store")}
    for key, value in found.items():
        if not isinstance(value, str) or "\0" in value:
            raise UserError(f"{path}: {key} is {value!r}, and no text")
    return {key: str(value) for key, value in found.items()}


def flatten(figures: Figures, split: str) -> dict[str, Any]:
    """Flat keys of ``metrics.json``; an undefined figure is null, with its reason under ``undefined/``."""
    flat: dict[str, Any] = {f"{split}/{key}": value for key, value in figures.values.items()}
    for key, reason in figures.undefined.items():
        flat[f"{split}/{key}"] = None
        flat[f"undefined/{split}/{key}"] = reason
    return flat


def _check(config: DictConfig) -> None:
    """Settings that no class checks for itself."""
    for key in ("loader.batch_size", "loader.eval_batch_size"):
        value = OmegaConf.select(config, key)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"config {key}: {value!r} is not a positive whole number")
    for key in ("trainer.max_epochs", "trainer.max_steps"):
        value = OmegaConf.select(config, key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < -1):
            raise UserError(f"config {key}: {value!r} is not a whole number from -1")
    _check_trainer(config.trainer)
    _check_sharding(config)
    if not isinstance(config.patience, int) or config.patience < 0:
        raise UserError(f"config patience: {config.patience!r} is not a whole number from 0")
    if config.metrics.auc not in AUC_KINDS:
        raise UserError(f"config metrics.auc: {config.metrics.auc!r} is not one of {', '.join(AUC_KINDS)}")
    if config.metrics.by_user not in ("auto", True, False):
        raise UserError(f"config metrics.by_user: {config.metrics.by_user!r} is not auto, true or false")
    every = config.metrics.conflict_every
    if not isinstance(every, int) or every < 0:
        raise UserError(f"config metrics.conflict_every: {every!r} is not a whole number from 0")
    if not isinstance(config.seed, int) or config.seed < 0:
        raise UserError(f"config seed: {config.seed!r} is not a whole number from 0")
    if config.ckpt not in (None, "last") and not Path(config.ckpt).exists():
        raise UserError(f"config ckpt: {config.ckpt!r} is neither `last` nor a checkpoint file")
    if config.ckpt == "last" and config.run_dir is None:
        raise UserError("config ckpt: `last` needs run_dir=DIR, the run to go on with")


def _check_trainer(trainer: DictConfig) -> None:
    """Numbers that are used before Lightning sees them, or with which it would say something else."""
    for key in ("num_nodes", "accumulate_grad_batches"):
        value = trainer[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"config trainer.{key}: {value!r} is not a positive whole number")
    for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "val_check_interval"):
        value = trainer.get(key, 1.0)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not whole and not (isinstance(value, float) and 0 < value <= 1):
            raise UserError(f"config trainer.{key}: {value!r} is neither a number of batches nor a share of them")


def _check_sharding(config: DictConfig) -> None:
    if config.sharding is None:
        return
    if config.sharding not in SHARDINGS:
        raise UserError(f"config sharding: {config.sharding!r} is neither null nor one of {', '.join(SHARDINGS)}")
    if config.trainer.accumulate_grad_batches != 1:
        raise UserError("config sharding: a sharded table is updated at each batch; set accumulate_grad_batches=1")
    if config.trainer.precision not in _UNSCALED:
        allowed = " or ".join(_UNSCALED)
        raise UserError(f"config sharding: a sharded table is of 32 bits; set trainer.precision={allowed}")
    check_torchrec()


def _check_processes(config: DictConfig, trainer: L.Trainer, model: Model) -> None:
    """What several processes cannot do, and what one cannot."""
    if config.sharding:
        _check_shardable(config, model, trainer.world_size, trainer.strategy.root_device.type)
    if trainer.world_size == 1:
        return
    if isinstance(model, Baseline):
        raise UserError(f"config trainer.devices: {model.name} is fitted in one process; set trainer.devices=1")
    if config.metrics.scores:
        raise UserError(
            "config metrics.scores: is for one process, as each one sees its own rows; set trainer.devices=1"
        )
    if build_balancer(config).on_gradients:
        raise UserError("config balancing: gradient surgery is for one process; set trainer.devices=1")


def _check_shardable(config: DictConfig, model: Model, processes: int, device: str) -> None:
    assert isinstance(model, Ranker)
    if processes == 1:
        raise UserError("config sharding: needs several processes; set trainer.devices=N")
    decay = config.optimizer.get("embedding_weight_decay", 0.0)
    check_shardable(model.schema, model.embedding.dim, config.sharding, processes, device, decay)


def _check_by_user(config: DictConfig, store: Store) -> None:
    if config.metrics.by_user is True and store.schema.user is None:
        raise UserError("config metrics.by_user: the data name no user field; set it to auto or false")


def check(config: DictConfig, store: Store) -> None:
    """All that is wrong with a config can be told before training, without the model's memory.

    Raises:
        UserError: for wrong settings.
    """
    _check(config)
    _check_interval(config, store)
    _check_by_user(config, store)
    monitor_mode(config.monitor, store.schema)
    with torch.device("meta"):
        model = build_model(config, store)
    _check_fitting(config, build(config.optimizer, "optimizer"), model)
    if config.sharding and isinstance(config.trainer.devices, int):
        processes = config.trainer.devices * config.trainer.num_nodes
        _check_shardable(config, model, processes, "cuda" if torch.cuda.is_available() else "cpu")
    build_module(config, model, None, {}, None, False, id_dropout=build_id_dropout(config, store))


def planned_steps(config: DictConfig, store: Store) -> tuple[int, int]:
    """Training steps before the first validation, and of the whole training if nothing ends it early."""
    batches, interval = _batches(config, store), config.trainer.val_check_interval
    each = config.trainer.accumulate_grad_batches
    first = interval if isinstance(interval, int) else max(1, int(batches * interval))
    epochs, most = config.trainer.max_epochs, config.trainer.max_steps
    total = -(-batches // each) * epochs if epochs is not None and epochs >= 0 else math.inf
    total = min(total, most if most is not None and most >= 0 else math.inf)
    return max(1, first // each), int(total) if total < math.inf else first // each


def _batches(config: DictConfig, store: Store) -> int:
    """Of an epoch of training, of each process."""
    devices, limit = config.trainer.devices, config.trainer.limit_train_batches
    processes = (devices if isinstance(devices, int) and devices > 0 else 1) * config.trainer.num_nodes
    batches = -(-(len(store.split("train")) // processes) // config.loader.batch_size)
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _check_interval(config: DictConfig, store: Store) -> None:
    """A validation interval in batches fits into an epoch."""
    batches, interval = _batches(config, store), config.trainer.val_check_interval
    if batches < 1 or (isinstance(interval, int) and interval > batches):
        raise UserError(
            f"config trainer: an epoch has {batches} batches, so val_check_interval={interval} never comes; "
            "give a share such as 0.25, or lower loader.batch_size"
        )


def _check_fitting(config: DictConfig, make: Callable[[Model], Optimizer], model: Model) -> None:
    """Make an optimiser to throw away, so that a wrong setting is told before anything is written."""
    if isinstance(model, Baseline):
        return check_baseline(config, model)
    try:
        made = make(model)
        if config.sharding:
            split_for_sharding(made)
    except (TypeError, ValueError) as error:
        raise UserError(f"config optimizer: {error}") from None


def _check_measurable(store: Store) -> None:
    """Every task can be learnt, and as models are selected by validation AUC, at least one task has one."""
    targets = Targets(store.schema)
    counts = torch.zeros(len(store.schema.tasks), 2)
    validation = store.split("validation")
    for stored in validation.labels.split(1 << 17):
        labels, mask = targets.labels(validation.logged(stored))
        both = torch.stack([((1 - labels) * mask).sum(0), (labels * mask).sum(0)], 1)
        counts += both[: len(counts)]  # joint events come after the tasks
    for task in store.schema.tasks:
        if not 0 < task.rate < 1:
            what = f"{len(store.split('train'))} training rows have no {'negatives' if task.rate else 'positives'}"
            raise UserError(f"the {what} of task {task.name}, so it cannot be learnt")
    if not (counts.amin(1) > 0).any():
        described = ", ".join(
            f"{name} {int(p)} of {int(p + n)}" for name, (n, p) in zip(targets.names, counts.tolist(), strict=False)
        )
        raise UserError(
            f"the validation split has no task with positives and negatives ({described}), so no model can be chosen; "
            "use more data, or make data.validation larger"
        )


@contextmanager
def _run_folder(config: DictConfig) -> Iterator[Path]:
    """The run's folder; a name that was made up is taken at once, and given back if the run is refused."""
    if _RUN_DIR in os.environ:  # set by the process that Lightning started this one from
        yield Path(os.environ[_RUN_DIR])
    elif config.run_dir is not None:
        folder = Path(config.run_dir)
        if (folder / "config.yaml").exists() and config.ckpt is None and rank() == 0:
            raise UserError(f"config run_dir: {folder} already holds a run; choose another, or resume with ckpt=last")
        check_links(folder)
        yield folder
    elif rank() != 0 or _one_of_many():
        raise UserError("config run_dir: must be set where processes are started by torchrun or Slurm")
    else:
        folder, made = _new_folder(config)
        try:
            yield folder
        finally:
            _remove_empty(made)


def _one_of_many() -> bool:
    """Whether torchrun or Slurm has started several processes, which would each make up a name."""
    torchrun, slurm = TorchElasticEnvironment.detect(), SLURMEnvironment.detect()
    counts = [os.environ.get("WORLD_SIZE", 1)] * torchrun + [os.environ.get("SLURM_NTASKS", 1)] * slurm
    return any(int(count) > 1 for count in counts)


def _new_folder(config: DictConfig) -> tuple[Path, list[Path]]:
    """Made so that no other run of the same second has it; and all folders that had to be made for it, inner first."""
    name = f"{config.data_name}/{config.model_name}/{datetime.now():%Y%m%d-%H%M%S}-seed{config.seed}"
    for key in ("data_name", "model_name"):
        check_plain_name(config[key], key)
    made: list[Path] = []
    for number in count(1):
        folder = Path(config.runs_dir) / (name if number == 1 else f"{name}-{number}")
        made = [p for p in folder.parents if not p.exists()] or made
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            break
        except OSError as error:
            # taken; or a run beside this one was refused and took its folders back
            if not isinstance(error, FileExistsError | FileNotFoundError) or number > _MOST_TRIES:
                raise _unwritable(folder, error) from None
    return folder, [folder, *made]


def _remove_empty(folders: Sequence[Path]) -> None:
    """Those that are there without anything in them, inner ones first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: cannot be written ({error.strerror}); set runs_dir or run_dir")


def rank() -> int:
    """Of this process, as whoever started it has said."""
    return getattr(rank_zero_only, "rank", None) or 0


def _resume_from(config: DictConfig) -> Path | None:
    if config.ckpt is None:
        return None
    path = Path(config.run_dir) / "checkpoints" / "last.ckpt" if config.ckpt == "last" else Path(config.ckpt)
    if not path.exists():
        raise UserError(f"config ckpt: {path} does not exist, so there is nothing to resume")
    return path


def _check_same_run(config: DictConfig) -> None:
    """A run that goes on has the model, balancing and optimiser it began with."""
    if config.ckpt != "last":
        return
    before, today = _plain(load_run_config(Path(config.run_dir), config.trust)), _plain(config)
    for key in _LASTING:
        was, now = _below(before, key), _below(today, key)
        changed = [k for k in {**was, **now} if was.get(k) != now.get(k)]
        if was and changed:
            shown = ", ".join(f"{k} was {was.get(k)} and is {now.get(k)} now" for k in changed)
            raise UserError(f"cannot resume: {shown}; set it as it was")


def _below(config: dict[str, Any], key: str) -> dict[str, Any]:
    """A setting, or those of a group, by their keys; empty where a run did not have it yet."""
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, dict):
        return {f"{key}.{k}": v for k, v in found.items()}
    return {} if found is None else {key: found}


def _check_same_data(resume: Path | None, store: Store) -> None:
    """A run goes on with the data it began with, also where a checkpoint is gone on with in another folder."""
    folder = None if resume is None else resume.parent.parent
    if folder is None or not (folder / "schema.json").exists():
        return
    was = read_identity(folder)["fingerprint"]
    if was != store.fingerprint:
        raise UserError(
            f"cannot resume: {folder} was trained on data {was}, and the data are {store.fingerprint} now; bring "
            "back the files and data settings that it began with, or start a new run"
        )


def _plain(config: DictConfig) -> dict[str, Any]:
    """A config as plain values."""
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(k): v for k, v in found.items()}


def _callbacks(config: DictConfig, folder: Path, meter: Meter, mode: str, *, checkpoints: bool) -> list[Callback]:
    chosen: dict[str, Any] = {"monitor": config.monitor, "mode": mode}
    stop = Patience(**chosen, patience=config.patience, min_delta=0.0, strict=False)
    progress = TerminalProgress(meter) if sys.stderr.isatty() else PlainProgress(meter)
    if not checkpoints:
        return [meter, progress, stop]
    shared: dict[str, Any] = {"dirpath": folder / "checkpoints", "enable_version_counter": False}
    best = ModelCheckpoint(**shared, **chosen, filename="best", save_top_k=1, save_weights_only=True)
    last = ModelCheckpoint(**shared, filename="last", save_top_k=1, save_on_train_epoch_end=False)
    return [meter, progress, stop, best, last]


def _read_base(run: str | None, store: Store) -> dict[str, Any] | None:
    """Figures of the run that gains are measured against, which are of the same test rows."""
    if run is None:
        return None
    path = Path(run) / "metrics.json"
    try:
        content = read_figures(path)
        if not {"model", "seed", "data_fingerprint"} <= content.keys():
            raise UserError("not the figures of a run")
    except UserError as error:
        raise UserError(f"config base_run: {path} cannot be read ({error})") from None
    own = {"data_test": store.labels_identity("test"), "data_fingerprint": store.fingerprint}
    key = "data_test" if "data_test" in content else "data_fingerprint"
    if content[key] != own[key]:
        raise UserError(
            f"config base_run: {run} was tested on other rows ({content[key]}) than this run is ({own[key]}), so no "
            "difference of their figures is a gain; train the base on the same data"
        )
    if content.get("test/rows", len(store.split("test"))) != len(store.split("test")):
        raise UserError(f"config base_run: {run} was tested on {content['test/rows']} rows of the test split alone")
    return content


def tested_rows(trainer: L.Trainer, data: RankingDataModule) -> int:
    """How many rows of the split the test pass read: ``trainer.limit_test_batches`` may have left some out."""
    read = int(trainer.num_test_batches[0]) * data.eval_batch_size * trainer.world_size
    return min(read, len(data.store.split(data.test_split)))


def _write_start(config: DictConfig, folder: Path, store: Store) -> None:
    """Make the run folder: only now, when config, data and trainer are known to be right."""
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    text = OmegaConf.to_yaml(OmegaConf.create(OmegaConf.to_container(config, resolve=True)))
    config_file, schema_file = _start_of(folder)
    try:
        if config.ckpt is not None:
            write_text(config_file, text)
        else:
            with config_file.open("x") as file:
                file.write(text)
    except FileExistsError:
        raise UserError(f"config run_dir: {folder} was taken by another run just now; choose another") from None
    identity = {"fingerprint": store.fingerprint, "store": str(store.folder.absolute())}
    write_json(schema_file, {**identity, **store.schema.to_dict()})


def _start_of(folder: Path) -> tuple[Path, Path]:
    return folder / "config.yaml", folder / "schema.json"


def _unwrite_start(folder: Path) -> None:
    """The inverse of :func:`_write_start`, unless there is something else by now."""
    if {p for p in folder.rglob("*") if not p.is_dir()} <= set(_start_of(folder)):
        for path in _start_of(folder):
            path.unlink(missing_ok=True)
        _remove_empty([folder / "checkpoints", folder / "logs", folder])


def _describe(config: DictConfig, size: dict[str, float], folder: Path) -> str:
    if not size:  # known once it is fitted
        return f"{config.model_name}; run folder {folder}"
    table, dense = size["model/embedding_parameters"], size["model/dense_parameters"]
    return f"{config.model_name}: {table:,} embedding and {dense:,} dense parameters; run folder {folder}"


def quiet() -> None:
    """Keep what a user needs to read: Lightning's and torch's own chatter goes."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(lightning|torch|torchmetrics)\.")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*Sparse invariant checks.*")
    torch.set_float32_matmul_precision("high")
