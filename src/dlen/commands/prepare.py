"""Write the prepared store of a data set."""

from __future__ import annotations

from omegaconf import DictConfig

from dlen.cli import entry, importing


def run(config: DictConfig) -> None:
    """Import the package only once the config has been composed, so typos fail fast."""
    with importing():
        from dlen.data.prepare import summary
        from dlen.training.stores import open_store
    print(summary(open_store(config)))


main = entry(run, "prepare")

if __name__ == "__main__":
    main()
