"""Ali-CCP prepared line by line with dictionaries, as the scripts that circulate do it: only to be measured against.

python bench/line_by_line.py RAW_FOLDER OUTPUT.csv

They keep the fields with one value and drop the rest, so this does less than prepare.py.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

USER = ["101", "121", "122", "124", "125", "126", "127", "128", "129"]
FIELDS = [*USER, "205", "206", "207", "216", "508", "509", "702", "301"]
MIN_COUNT = 10


def parse(text: str) -> dict[str, str]:
    """``field \\x02 id \\x03 value`` joined by ``\\x01`` -> id by field."""
    found = {}
    for part in text.split("\x01"):
        field, _, rest = part.partition("\x02")
        if field in FIELDS:
            found[field] = rest.split("\x03")[0]
    return found


def rows(raw: Path, split: str) -> list[list[str]]:
    """Click, conversion and one id for each field of every line."""
    common = {}
    with (raw / f"common_features_{split}.csv").open() as file:
        for line in file:
            index, _, features = line.rstrip("\n").split(",")
            common[index] = parse(features)
    joined = []
    with (raw / f"sample_skeleton_{split}.csv").open() as file:
        for line in file:
            _, click, conversion, index, _, features = line.rstrip("\n").split(",")
            if click == "0" and conversion == "1":
                continue
            found = common[index] | parse(features)
            joined.append([click, conversion, *(found.get(name, "") for name in FIELDS)])
    return joined


def main() -> None:
    """Count ids in train, number those that are frequent, write both splits."""
    raw, out = Path(sys.argv[1]), Path(sys.argv[2])
    train = rows(raw, "train")
    counts: list[Counter[str]] = [Counter() for _ in FIELDS]
    for row in train:
        for counter, value in zip(counts, row[2:], strict=True):
            counter[value] += 1
    ids = []
    for counter in counts:
        kept = [value for value, count in counter.items() if count >= MIN_COUNT]
        ids.append({value: number for number, value in enumerate(kept, 1)})
    with out.open("w") as file:
        for split in (train, rows(raw, "test")):
            for row in split:
                numbers = [str(table.get(value, 0)) for table, value in zip(ids, row[2:], strict=True)]
                file.write(",".join([*row[:2], *numbers]) + "\n")


if __name__ == "__main__":
    main()
