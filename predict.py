"""Score new rows with a finished run."""

from pathlib import Path

from omegaconf import DictConfig

from dlen.cli import command


def run(config: DictConfig) -> None:
    """Import torch only once the config has been composed, so that a typo is told at once."""
    from dlen.training.predicting import predict

    predict(config)


if __name__ == "__main__":
    command(run, "predict", Path(__file__).parent)
