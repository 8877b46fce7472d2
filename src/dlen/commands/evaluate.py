"""Evaluate a finished run on any split."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dlen.cli import entry, importing
from dlen.ranking.settings import read_off_policy
from dlen.training.run_folder import check_run
from dlen.training.settings import EvaluateSettings


def run(config: DictConfig) -> None:
    """Import torch only once the settings have been checked, so mistakes fail fast."""
    if config.off_policy.log is not None:
        read_off_policy(config)
        with importing():
            from dlen.ranking.off_policy import check_off_policy
        check_off_policy(config)
        return
    check_run(Path(config.run))
    with importing():
        from dlen.training.evaluate import evaluate
    evaluate(config)


main = entry(run, "evaluate", EvaluateSettings)

if __name__ == "__main__":
    main()
