"""Measure a model on each appended day before it trains on that day."""

from __future__ import annotations

from omegaconf import DictConfig

from dlen.cli import entry, importing
from dlen.training.plain_checks import check_settings
from dlen.training.settings import TrainSettings


def run(config: DictConfig) -> None:
    """Import torch only once the settings have been checked, so mistakes fail fast."""
    plain = config.copy()
    plain.base_run = None  # here, it is a folder of this command
    check_settings(plain)
    with importing():
        from dlen.comparing.progressive import progressive
    progressive(config)


main = entry(run, "progressive", TrainSettings)

if __name__ == "__main__":
    main()
