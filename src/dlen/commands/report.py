"""Write one page of tables and plots about runs, comparisons and studies."""

from __future__ import annotations

from omegaconf import DictConfig

from dlen.cli import entry, importing


def run(config: DictConfig) -> None:
    """Import plotly only once the config has been composed, so typos fail fast."""
    with importing():
        from dlen.reports.report import report
    report(config)


main = entry(run, "report")

if __name__ == "__main__":
    main()
