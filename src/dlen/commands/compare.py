"""Train models x seeds on one data set and compare them, paired, with a base model."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dlen.cli import command, conf_folder


def run(config: DictConfig) -> None:
    """Import torch only once the config has been composed, so that a typo is told at once."""
    from dlen.comparing.run import compare

    compare(config)


def main(conf: Path | None = None) -> None:
    """The command; ``conf`` is the folder of the configs, by default the package's own."""
    command(run, "compare", conf or conf_folder())


if __name__ == "__main__":
    main()
