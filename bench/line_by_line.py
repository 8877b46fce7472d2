"""Ali-CCP prepared line by line with dictionaries, like commonly used scripts, as a baseline for prepare.py.

python bench/line_by_line.py RAW_FOLDER OUTPUT.csv          # single-valued fields, as in those scripts
python bench/line_by_line.py RAW_FOLDER OUTPUT.csv all      # all 23 fields, as in prepare.py
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

USER = ["101", "121", "122", "124", "125", "126", "127", "128", "129"]
FIELDS = [*USER, "205", "206", "207", "216", "508", "509", "702", "301"]
LISTS = ["109_14", "110_14", "127_14", "150_14", "210", "508", "509", "702", "853"]  # scripts keep one of 508 to 702
MIN_COUNT, LONGEST = 10, 20
Values = dict[str, Any]


def parse(text: str, singles: Collection[str], lists: Collection[str]) -> Values:
    """Parse ``field \\x02 id \\x03 value`` joined by ``\\x01`` -> the id of each field, or a list's heaviest ids."""
    found: Values = {}
    weighted: dict[str, list[tuple[float, str]]] = {}
    for part in text.split("\x01"):
        field, _, rest = part.partition("\x02")
        if field in singles:
            found[field] = rest.split("\x03")[0]
        elif field in lists:
            raw_id, _, value = rest.partition("\x03")
            weighted.setdefault(field, []).append((float(value), raw_id))
    for field, values in weighted.items():
        if len(values) > LONGEST:
            values.sort(key=lambda pair: -pair[0])
        found[field] = [raw_id for _, raw_id in values[:LONGEST]]
    return found


def rows(raw: Path, split: str, singles: list[str], lists: list[str]) -> list[list[Any]]:
    """For every line: click, conversion, one id per single-valued field and a list per multi-valued field."""
    common = {}
    wanted, listed = frozenset(singles), frozenset(lists)
    with (raw / f"common_features_{split}.csv").open() as file:
        for line in file:
            index, _, features = line.rstrip("\n").split(",")
            common[index] = parse(features, wanted, listed)
    joined = []
    with (raw / f"sample_skeleton_{split}.csv").open() as file:
        for line in file:
            _, click, conversion, index, _, features = line.rstrip("\n").split(",")
            if click == "0" and conversion == "1":
                continue
            found = common[index] | parse(features, wanted, listed)
            ids = [found.get(name, "") for name in singles]
            joined.append([click, conversion, *ids, *(found.get(name, ()) for name in lists)])
    return joined


def main() -> None:
    """Count ids in train, number the frequent ones, and write both splits."""
    raw, out, everything = Path(sys.argv[1]), Path(sys.argv[2]), "all" in sys.argv[3:]
    lists = LISTS if everything else []
    singles = [name for name in FIELDS if name not in lists]
    train = rows(raw, "train", singles, lists)
    counts: list[Counter[str]] = [Counter() for _ in (*singles, *lists)]
    first = 2 + len(singles)  # column of the first list
    for row in train:
        for counter, value in zip(counts, row[2:first], strict=False):
            counter[value] += 1
        for counter, values in zip(counts[len(singles) :], row[first:], strict=True):
            counter.update(values)
    ids = []
    for counter in counts:
        kept = [value for value, count in counter.items() if count >= MIN_COUNT]
        ids.append({value: number for number, value in enumerate(kept, 1)})
    with out.open("w") as file:
        for split in (train, rows(raw, "test", singles, lists)):
            for row in split:
                numbers = [str(table.get(value, 0)) for table, value in zip(ids, row[2:first], strict=False)]
                for table, values in zip(ids[len(singles) :], row[first:], strict=True):
                    numbers.append("|".join([str(table.get(value, 0)) for value in values]))
                file.write(",".join([*row[:2], *numbers]) + "\n")


if __name__ == "__main__":
    main()
