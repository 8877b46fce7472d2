"""The page of a benchmark: ranks with ties on each data set, and over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from dlen import __version__
from dlen.comparing.statistics import LEVEL, Difference
from dlen.comparing.tables import BENCHMARK_FIGURES, best_of, count_seeds, markdown_table, mean_and_spread
from dlen.files import content_checksum, finite, write_json, write_text

_RECORDED = ("seed", "version", "code", "config_hash", "data_", "library/", "machine/", "fit/precision", "test/")


@dataclass(frozen=True, slots=True)
class Entry:
    """One model on one data set.

    Attributes:
        model: name of the model.
        group: 1 for the models that are not clearly behind the best, 2 for those not clearly behind the best of the
            rest, and so on.
        auc: mean AUC over tasks, of each seed.
        to_first: paired difference to the first model of the group; None for this one.
        gain: paired difference to the base model; None for the base.
        figures: other metrics, means over seeds; nan where one is not defined.
        searched: settings that the search chose; empty for the defaults.
        trials: number of settings that were tried.
        settings: overrides of ``train.py`` with which, and its ``seed``, anyone can repeat a run.
        runs: of each seed, the test metrics and what can change them, under the keys of ``metrics.json``.
    """

    model: str
    group: int
    auc: list[float]
    to_first: Difference | None
    gain: Difference | None
    figures: dict[str, float]
    searched: str
    trials: int
    settings: list[str]
    runs: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class DataSet:
    """All models on one data set.

    Attributes:
        name: name of the data set.
        identity: identity of the data.
        entries: models, by group and then by mean AUC.
        unfit: models whose needs the data do not meet.
    """

    name: str
    identity: dict[str, Any]
    entries: list[Entry]
    unfit: list[str]

    def ranks(self) -> dict[str, float]:
        """Rank of each model; the models of a group share the mean of their places."""
        places: dict[int, list[int]] = {}
        for place, entry in enumerate(self.entries, 1):
            places.setdefault(entry.group, []).append(place)
        return {entry.model: float(np.mean(places[entry.group])) for entry in self.entries}


def write_benchmark(
    folder: Path, data_sets: Sequence[DataSet], missing: Mapping[str, str], base: str, seeds: Sequence[int]
) -> str:
    """Write ``benchmark.md`` and ``benchmark.json``.

    Args:
        folder: folder of the files; created if it does not exist.
        data_sets: what has been measured.
        missing: why a data set was left out, by name.
        base: the model that gains are measured against.
        seeds: seeds of each model.

    Returns:
        The page, in Markdown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = markdown(data_sets, missing, base, seeds)
    write_text(folder / "benchmark.md", page)
    averages, difference = average_ranks(data_sets)
    content: dict[str, Any] = {"version": __version__, "base": base, "seeds": list(seeds), "missing": dict(missing)}
    content |= {"average_ranks": averages, "critical_difference": difference}
    content |= {"data_sets": [{**asdict(data), "ranks": data.ranks()} for data in data_sets]}
    content = finite(content)
    write_json(folder / "benchmark.json", {**content, "crc32": content_checksum(content)})
    return page


def markdown(data_sets: Sequence[DataSet], missing: Mapping[str, str], base: str, seeds: Sequence[int]) -> str:
    """The page."""
    parts = ["# Benchmark", _method(base, seeds)]
    if len(data_sets) > 1:
        parts += ["## All data sets", _overall(data_sets)]
    for data in data_sets:
        parts += [f"## {data.name}", _of_data(data), _table(data, base)]
        if data.unfit:
            parts.append(f"Left out, as the data do not meet their needs: {', '.join(data.unfit)}.")
    if missing:
        lines = [f"- {name}: {reason}" for name, reason in missing.items()]
        parts += ["## Not measured", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _method(base: str, seeds: Sequence[int]) -> str:
    return (
        f"Each model is trained on the same rows with {count_seeds(seeds)} and its best settings on the validation "
        "split; nothing is chosen on test rows. Models of one group are not clearly behind the first of it: zero is "
        f"in the {LEVEL:.0%} interval, over seeds and test rows, of the paired difference in mean AUC. Gains are to "
        f"`{base}`, paired in the same way; * marks those clear of zero. NE is the log loss over that of the task's "
        "rate, lower is better; GAUC is the AUC within users."
    )


def _of_data(data: DataSet) -> str:
    return f"Data `{data.identity['data']}`, {data.identity['test_rows']:,} test rows."


def _table(data: DataSet, base: str) -> str:
    used = {k: shown for k, shown in BENCHMARK_FIGURES.items() if any(not np.isnan(e.figures[k]) for e in data.entries)}
    titles = [title for title, _ in used.values()]
    header = ["group", "model", "mean AUC", "to the first [95 %]", f"gain over {base} [95 %]", *titles, "settings"]
    rows = []
    for entry in data.entries:
        figures = [_cell(entry.figures[key], layout) for key, (_, layout) in used.items()]
        gains = [f"{d.starred} {d.interval}" if d else "" for d in (entry.to_first, entry.gain)]
        settings = best_of(f"`{entry.searched}`" if entry.searched else "", entry.trials)
        rows.append([str(entry.group), entry.model, mean_and_spread(entry.auc), *gains, *figures, settings])
    return markdown_table(header, rows)


def _cell(value: float, layout: str) -> str:
    return "" if np.isnan(value) else layout.format(value)


def _overall(data_sets: Sequence[DataSet]) -> str:
    """Average ranks with the critical difference, and the rank on each data set."""
    (averages, difference), ranks = average_ranks(data_sets), [data.ranks() for data in data_sets]
    rows = [
        [model, f"{averages[model]:.2f}", *(f"{of_data[model]:g}" for of_data in ranks)]
        for model in sorted(averages, key=averages.__getitem__)
    ]
    table = markdown_table(["model", "average rank", *(data.name for data in data_sets)], rows)
    note = (
        f"Average ranks that differ by less than {difference:.2f} are not distinguishable (Nemenyi's test, "
        f"{1 - LEVEL:.0%}; Demšar 2006). Models that were left out on a data set are not in this table."
    )
    return f"{table}\n\n{note}"


def average_ranks(data_sets: Sequence[DataSet]) -> tuple[dict[str, float], float]:
    """Average rank of each model that every data set has, and the critical difference of these averages."""
    ranks = [data.ranks() for data in data_sets]
    common = [model for model in ranks[0] if all(model in of_data for of_data in ranks)] if ranks else []
    averages = {model: float(np.mean([of_data[model] for of_data in ranks])) for model in common}
    return averages, critical_difference(len(common), len(ranks))


def critical_difference(models: int, data_sets: int) -> float:
    """Difference of average ranks from which two models differ, by Nemenyi's test (Demšar 2006, section 3.2.2).

    Args:
        models: number k of models.
        data_sets: number N of data sets.

    Returns:
        q sqrt(k (k + 1) / (6 N)), q the studentised range's quantile over the root of 2; 0 for one model.
    """
    if models < 2:
        return 0.0
    quantile = float(stats.studentized_range.ppf(LEVEL, models, np.inf)) / np.sqrt(2)
    return float(quantile * np.sqrt(models * (models + 1) / (6 * data_sets)))


def figures_of(runs: Sequence[Mapping[str, Any]], targets: Sequence[str]) -> dict[str, float]:
    """The other metrics of an entry.

    Args:
        runs: metrics of each seed.
        targets: names of the tasks and joint events.
    """
    keys = {key: [key] if "/" in key else [f"test/{key}/{target}" for target in targets] for key in BENCHMARK_FIGURES}
    return {key: _mean_of(runs, of_runs) for key, of_runs in keys.items()}


def record_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """What the file of a benchmark keeps of the metrics of a run, so that a rerun can be compared with it."""
    return {key: value for key, value in run.items() if key.startswith(_RECORDED) and value is not None}


def _mean_of(runs: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> float:
    """Mean over runs, of the keys that they have; nan without any."""
    values = [float(run[key]) for run in runs for key in keys if isinstance(run.get(key), int | float)]
    return float(np.mean(values)) if values else float("nan")
