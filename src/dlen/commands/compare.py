"""Train models x seeds on one data set and compare each, paired, with a base model."""

from __future__ import annotations

from omegaconf import DictConfig

from dlen.cli import entry


def run(config: DictConfig) -> None:
    """Import torch only once the config has been composed, so typos fail fast."""
    from dlen.comparing.compare import compare

    compare(config)


main = entry(run, "compare")

if __name__ == "__main__":
    main()
