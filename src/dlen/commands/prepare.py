"""Write the prepared store of a data set, or tell what that would take."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dlen.cli import entry, importing
from dlen.errors import UserError


def run(config: DictConfig) -> None:
    """Import the package only once the settings have been checked, so mistakes fail fast."""
    for key in ("dry_run", "append"):
        if config[key] not in (True, False):
            raise UserError(f"config {key}: {config[key]!r} is neither true nor false")
    if config.dry_run and config.append:
        raise UserError("config dry_run: tells what preparing all files would take; remove append")
    with importing():
        from dlen.data.prepare import summary
        from dlen.training.configs import build
        from dlen.training.stores import open_store
    if config.dry_run:
        from dlen.data.dry_run import dry_run  # here: it imports SciPy

        print(dry_run(build(config.data, "data")).described(Path(config.data_dir)))
    elif config.append:
        from dlen.data.append import append

        print(summary(append(build(config.data, "data"), Path(config.data_dir))))
    else:
        print(summary(open_store(config)))


main = entry(run, "prepare")

if __name__ == "__main__":
    main()
