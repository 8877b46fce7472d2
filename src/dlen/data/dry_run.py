"""What preparing a log would take and make, told from a sample of it that is prepared in a temporary folder."""

from __future__ import annotations

import io
import re
import resource
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dlen.data.prepare import Source
from dlen.data.raw_sample import IdCounts, RawSample, SampledLog, SampledSource
from dlen.data.store import Store, array_size
from dlen.data.unseen import IdEstimate
from dlen.data.vocabulary import PENDING
from dlen.data.writer import StoreWriter
from dlen.errors import UserError
from dlen.files import check_plain_name
from dlen.nn.embedding import row_width
from dlen.progress import format_count
from dlen.schema import Schema

_PIECES = (8, 32)  # of two samples: they differ in the time of the rows, and not in what every start takes
_DIM = 16  # model.embedding.dim, in conf/model/embedding/table.yaml
_MIN_COUNTS = (2, 5, 10)
_CHUNK = 1 << 17  # rows of a chunk
_BYTES_PENDING, _BYTES_PER_ID = 48, 100  # measured: docs/log.md
_NUMBER = 4  # bytes
_PARQUET = 900  # bytes of a Parquet file of two columns, without their values


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a log would become.

    Attributes:
        name: name of the data set.
        rows: rows by split.
        sampled: rows of the sample.
        ids: the ids of each field with a vocabulary.
        sizes: rows of the embedding table of each field that has ids of its own, with those that its min_count leaves.
        fields: number of fields.
        store: bytes of the store.
        seconds: time of preparing.
        memory: most bytes of memory while preparing.
        tables: bytes of the embedding table by what comes with it: nothing, or the state of an optimiser.
        whole: whether the sample is the whole log.
        exact: whether the ids are known; otherwise they are estimates.
    """

    name: str
    rows: dict[str, int]
    sampled: int
    ids: dict[str, IdEstimate]
    sizes: dict[str, int]
    fields: int
    store: float
    seconds: float
    memory: float
    tables: dict[str, int]
    whole: bool
    exact: bool

    def described(self, data_dir: Path) -> str:
        """Lines like those of :func:`dlen.data.prepare.summary`, with what is free where the store would be."""
        return "\n".join(self._lines(data_dir))

    def _lines(self, data_dir: Path) -> Iterator[str]:
        number, of_ids = (_exactly if known else _about for known in (self.whole, self.exact))
        total, ids = sum(self.rows.values()), of_ids(sum(self.sizes.values()))
        of_splits = ", ".join(f"{split} {number(count)}" for split, count in self.rows.items())
        yield f"{self.name}: a dry run: {of_splits} rows; {ids} ids in {self.fields} fields"
        share = f"{self.sampled:,} rows, {self.sampled / max(total, 1):.2%} of all; `about` is an estimate"
        yield f"  read: {'all rows' if self.whole else share}"
        place = next(place for place in (data_dir, *data_dir.absolute().parents) if place.exists())
        free = shutil.disk_usage(place).free
        yield f"  store: about {_bytes(self.store)}; {_bytes(free)} are free" + ", too little" * (self.store > free)
        speed = format_count(total / max(self.seconds, 1e-9))
        yield f"  preparing: about {_duration(self.seconds)} at {speed} rows/s, and {_bytes(self.memory)} of memory"
        listed = ", ".join(map(str, _MIN_COUNTS))
        for field, estimate in sorted(self.ids.items(), key=lambda entry: -entry[1].total):
            seen = "" if self.exact else f" ({estimate.seen:,} seen)"
            left = ", ".join(of_ids(estimate.left(least)).removeprefix("about ") for least in _MIN_COUNTS)
            yield f"  ids of {field}: {of_ids(estimate.total)}{seen}; with min_count {listed}: {left}"
        others = ", ".join(f"{field} {size:,}" for field, size in self.sizes.items() if field not in self.ids)
        if others:
            yield f"  ids of {others}"
        tables = ", ".join(f"{_bytes(size)}{what}" for what, size in self.tables.items())
        yield f"  embedding table with model.embedding.dim={_DIM}: {tables}"


@dataclass(slots=True)
class _Prepared:
    """A sample that has been prepared.

    Attributes:
        store: its store.
        seconds: time that it took.
        sample: how it relates to the whole log.
        ids: the ids of its training rows.
        exact: whether ids are known and not estimated.
    """

    store: Store
    seconds: float
    sample: RawSample
    ids: IdCounts
    exact: bool

    @property
    def rows(self) -> int:
        """Rows of all splits of the sample."""
        return sum(self.store.rows.values())

    @property
    def arrays(self) -> dict[str, dict[str, Any]]:
        """Type and shape of all arrays; a sample has one shard."""
        (shard,) = self.store.shards
        return {**self.store.content["arrays"], **shard["arrays"]}

    def log_rows(self) -> dict[str, int]:
        """Rows of each split of the whole log."""
        return {name: round(count * self.sample.rows[name]) for name, count in self.store.rows.items()}

    @property
    def whole(self) -> bool:
        """Whether the sample is the whole log."""
        return all(factor == 1 for factor in self.sample.rows.values())


def dry_run(source: Source) -> Forecast:
    """Tell rows, sizes, time and ids of a log before it is prepared.

    A sample of it is prepared in a temporary folder, which is removed. Nothing else is written, except
    for the copies of files at addresses, which preparing them needs as well.

    Args:
        source: the raw log.

    Raises:
        UserError: files are missing or invalid, or no sample can be taken of such a source.
    """
    check_plain_name(source.name)
    if not isinstance(source, SampledSource):
        raise UserError(f"config dry_run: {type(source).__name__} has no method sample(), which a dry run needs")
    prepared: list[_Prepared] = []
    with TemporaryDirectory(prefix="dlen-") as temporary, redirect_stderr(io.StringIO()):
        folder = Path(temporary).resolve()
        for pieces in _PIECES:
            log = source.sample(folder / f"raw-{pieces}", pieces)
            prepared.append(_prepare(source.name, log, folder / f"store-{pieces}"))
            if prepared[-1].whole:
                break
        return _forecast(source.name, prepared)


def _forecast(name: str, prepared: list[_Prepared]) -> Forecast:
    last = prepared[-1]
    ids = {field: IdEstimate(counts, last.ids.factors[field]) for field, counts in last.ids.counts.items()}
    sizes = {field.name: field.vocab_size for field in last.store.schema.owners}
    sizes |= {field: 1 + estimate.left(last.ids.min_count[field]) for field, estimate in ids.items()}
    return Forecast(
        name,
        last.log_rows(),
        last.rows,
        ids,
        sizes,
        len(last.store.schema.fields),
        _store_bytes(last, ids, sizes),
        _seconds(prepared),
        _memory(last, ids),
        _tables(last.store.schema, sizes),
        last.whole,
        last.exact,
    )


def _prepare(name: str, log: SampledLog, folder: Path) -> _Prepared:
    """Prepare a sample."""
    folder.mkdir()
    writer = StoreWriter(folder)
    with _original_names(log):
        started = time.monotonic()
        schema, sample = log.write(writer)
        seconds = time.monotonic() - started
        ids = sample.ids()
        started = time.monotonic()
        writer.finish(schema, {"name": name, "fingerprint": "", "settings": {}, "files": []})
    store = Store(folder)
    if log.exact:
        known = {field: store.vocabulary(field).with_columns(block=0) for field in ids.counts}
        ids = IdCounts(known, dict.fromkeys(known, 1.0), ids.min_count)
    return _Prepared(store, seconds + time.monotonic() - started, sample, ids, log.exact)


@contextmanager
def _original_names(log: SampledLog) -> Iterator[None]:
    """Name the files of the log in errors, and not those of the sample, whose rows have other numbers."""
    try:
        yield
    except UserError as error:
        message = str(error)
        for path, original in log.originals.items():
            if str(path) in message:
                where = "" if log.exact else " of a sample"
                message = re.sub(rf"({re.escape(str(path))}, (?:row|line) \d+)", rf"\1{where}", message)
                message = message.replace(str(path), str(original))
        raise UserError(message) from None


def _tables(schema: Schema, sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of the embedding table alone, and with the state of each optimiser."""
    first_order = len(schema.tasks) + len(schema.views)
    widths = {field.name: row_width(field.dim or _DIM, first_order) for field in schema.owners}
    table = sum(sizes[field] * width * _NUMBER for field, width in widths.items())
    adagrad = table + _NUMBER * sum(sizes.values())
    return {"": table, " with Adam's state": 3 * table, " with Adagrad's": adagrad}


def _store_bytes(prepared: _Prepared, ids: Mapping[str, IdEstimate], sizes: Mapping[str, int]) -> float:
    """Size of the store of the whole log."""
    rows = prepared.sample.rows
    overall = rows["train"]
    total = float((prepared.store.folder / "store.json").stat().st_size)
    for name, array in prepared.arrays.items():
        first, *others = array["shape"]
        length = first * rows.get(name.split("/")[0], overall)
        length = sum(sizes.values()) if name == "counts" else min(length, prepared.sample.most.get(name, length))
        total += length * prod(others) * np.dtype(array["dtype"]).itemsize
    for path in prepared.store.folder.glob("*/*.parquet"):
        estimate = ids.get(path.stem) if path.parent.name == "vocabulary" else None
        factor = overall if path.parent.name == "history" else 1.0
        if estimate is not None:
            factor = (sizes[path.stem] - 1) / max(estimate.seen, 1)
        size = path.stat().st_size
        total += min(size, _PARQUET) + max(size - _PARQUET, 0) * factor
    return total


def _seconds(prepared: list[_Prepared]) -> float:
    """Time of preparing the whole log: what every start takes, and that of the rows."""
    first, last = prepared[0], prepared[-1]
    if first is last:
        return last.seconds
    by_row = max((last.seconds - first.seconds) / max(last.rows - first.rows, 1), 0.5 * last.seconds / last.rows)
    return last.seconds + by_row * (sum(last.log_rows().values()) - last.rows)


def _memory(prepared: _Prepared, ids: Mapping[str, IdEstimate]) -> float:
    """Most bytes of memory while preparing: those of the sample, and what grows with the rows."""
    peak = float(_peak())
    if prepared.whole:
        return peak
    more = max(prepared.log_rows()["train"] / _CHUNK - 1, 0.0)  # chunks
    for estimate in ids.values():
        # Ids are counted by chunk, and merged once so many are new, or as many as were merged before
        most = max(PENDING, estimate.total)
        peak += _BYTES_PENDING * min(most, more * min(estimate.seen, _CHUNK))
        peak += _BYTES_PER_ID * (estimate.total - estimate.seen)
    factor = prepared.sample.rows["train"] - 1
    arrays = [prepared.arrays[f"train/{part}"] for part in ("ids", "bag_ids", "bag_start")]
    mapped = sum(map(array_size, arrays))  # to count ids at the end
    rates = sum("rate" in statistics for statistics in prepared.store.content["statistics"].values())
    return peak + factor * (mapped + prepared.rows * rates * _NUMBER)


def _peak() -> int:
    """Most bytes of memory that this process has had."""
    try:
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except (OSError, LookupError, ValueError):  # not Linux; the peak of the process that started this one may count
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _exactly(number: float) -> str:
    return f"{round(number):,}"


def _about(number: float) -> str:
    """Three digits."""
    return f"about {float(f'{number:.3g}'):,.0f}"


def _bytes(number: float) -> str:
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
