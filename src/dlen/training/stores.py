"""Opens the prepared data of a config or of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from dlen.data.days import Days, on_days
from dlen.data.parallel import Pool
from dlen.data.prepare import RowSource, Source, prepare
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.limits import cores
from dlen.training.configs import build
from dlen.training.run_folder import load_run_config, read_identity


def open_store(config: DictConfig) -> Store:
    """Open the prepared store of a config's data and days, preparing it first if needed."""
    source: Source = build(config.data, "data")
    return on_days_of(prepare(source, Path(config.data_dir), preparing_workers(config)), config)


def on_days_of(store: Store, config: DictConfig) -> Store:
    """The store with the rows of the days of a config as its splits; as it is if the config has none.

    Raises:
        UserError: there are no such days.
    """
    node = config.get("days") or {}
    first, last, test = (None if node.get(key) is None else str(node[key]) for key in ("from", "to", "test"))
    wanted = any(label is not None for label in (first, last, test))
    return on_days(store, Days(first, last, test, node["validation"])) if wanted else store


def preparing_workers(config: DictConfig) -> int | Pool:
    """The number of processes, ``prepare_workers``, or the ``cluster`` that prepare; older configs have neither key."""
    asked = config.get("prepare_workers", "auto")
    if config.get("cluster") is not None:
        pool = build(config.cluster, "cluster", asked)
        if not isinstance(pool, Pool):
            raise UserError(f"config cluster: {type(pool).__name__} is no dlen.data.parallel.Pool")
        return pool
    return cores() if asked == "auto" else int(asked)


def open_row_source(folder: Path, trust: Sequence[str] = ()) -> tuple[DictConfig, Store, RowSource]:
    """Open a run's config, its data, and the source that reads new rows of the same format.

    Args:
        trust: packages, besides dlen, whose classes the config may name.

    Raises:
        UserError: the folder is not a run, its data are gone, or their source cannot read new rows.
    """
    config, store = open_run(folder, trust)
    return config, store, row_source(folder, config)


def row_source(folder: Path, config: DictConfig) -> RowSource:
    """Build the source that reads new rows of a run's format; UserError if its data have none."""
    source = build(config.data, "data")
    if not isinstance(source, RowSource):
        raise UserError(f"{folder}: its data source ({config.data_name}) cannot read new rows")
    return source


def open_kept_store(folder: Path, config: DictConfig) -> Store:
    """Open the prepared data of a run from the recorded path, because the raw log may be gone or changed.

    If the prepared data are gone, they are prepared again, provided that the raw log still gives the same result.

    Raises:
        UserError: the prepared data are gone, and the raw log gives a different result.
    """
    recorded = read_identity(folder)
    place, fingerprint = Path(recorded["store"]), recorded["fingerprint"]
    store = on_days_of(Store(place), config) if (place / "store.json").exists() else open_store(config)
    if store.fingerprint != fingerprint:
        raise UserError(
            f"{folder}: was trained on data {fingerprint}, which are no longer in {place}, and the raw files now give "
            f"{store.fingerprint}"
        )
    return store


def open_run(folder: Path, trust: Sequence[str] = ()) -> tuple[DictConfig, Store]:
    """Open the resolved config and the data of a run folder.

    Args:
        trust: packages, besides dlen, whose classes the config may name.

    Raises:
        UserError: the folder is not a run, or the data are not those of the run.
    """
    config = load_run_config(folder, trust, to_train=False)
    return config, open_kept_store(folder, config)
