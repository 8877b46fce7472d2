"""Write a finished run as an ONNX model, checked against the run."""

from pathlib import Path

from omegaconf import DictConfig

from dlen.cli import command


def run(config: DictConfig) -> None:
    """Import torch only once the config has been composed, so that a typo is told at once."""
    from dlen.training.exporting import export

    export(config)


if __name__ == "__main__":
    command(run, "export", Path(__file__).parent)
