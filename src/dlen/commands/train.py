"""Prepare the data if needed, train a model, and test its best checkpoint."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dlen.cli import entry


def run(config: DictConfig) -> None:
    """Import torch only once the config has been composed, so that a typo is told at once."""
    from dlen.training.again import continued, rerun
    from dlen.training.run import train

    said = list(HydraConfig.get().overrides.task)
    if config.rerun is not None:
        if not rerun(config, said):
            raise SystemExit(1)
        return
    train(continued(config, said) if config.ckpt == "last" and config.run_dir is not None else config)


main = entry(run, "train")

if __name__ == "__main__":
    main()
