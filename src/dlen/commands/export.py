"""Write a finished run as an ONNX model, checked against the run."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dlen.cli import command, conf_folder


def run(config: DictConfig) -> None:
    """Import torch only once the config has been composed, so that a typo is told at once."""
    from dlen.training.exporting import export

    export(config)


def main(conf: Path | None = None) -> None:
    """The command; ``conf`` is the folder of the configs, by default the package's own."""
    command(run, "export", conf or conf_folder())


if __name__ == "__main__":
    main()
