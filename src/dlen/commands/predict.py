"""Score new rows with a finished run."""

from __future__ import annotations

from omegaconf import DictConfig

from dlen.cli import entry, importing
from dlen.serving.settings import PredictSettings, check_prediction


def run(config: DictConfig) -> None:
    """Import torch only once the settings have been checked, so mistakes fail fast."""
    check_prediction(config)
    with importing():
        from dlen.serving.predict import predict

    predict(config)


main = entry(run, "predict", PredictSettings)

if __name__ == "__main__":
    main()
