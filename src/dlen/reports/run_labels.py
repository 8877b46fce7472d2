"""Which runs have the same settings: labels of configurations, groups of runs by label, and settings that differ."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlen.reports.run_record import RunRecord
from dlen.settings import PREPARING

# Settings in which two runs of one configuration may differ: the seed and the locations of files.
_FREE = (
    "seed",
    "run_dir",
    "runs_dir",
    "data_dir",
    "ckpt",
    "base_run",
    "logger",
    "metrics.scores",
    "trust",
    *PREPARING,
)
_MOST_KEYS = 3  # in a label
_PART = re.compile(r"^model\.((embedding|interaction|backbone|head)\.)?")  # prefix that labels omit


def by_label(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Group runs by configuration, in order."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record.label, []).append(record)
    return groups


def one_of_each_seed(records: Sequence[RunRecord]) -> list[RunRecord]:
    """One run per seed, for statistics: if a seed was run twice, the last tested run counts."""
    last = {record.seed: record for record in sorted(records, key=lambda r: (bool(r.metrics), r.written))}
    return [last[seed] for seed in sorted(last)]


def figures(records: Sequence[RunRecord], key: str) -> list[float]:
    """A metric of one run per seed, without the runs for which it is undefined."""
    return [value for record in one_of_each_seed(records) if (value := record.figure(key)) is not None]


def representative(records: Sequence[RunRecord]) -> RunRecord:
    """The run with the best validation AUC."""
    return max(records, key=lambda record: record.selection)


def differing(records: Sequence[RunRecord]) -> list[str]:
    """Keys of the settings in which configurations differ, those of the model first."""
    configurations = [_configuration(record) for record in records]
    keys = dict.fromkeys(key for settings in configurations for key in settings)
    varied = [key for key in keys if len({json.dumps(s.get(key), default=str) for s in configurations}) > 1]
    return sorted(varied, key=lambda key: not key.startswith("model"))


def _configuration(record: RunRecord) -> dict[str, Any]:
    """The settings shared by all seeds of one configuration."""
    return {k: v for k, v in record.settings.items() if not k.startswith(_FREE)}


def name_data(records: Sequence[RunRecord]) -> None:
    """Add the fingerprint to the names of different data sets that share a name."""
    fingerprints: dict[str, set[str]] = {}
    for record in records:
        fingerprints.setdefault(record.data, set()).add(record.fingerprint)
    for record in records:
        if len(fingerprints[record.data]) > 1:
            record.data = f"{record.data} {record.fingerprint[:6]}"


def set_labels(records: Sequence[RunRecord], names: Mapping[Path, str]) -> None:
    """Label each configuration by its name in a comparison, or by its model and the settings in which it differs.

    Args:
        records: runs to label.
        names: name of each run in its comparison, by resolved folder.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        settings = {k: v for k, v in _configuration(record).items() if k != "model_name"}
        groups.setdefault(json.dumps([record.fingerprint, settings], sort_keys=True, default=str), []).append(record)
    alike: dict[tuple[str, str], list[RunRecord]] = {}
    for group in groups.values():
        alike.setdefault((group[0].data, group[0].model), []).append(group[0])
    described = {
        first.key: text for firsts in alike.values() for first, text in zip(firsts, _described(firsts), strict=True)
    }
    labelled: dict[tuple[str, str], list[list[RunRecord]]] = {}
    for group in groups.values():
        first = group[0]
        name = next((names[r.folder.resolve()] for r in group if r.folder.resolve() in names), None)
        labelled.setdefault((first.data, name or described[first.key]), []).append(group)
    for (_, label), same in labelled.items():
        for group, text in zip(same, _told_apart([group[0] for group in same]), strict=True):
            for record in group:
                record.label = f"{label} {text}" if text else label


def _told_apart(alike: Sequence[RunRecord]) -> list[str]:
    """The fewest settings that tell apart configurations whose labels are the same; empty for a single one."""
    texts = [""] * len(alike)
    for key in differing(alike):
        if len(set(texts)) == len(alike):
            break
        values = [f"{_PART.sub('', key)}={_short(record.settings.get(key))}" for record in alike]
        texts = [f"{text} {value}".strip() for text, value in zip(texts, values, strict=True)]
    return texts


def _described(alike: Sequence[RunRecord]) -> list[str]:
    """Describe configurations of one model by its name and the settings in which each differs from the majority."""
    unusual: list[list[str]] = [[] for _ in alike]
    for key in differing(alike):
        part = key.removesuffix("._target_")
        everywhere = all(key in record.settings for record in alike)
        if key.endswith("._partial_") or (part == key and not everywhere):
            continue  # the name of the part already implies settings that only some parts have
        values = [record.settings.get(key) for record in alike]
        written = [json.dumps(value, default=str) for value in values]
        usual, count = Counter(written).most_common(1)[0]
        for settings, value, text in zip(unusual, values, written, strict=True):
            if text != usual or 2 * count <= len(values):
                settings.append(f"{_PART.sub('', part)}={_short(value)}")
    return [" ".join([r.model, *_first(settings)]) for r, settings in zip(alike, unusual, strict=True)]


def _first(settings: Sequence[str]) -> list[str]:
    """The settings that a label names, and the number of those that it omits."""
    omitted = len(settings) - _MOST_KEYS
    return [*settings[:_MOST_KEYS], *([f"+{omitted}"] if omitted > 0 else [])]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "-".join(map(str, value))
    text = str(value)
    return re.sub("(Interaction|Backbone|Head)$", "", text.rsplit(".", 1)[-1]) if "dlen." in text else text
