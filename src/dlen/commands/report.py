"""Write one page of tables and plots about runs, comparisons and studies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from omegaconf import DictConfig

from dlen.cli import entry, importing
from dlen.settings import Settings
from dlen.valid import Matching


@dataclass
class ReportSettings(Settings):
    """Keys of ``conf/report.yaml``."""

    runs: Path | list[Path]
    out: Annotated[str, Matching(r".*\.html", "an HTML file, ending in .html")]
    base: str
    wandb: Annotated[str, Matching(r"[^/]+/[^/]+", "ENTITY/PROJECT")] | None


def run(config: DictConfig) -> None:
    """Import plotly only once the config has been composed, so typos fail fast."""
    with importing():
        from dlen.reports.report import report
    report(config)


main = entry(run, "report", ReportSettings)

if __name__ == "__main__":
    main()
