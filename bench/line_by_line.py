"""Ali-CCP prepared line by line with dictionaries, as the scripts that circulate do it: only to be measured against.

python bench/line_by_line.py RAW_FOLDER OUTPUT.csv          # the fields with one value, as they do
python bench/line_by_line.py RAW_FOLDER OUTPUT.csv all      # all 23 fields, as prepare.py does
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

USER = ["101", "121", "122", "124", "125", "126", "127", "128", "129"]
FIELDS = [*USER, "205", "206", "207", "216", "508", "509", "702", "301"]
LISTS = ["109_14", "110_14", "127_14", "150_14", "210", "853"]
CROSSES = ["508", "509", "702"]  # several ids in some lines: the scripts keep the last
MIN_COUNT, LONGEST = 10, 20
Values = dict[str, tuple[str, ...]]


def parse(text: str, lists: Sequence[str]) -> Values:
    """``field \\x02 id \\x03 value`` joined by ``\\x01`` -> ids by field; of a list the heaviest ones."""
    found: Values = {}
    weighted: dict[str, list[tuple[float, str]]] = {}
    for part in text.split("\x01"):
        field, _, rest = part.partition("\x02")
        raw_id, _, value = rest.partition("\x03")
        if field in lists:
            weighted.setdefault(field, []).append((float(value), raw_id))
        elif field in FIELDS:
            found[field] = (raw_id,)
    for field, values in weighted.items():
        if len(values) > LONGEST:
            values.sort(key=lambda pair: -pair[0])
        found[field] = tuple(raw_id for _, raw_id in values[:LONGEST])
    return found


def rows(raw: Path, split: str, fields: Sequence[str], lists: Sequence[str]) -> list[list[tuple[str, ...]]]:
    """Click, conversion and the ids of each field of every line."""
    common = {}
    with (raw / f"common_features_{split}.csv").open() as file:
        for line in file:
            index, _, features = line.rstrip("\n").split(",")
            common[index] = parse(features, lists)
    joined = []
    with (raw / f"sample_skeleton_{split}.csv").open() as file:
        for line in file:
            _, click, conversion, index, _, features = line.rstrip("\n").split(",")
            if click == "0" and conversion == "1":
                continue
            found = common[index] | parse(features, lists)
            joined.append([(click,), (conversion,), *(found.get(name, ()) for name in fields)])
    return joined


def main() -> None:
    """Count ids in train, number those that are frequent, write both splits."""
    raw, out, everything = Path(sys.argv[1]), Path(sys.argv[2]), "all" in sys.argv[3:]
    fields = [*FIELDS, *LISTS] if everything else FIELDS
    lists = [*LISTS, *CROSSES] if everything else []
    train = rows(raw, "train", fields, lists)
    counts: list[Counter[str]] = [Counter() for _ in fields]
    for row in train:
        for counter, values in zip(counts, row[2:], strict=True):
            counter.update(values)
    ids = []
    for counter in counts:
        kept = [value for value, count in counter.items() if count >= MIN_COUNT]
        ids.append({value: number for number, value in enumerate(kept, 1)})
    with out.open("w") as file:
        for split in (train, rows(raw, "test", fields, lists)):
            for row in split:
                pairs = zip(ids, row[2:], strict=True)
                numbers = ["|".join(str(table.get(value, 0)) for value in values) for table, values in pairs]
                file.write(",".join([*row[0], *row[1], *numbers]) + "\n")


if __name__ == "__main__":
    main()
