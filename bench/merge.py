"""Vocabularies of 100 shards with 20 M distinct ids in all, merged as preparing does: seconds, and memory.

python bench/merge.py
python bench/merge.py ids=5000000
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
from common import report, run

from dlen.data.sources.table_columns import TextVocabulary
from dlen.data.vocabulary import IdCounter, IdVocabulary

SHARDS = 100
KINDS = ("texts, as of a table", "numbers, as of Ali-CCP")


def shards(ids: int) -> Iterator[np.ndarray[Any, Any]]:
    """The ids of each shard: its own, which no other has, and as many that are popular."""
    for shard in range(SHARDS):
        own = np.arange(shard * ids // SHARDS, (shard + 1) * ids // SHARDS)
        popular = np.exp(np.random.default_rng(shard).random(len(own)) * np.log(ids)).astype(np.int64) - 1
        yield np.concatenate([own, popular])


def merged(ids: int, kind: str) -> tuple[float, float, int]:
    """Seconds to merge, seconds to order and fix the codes, and the number of ids."""
    seconds, texts, numbers = 0.0, TextVocabulary(1), IdCounter()
    for drawn in shards(ids):
        of_shard, counter = TextVocabulary(1), IdCounter()
        if kind == KINDS[0]:
            of_shard.add(pl.Series(drawn).cast(pl.String))
            of_shard.pack()
        else:
            counter.add(drawn)
        counts = counter.result()
        started = time.perf_counter()
        if kind == KINDS[0]:
            texts.merge(of_shard)
        else:
            numbers.add(*counts)
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    if kind == KINDS[0]:
        texts.freeze()
        found = len(texts) - 1
    else:
        found = len(IdVocabulary(numbers.result()[0]).ids)
    return seconds, time.perf_counter() - started, found


def main() -> None:
    """Merge in a process for each kind, whose memory is that of the merge."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    ids = int(given.get("ids", 20_000_000))
    if "kind" in given:
        print(*merged(ids, given["kind"]))
        return
    rows = []
    for kind in KINDS:
        ran = run([__file__, f"ids={ids}", f"kind={kind}"])
        merging, fixing, found = ran.output.split()
        rows.append({
            "ids": f"{int(found):,} {kind}",
            "s to merge": f"{float(merging):.1f}",
            "s to fix the codes": f"{float(fixing):.1f}",
            "peak memory, MiB": f"{ran.peak_mb:.0f}",
            "threads": os.environ.get("POLARS_MAX_THREADS", os.cpu_count()),
        })  # fmt: skip
    report("merge", rows)


if __name__ == "__main__":
    main()
