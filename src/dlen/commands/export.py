"""Export a finished run as an ONNX model that is checked against the run."""

from __future__ import annotations

from omegaconf import DictConfig

from dlen.cli import entry


def run(config: DictConfig) -> None:
    """Import torch only once the config has been composed, so typos fail fast."""
    from dlen.serving.export import export

    export(config)


main = entry(run, "export")

if __name__ == "__main__":
    main()
