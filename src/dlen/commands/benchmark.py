"""Rank models over data sets, each model searched with the same budget, or check the file of such a benchmark."""

from __future__ import annotations

from omegaconf import DictConfig

from dlen.benchmarking.claims import read_claims
from dlen.benchmarking.settings import BenchmarkSettings, parse_settings
from dlen.cli import entry, importing


def run(config: DictConfig) -> None:
    """Import torch only once the settings have been checked, so mistakes fail fast."""
    if config.check is not None:
        claims = read_claims(config)
        with importing():
            from dlen.benchmarking.check import check
        if not check(claims, config):
            raise SystemExit(1)
        return
    parse_settings(config)
    with importing():
        from dlen.benchmarking.benchmark import benchmark
    benchmark(config)


main = entry(run, "benchmark", BenchmarkSettings)

if __name__ == "__main__":
    main()
