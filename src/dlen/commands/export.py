"""Export a finished run as an ONNX model that is checked against the run."""

from __future__ import annotations

from omegaconf import DictConfig

from dlen.cli import entry, importing
from dlen.serving.settings import check_exporting


def run(config: DictConfig) -> None:
    """Import torch only once the settings have been checked, so mistakes fail fast."""
    check_exporting(config)
    with importing():
        from dlen.serving.export import export

    export(config)


main = entry(run, "export")

if __name__ == "__main__":
    main()
