"""Write the prepared store of a data set, or tell what that would take."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from dlen.cli import entry, importing
from dlen.errors import UserError
from dlen.settings import Group, Settings


@dataclass
class PrepareSettings(Settings):
    """Keys of ``conf/prepare.yaml``."""

    data_name: str
    append: bool
    dry_run: bool
    data: Group


def run(config: DictConfig) -> None:
    """Import the package only once the settings have been checked, so mistakes fail fast."""
    if config.dry_run and config.append:
        raise UserError("config dry_run: tells what preparing all files would take; remove append")
    with importing():
        from dlen.data.append import append, could_append
        from dlen.data.prepare import prepare, summary
        from dlen.training.configs import build
        from dlen.training.stores import preparing_workers
    source, data_dir = build(config.data, "data"), Path(config.data_dir)
    if config.dry_run:
        from dlen.data.dry_run import dry_run  # here: it imports SciPy

        print(dry_run(source).described(data_dir))
    elif config.append:
        print(summary(append(source, data_dir)))
    else:
        if (line := could_append(source, data_dir)) is not None:
            print(line, file=sys.stderr)
        print(summary(prepare(source, data_dir, preparing_workers(config))))


main = entry(run, "prepare", PrepareSettings)

if __name__ == "__main__":
    main()
