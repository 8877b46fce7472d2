"""Write the prepared store of a data set, once."""

from pathlib import Path

from omegaconf import DictConfig

from dlen.cli import command


def run(config: DictConfig) -> None:
    """Import the package only once the config has been composed, so that a typo is told at once."""
    from dlen.config import open_store
    from dlen.data.prepare import summary

    print(summary(open_store(config)))


if __name__ == "__main__":
    command(run, "prepare", Path(__file__).parent)
