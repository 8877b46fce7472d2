"""Prepare the data if needed, train a model, and test its best checkpoint."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dlen.cli import entry, importing
from dlen.errors import UserError
from dlen.training.plain_checks import check_settings
from dlen.training.resume import continued, repeated
from dlen.training.settings import TrainSettings


def _draw(folder: Path) -> dict[str, Any]:
    """Plots of a finished run by title, for W&B. Imports Plotly only when needed."""
    from dlen.reports.run_plots import draw_run

    return draw_run(folder)


def run(config: DictConfig) -> dict[str, Any] | None:
    """Train, and return the content of ``metrics.json``.

    Imports torch only once plain settings have been checked, and Lightning only once the data are prepared, so
    mistakes fail fast.
    """
    if config.get("experiment") is not None:
        name = HydraConfig.get().runtime.choices["experiment"]
        raise UserError(f"config experiment: {name} compares models; run compare.py experiment={name}")
    config.run_dir = run_dir(config)
    overrides = list(HydraConfig.get().overrides.task)
    if config.rerun is not None:
        again = repeated(config, overrides)
        with importing():
            from dlen.training.rerun import rerun
        if not rerun(Path(config.rerun), again, _draw):
            raise SystemExit(1)
        return None
    if config.ckpt == "last" and config.run_dir is not None:
        config = continued(config, overrides)
    check_settings(config)
    with importing():
        from dlen.training.stores import open_store
    store = open_store(config)
    with importing():
        from dlen.training.fit import train
    return train(config, _draw, store)


def run_dir(config: DictConfig) -> str | None:
    """The run folder that the user chose, with ``run_dir`` or with Hydra's own keys; None if neither.

    Raises:
        UserError: both are set.
    """
    hydra = HydraConfig.get()
    if hydra.mode is RunMode.MULTIRUN:
        if hydra.sweep.dir == f"{config.runs_dir}/multirun" and hydra.sweep.subdir == ".":
            return config.run_dir
        key, subdir = "hydra.sweep.dir", hydra.sweep.subdir
        folder = Path(hydra.sweep.dir) / (str(hydra.job.num) if subdir == "." else subdir)
    elif hydra.run.dir != ".":
        key, folder = "hydra.run.dir", Path(hydra.run.dir)
    else:
        return config.run_dir
    with suppress(OSError):
        folder.rmdir()  # Hydra has made it already, and a refused run leaves nothing behind
    if config.run_dir is not None:
        raise UserError(f"config run_dir: {key} sets the run folder as well; remove one of them")
    return str(folder)


main = entry(run, "train", TrainSettings)

if __name__ == "__main__":
    main()
