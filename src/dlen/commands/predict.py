"""Score new rows with a finished run."""

from __future__ import annotations

from omegaconf import DictConfig

from dlen.cli import entry


def run(config: DictConfig) -> None:
    """Import torch only once the config has been composed, so typos fail fast."""
    from dlen.serving.predict import predict

    predict(config)


main = entry(run, "predict")

if __name__ == "__main__":
    main()
