"""Search a space of settings with Optuna, over as many workers as there are devices."""

from pathlib import Path

from omegaconf import DictConfig

from dlen.cli import command

ROOT = Path(__file__).parent


def run(config: DictConfig) -> None:
    """Import torch only once the config has been composed, so that a typo is told at once."""
    from dlen.sweeping.run import sweep

    sweep(config, ROOT)


if __name__ == "__main__":
    command(run, "sweep", ROOT)
