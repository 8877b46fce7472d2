"""Rank models over data sets, each model searched with the same budget."""

from __future__ import annotations

from omegaconf import DictConfig

from dlen.cli import entry


def run(config: DictConfig) -> None:
    """Import torch only once the config has been composed, so typos fail fast."""
    from dlen.benchmarking.benchmark import benchmark

    benchmark(config)


main = entry(run, "benchmark")

if __name__ == "__main__":
    main()
