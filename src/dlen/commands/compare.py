"""Train models x seeds on one data set and compare each, paired, with a base model."""

from __future__ import annotations

from omegaconf import DictConfig

from dlen.cli import entry, importing
from dlen.comparing.settings import CompareSettings, check_comparison


def run(config: DictConfig) -> None:
    """Import torch only once the settings have been checked, so mistakes fail fast."""
    check_comparison(config)
    with importing():
        from dlen.comparing.compare import compare
    compare(config)


main = entry(run, "compare", CompareSettings)

if __name__ == "__main__":
    main()
