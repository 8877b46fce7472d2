"""Write the prepared store of a data set, or tell what that would take."""

from __future__ import annotations

from omegaconf import DictConfig

from dlen.cli import entry


def run(config: DictConfig) -> None:
    """Import the package only once the config has been composed, so typos fail fast."""
    from pathlib import Path

    from dlen.data.dry_run import dry_run
    from dlen.data.prepare import summary
    from dlen.errors import UserError
    from dlen.training.configs import build, open_store

    if config.dry_run not in (True, False):
        raise UserError(f"config dry_run: {config.dry_run!r} is neither true nor false")
    if config.dry_run:
        print(dry_run(build(config.data, "data")).described(Path(config.data_dir)))
    else:
        print(summary(open_store(config)))


main = entry(run, "prepare")

if __name__ == "__main__":
    main()
