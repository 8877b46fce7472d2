"""Evaluate a finished run on any split."""

from __future__ import annotations

from omegaconf import DictConfig

from dlen.cli import entry


def run(config: DictConfig) -> None:
    """Import torch only once the config has been composed, so typos fail fast."""
    if config.off_policy.log is not None:
        from dlen.ranking.off_policy import check_off_policy

        check_off_policy(config)
        return
    from dlen.training.evaluate import evaluate

    evaluate(config)


main = entry(run, "evaluate")

if __name__ == "__main__":
    main()
