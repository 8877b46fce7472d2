"""Write the prepared store of a data set, once."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dlen.cli import command, conf_folder


def run(config: DictConfig) -> None:
    """Import the package only once the config has been composed, so that a typo is told at once."""
    from dlen.config import open_store
    from dlen.data.prepare import summary

    print(summary(open_store(config)))


def main(conf: Path | None = None) -> None:
    """The command; ``conf`` is the folder of the configs, by default the package's own."""
    command(run, "prepare", conf or conf_folder())


if __name__ == "__main__":
    main()
