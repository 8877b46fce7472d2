"""Prepare the data if needed, train a model, and test its best checkpoint."""

from pathlib import Path

from omegaconf import DictConfig

from dlen.cli import command


def run(config: DictConfig) -> None:
    """Import torch only once the config has been composed, so that a typo is told at once."""
    from dlen.training.run import train

    train(config)


if __name__ == "__main__":
    command(run, "train", Path(__file__).parent)
