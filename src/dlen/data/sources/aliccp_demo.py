r"""A small generated pair of files in Ali-CCP's raw format, for trying the reader without the download.

It contains everything that makes the real files difficult: repeated fields, absent cross features, conversions without
a click, ``127`` next to ``127_14``, one global id space, and test ids that are not in train.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TextIO

import numpy as np
import polars as pl

from dlen.data.columns import Array
from dlen.data.prepare import replacing
from dlen.data.sources.aliccp import AliCCP
from dlen.data.sources.aliccp_sample import AliCCPSample
from dlen.data.sources.feed_world import sigmoid
from dlen.errors import UserError
from dlen.files import check_writable, locked
from dlen.progress import Stage
from dlen.valid import Range

_ROWS_PER_PIECE = 1500  # in a megabyte of a skeleton and its common features
_WORLD = 2  # increase if the same settings would generate other files
_ROWS_PER_GROUP = 58  # as in the real files
_GROUPS_PER_CHUNK = 1000
_CATEGORIES, _ITEMS, _SHOPS, _BRANDS, _INTENTIONS = 400, 20_000, 4_000, 2_000, 1_500
_HISTORY = {"109_14": 80, "110_14": 250, "127_14": 130, "150_14": 50}  # mean number of values, as in the real files
_PROFILE = {"121": 98, "122": 14, "124": 3, "125": 8, "126": 4, "127": 4, "128": 3, "129": 5}
_CLICK, _CONVERSION, _IMPOSSIBLE = 0.05, 0.1, 0.0001
# First id of each kind in the global id space.
_BASE = {"101": 100_000, "205": 2_000_000, "206": 8_000_000, "207": 8_100_000, "210": 8_200_000, "216": 8_300_000}
_BASE |= {"109_14": 8_000_000, "110_14": 8_100_000, "127_14": 8_300_000, "150_14": 8_200_000}
_BASE |= {"508": 8_400_000, "509": 8_500_000, "702": 8_600_000, "853": 8_700_000, "301": 9_350_000}
_BASE |= {name: 9_300_000 + 100 * i for i, name in enumerate(_PROFILE)}


@dataclass
class AliCCPDemo(AliCCP):
    """The generated pair as a data source; :class:`AliCCP` does the reading.

    Args:
        raw_dir: folder to which the four files are written.
        name: name of the data set.
        rows: number of training impressions; the test pair has a quarter as many.
        demo_seed: random seed of the generated files.
    """

    name: str = "aliccp_demo"
    rows: Annotated[int, Range(_ROWS_PER_GROUP)] = 100_000
    demo_seed: Annotated[int, Range(0)] = 0

    def settings(self) -> dict[str, Any]:
        """Settings that affect the store."""
        return {**super().settings(), "rows": self.rows, "demo_seed": self.demo_seed}

    def files(self) -> list[Path]:
        """The four raw files, generated first unless they exist for these settings."""
        folder = Path(self.raw_dir)
        wanted = {"rows": self.rows, "seed": self.demo_seed, "world": _WORLD}
        marker = folder / "demo.json"
        if folder.exists() and not marker.exists():
            raise UserError(f"{folder}: exists and was not written by aliccp_demo; set data.raw_dir to a new folder")
        check_writable(folder)
        with locked(folder.with_name(f".{folder.name}.lock"), "drawing this data"):
            if not folder.exists():
                self._draw(folder, wanted)
            elif _read_marker(marker) != wanted:  # do not overwrite files from which stores and runs were made
                raise UserError(
                    f"{folder}: holds files of other settings or another version; set data.raw_dir to a new folder"
                )
        return super().files()

    def sample(self, folder: Path, pieces: int) -> AliCCPSample:
        """Draw files that are not longer than the sample, without writing to ``raw_dir``."""
        rows = max(min(self.rows, pieces * _ROWS_PER_PIECE), _ROWS_PER_GROUP)
        drawn = replace(self, raw_dir=str(folder / "drawn"), rows=rows)
        drawn.files()
        read = replace(self, raw_dir=str(folder), min_count=1)
        sample = AliCCPSample(drawn, read, pieces, self.rows / rows)
        sample.originals = {path: Path(self.raw_dir) / original.name for path, original in sample.originals.items()}
        return sample

    def _draw(self, folder: Path, wanted: dict[str, int]) -> None:
        with replacing(folder) as temporary:
            for split, rows in (("train", self.rows), ("test", self.rows // 4)):
                _write_pair(temporary, split, max(rows, _ROWS_PER_GROUP), self.demo_seed)
            (temporary / "demo.json").write_text(json.dumps(wanted))


def _read_marker(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


class _World:
    """What determines preferences; the same for train and test."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.category = rng.integers(_CATEGORIES, size=_ITEMS)
        self.shop = rng.integers(_SHOPS, size=_ITEMS)
        self.brand = rng.integers(_BRANDS, size=_ITEMS)
        self.quality = 0.5 * rng.normal(size=_ITEMS)
        self.price = rng.normal(size=_CATEGORIES)


def _write_pair(folder: Path, split: str, rows: int, seed: int) -> None:
    rng = np.random.default_rng([seed, 1, split == "test"])
    world = _World(seed)
    groups = rows // _ROWS_PER_GROUP
    common_path, skeleton_path = (folder / f"{k}_{split}.csv" for k in ("common_features", "sample_skeleton"))
    written = 0
    with (
        common_path.open("w") as common,
        skeleton_path.open("w") as skeleton,
        Stage(f"drawing the {split} pair", rows, "rows") as stage,
    ):
        for first in range(0, groups, _GROUPS_PER_CHUNK):
            count = min(_GROUPS_PER_CHUNK, groups - first)
            size = rows - written if first + count == groups else count * _ROWS_PER_GROUP
            _write_chunk(rng, world, split, (first, count), (written, size), common, skeleton)
            written += size
            stage.advance(size)


def _write_chunk(
    rng: np.random.Generator,
    world: _World,
    split: str,
    groups: tuple[int, int],
    rows: tuple[int, int],
    common: TextIO,
    skeleton: TextIO,
) -> None:
    """Write some user groups with all their impressions; ``groups`` and ``rows`` are (first, count)."""
    first_group, count = groups
    # Test has new users (a quarter of its users) and users of train.
    pool = max(first_group + count, 1) if split == "train" else 2 * (first_group + count)
    user = rng.integers(pool, size=count) if split == "test" else first_group + np.arange(count)
    favourite = np.random.default_rng(7).integers(_CATEGORIES, size=(1 << 20, 3))[user % (1 << 20)]
    keys = pl.Series([f"{split[0]}{g:015x}" for g in range(first_group, first_group + count)])
    _lines(common, [keys], count, _user_features(rng, user, favourite))
    first, size = rows
    group = np.sort(rng.integers(count, size=size))
    items = _ITEMS if split == "test" else _ITEMS - _ITEMS // 20  # one item in twenty is new in test
    item = (items * rng.random(size) ** 1.7).astype(np.int64)
    matched = (world.category[item][:, None] == favourite[group]).any(1) | (rng.random(size) < 0.2)
    liking = 1.6 * matched + world.quality[item] + 0.3 * rng.normal(size=size)
    click = rng.random(size) < sigmoid(liking + np.log(_CLICK) - 0.8)
    conversion = click & (rng.random(size) < sigmoid(liking - world.price[world.category[item]] + np.log(_CONVERSION)))
    conversion |= ~click & (rng.random(size) < _IMPOSSIBLE)
    head = [pl.Series(np.arange(first + 1, first + size + 1)), pl.Series(click.astype(np.uint8))]
    head += [pl.Series(conversion.astype(np.uint8)), keys[group]]
    _lines(skeleton, head, size, _item_features(rng, world, item, matched))


Features = Iterator[tuple[str, Array, Array, Array]]  # field, row, id without its base, value


def _user_features(rng: np.random.Generator, user: Array, favourite: Array) -> Features:
    rows = np.arange(len(user))
    for name, mean in _HISTORY.items():
        lengths = rng.geometric(1 / mean, size=len(user)).clip(max=5 * mean)
        row = np.repeat(rows, lengths)
        size = {"109_14": _CATEGORIES, "110_14": _SHOPS, "127_14": _BRANDS, "150_14": _INTENTIONS}[name]
        drawn = (size * rng.random(len(row)) ** 2).astype(np.int64)
        if name == "109_14":  # users have often viewed the categories that they like
            liked = rng.random(len(row)) < 0.2
            drawn = np.where(liked, favourite[row, rng.integers(3, size=len(row))], drawn)
        yield name, row, drawn, np.log1p(rng.integers(1, 20, size=len(row))).round(5)
    yield "101", rows, user, np.ones(len(rows))
    for name, size in _PROFILE.items():
        known = np.flatnonzero(rng.random(len(rows)) < 0.97)
        yield name, known, (user[known] * 7919 + len(name)) % size, np.ones(len(known))


def _item_features(rng: np.random.Generator, world: _World, item: Array, matched: Array) -> Features:
    rows, ones = np.arange(len(item)), np.ones(len(item))
    yield "205", rows, item, ones
    yield "206", rows, world.category[item], ones
    yield "207", rows, world.shop[item], ones
    many = np.repeat(rows, rng.integers(1, 6, size=len(item)))
    yield "210", many, (item[many] * 31 + rng.integers(5, size=len(many)) * 17) % _INTENTIONS, np.ones(len(many))
    yield "216", rows, world.brand[item], ones
    crossed = {"508": world.category, "509": world.shop, "702": world.brand}
    for name, column in crossed.items():
        crossing = np.flatnonzero(matched & (rng.random(len(item)) < 0.7))
        yield name, crossing, column[item][crossing], rng.gamma(2.0, 0.3, size=len(crossing)).round(5)
    crossing = np.repeat(np.flatnonzero(matched), 2)
    crossing = crossing[rng.random(len(crossing)) < 0.6]
    yield "853", crossing, (item[crossing] * 31) % _INTENTIONS, rng.gamma(2.0, 0.3, size=len(crossing)).round(5)
    yield "301", rows, rng.integers(1, 4, size=len(rows)), ones


def _lines(file: TextIO, head: list[pl.Series], rows: int, features: Features) -> None:
    r"""Write lines: the head columns, feature_num, and features as field \x02 id \x03 value joined by \x01."""
    parts = []
    for name, row, ids, values in features:
        frame = pl.DataFrame({"row": row, "id": ids + _BASE[name], "value": values})
        parts.append(frame.select("row", text=pl.format(name + "\x02{}\x03{}", "id", "value")))
    joined = pl.concat(parts).group_by("row").agg(pl.len().alias("number"), pl.col("text").str.join("\x01"))
    columns = {f"h{i}": column for i, column in enumerate(head)}
    frame = pl.DataFrame({"row": np.arange(rows), **columns}).join(joined, "row", "left").sort("row").drop("row")
    file.write(frame.write_csv(include_header=False, quote_style="never"))
