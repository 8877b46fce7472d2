"""Write the prepared store of a data set, or tell what that would take."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dlen.cli import entry, importing
from dlen.errors import UserError


def run(config: DictConfig) -> None:
    """Import the package only once the settings have been checked, so mistakes fail fast."""
    if config.dry_run not in (True, False):
        raise UserError(f"config dry_run: {config.dry_run!r} is neither true nor false")
    with importing():
        from dlen.data.prepare import summary
        from dlen.training.configs import build
        from dlen.training.stores import open_store
    if config.dry_run:
        from dlen.data.dry_run import dry_run  # here: it imports SciPy

        print(dry_run(build(config.data, "data")).described(Path(config.data_dir)))
    else:
        print(summary(open_store(config)))


main = entry(run, "prepare")

if __name__ == "__main__":
    main()
