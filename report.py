"""Write one page of tables and plots about runs, comparisons and studies."""

from pathlib import Path

from omegaconf import DictConfig

from dlen.cli import command


def run(config: DictConfig) -> None:
    """Import plotly only once the config has been composed, so that a typo is told at once."""
    from dlen.reports.report import report

    report(config)


if __name__ == "__main__":
    command(run, "report", Path(__file__).parent)
