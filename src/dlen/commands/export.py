"""Export a finished run as an ONNX model that is checked against the run."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dlen.cli import entry, importing
from dlen.serving.settings import ExportSettings
from dlen.training.run_folder import check_run


def run(config: DictConfig) -> None:
    """Import torch only once the settings have been checked, so mistakes fail fast."""
    check_run(Path(config.run))
    with importing():
        from dlen.serving.export import export

    export(config)


main = entry(run, "export", ExportSettings)

if __name__ == "__main__":
    main()
