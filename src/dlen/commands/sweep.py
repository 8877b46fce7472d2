"""Search a space of settings with Optuna, with one worker per device."""

from __future__ import annotations

from omegaconf import DictConfig

from dlen.cli import entry, importing
from dlen.sweeping.settings import SweepSettings, read_options


def run(config: DictConfig) -> None:
    """Import torch only once the settings have been checked, so mistakes fail fast."""
    read_options(config)
    with importing():
        from dlen.reports.study import write_study
        from dlen.sweeping.sweep import sweep
    sweep(config, write_study)


main = entry(run, "sweep", SweepSettings)

if __name__ == "__main__":
    main()
