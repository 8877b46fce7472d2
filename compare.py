"""Train models x seeds on one data set and compare them, paired, with a base model."""

from pathlib import Path

from omegaconf import DictConfig

from dlen.cli import command

ROOT = Path(__file__).parent


def run(config: DictConfig) -> None:
    """Import torch only once the config has been composed, so that a typo is told at once."""
    from dlen.comparing.run import compare

    compare(config, ROOT / "train.py")


if __name__ == "__main__":
    command(run, "compare", ROOT)
