"""Rank models over data sets, each model searched with the same budget."""

from __future__ import annotations

from omegaconf import DictConfig

from dlen.benchmarking.settings import parse_settings
from dlen.cli import entry, importing


def run(config: DictConfig) -> None:
    """Import torch only once the settings have been checked, so mistakes fail fast."""
    parse_settings(config)
    with importing():
        from dlen.benchmarking.benchmark import benchmark
    benchmark(config)


main = entry(run, "benchmark")

if __name__ == "__main__":
    main()
