"""Search a space of settings with Optuna, over as many workers as there are devices."""

from __future__ import annotations

from omegaconf import DictConfig

from dlen.cli import entry


def run(config: DictConfig) -> None:
    """Import torch only once the config has been composed, so that a typo is told at once."""
    from dlen.sweeping.run import sweep

    sweep(config)


main = entry(run, "sweep")

if __name__ == "__main__":
    main()
