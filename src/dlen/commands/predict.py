"""Score new rows with a finished run."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dlen.cli import command, conf_folder


def run(config: DictConfig) -> None:
    """Import torch only once the config has been composed, so that a typo is told at once."""
    from dlen.training.predicting import predict

    predict(config)


def main(conf: Path | None = None) -> None:
    """The command; ``conf`` is the folder of the configs, by default the package's own."""
    command(run, "predict", conf or conf_folder())


if __name__ == "__main__":
    main()
