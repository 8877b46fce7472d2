"""Prepare the data if needed, train a model, and test its best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dlen.cli import entry


def _draw(folder: Path) -> dict[str, Any]:
    """Plots of a finished run by title, for W&B. Imports Plotly only when needed."""
    from dlen.reports.run_plots import draw_run

    return draw_run(folder)


def run(config: DictConfig) -> None:
    """Import torch only once the config has been composed, so typos fail fast."""
    from dlen.training.fit import train
    from dlen.training.resume import continued, rerun

    overrides = list(HydraConfig.get().overrides.task)
    if config.rerun is not None:
        if not rerun(config, overrides, _draw):
            raise SystemExit(1)
        return
    train(continued(config, overrides) if config.ckpt == "last" and config.run_dir is not None else config, _draw)


main = entry(run, "train")

if __name__ == "__main__":
    main()
