"""evaluate: recompute the metrics of a run folder, on any split."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from dlen.errors import UserError
from dlen.files import check_links, write_json
from dlen.training.building import build_model, build_module, build_trainer, quiet, ranks_within_users
from dlen.training.callbacks import Meter, TerminalProgress
from dlen.training.checkpoints import restoring
from dlen.training.datamodule import RankingDataModule, tested_rows
from dlen.training.diagnostics import attention_maps, diagnostics
from dlen.training.gates import GateMonitor
from dlen.training.run_folder import DIAGNOSTICS, flatten, one_of_many, read_base
from dlen.training.stores import open_run
from dlen.training.terminal import print_figures
from dlen.training.threads import FreeThreads


def evaluate(config: DictConfig) -> dict[str, Any]:
    """Evaluate a finished run's checkpoint on a split, the same way as the run's own test.

    Returns:
        The content of ``metrics_<split>.json``.

    Raises:
        UserError: the folder is not a run, or the data are not those of the run.
    """
    quiet()
    folder = Path(config.run)
    run_config, store = open_run(folder, config.trust)
    check_links(folder)
    rows, base = {"test": len(store.split(config.split))}, read_base(run_config.base_run, store)
    by_user = ranks_within_users(run_config, rows["test"])
    module = build_module(run_config, build_model(run_config, store), rows=rows, base=base, by_user=by_user)
    loader = run_config.loader
    data = RankingDataModule(store, loader.batch_size, loader.eval_batch_size, run_config.seed, config.split)
    checkpoint = folder / "checkpoints" / f"{config.checkpoint}.ckpt"
    if not checkpoint.exists():
        raise UserError(f"{checkpoint}: no such checkpoint; set checkpoint=best or checkpoint=last")
    if not one_of_many():
        run_config.trainer.num_nodes = 1  # the other machines of the training do not take part
    run_config.trainer = OmegaConf.merge(run_config.trainer, config.trainer)
    meter = Meter()
    gates = GateMonitor()
    progress: list[Callback] = [TerminalProgress(meter)] if sys.stderr.isatty() else []
    trainer = build_trainer(run_config, folder, [], [*progress, gates, FreeThreads()], meter)
    with restoring(trainer, str(checkpoint)):
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
        content = diagnostics(module.figures["test"], gates.last, attention_maps(module, store, config.split))
        write_json(folder / DIAGNOSTICS.format(config.split), content)
        print_figures(metrics, config.split, module.targets.names, base, rows["test"])
    return metrics
