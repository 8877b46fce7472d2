"""What the file of a benchmark claims of its runs, read before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dlen import __version__
from dlen.checks import is_number
from dlen.comparing.settings import Value, chosen, parse_seeds
from dlen.errors import UserError
from dlen.files import is_intact, read_mapping


@dataclass(frozen=True, slots=True)
class Claim:
    """One run of a benchmark.

    Attributes:
        data_set: name of the data set.
        model: name of the model.
        settings: overrides of ``train.py``, without the seed.
        run: test metrics and what can change them, under the keys of ``metrics.json``.
        auc: mean AUC over tasks, of each seed of the model.
        measure: key of the mean AUC, or of the mean XAUC where all tasks are regressions.
    """

    data_set: str
    model: str
    settings: list[str]
    run: dict[str, Any]
    auc: list[float]
    measure: str


def read_claims(config: DictConfig) -> list[Claim]:
    """The runs of ``config.check`` that ``data_sets``, ``models`` and ``seeds`` choose; of each, the first by default.

    Raises:
        UserError: the file has been edited, or is another version's, or has no such run.
    """
    path = Path(config.check)
    content = read_mapping(path)
    if content.get("version") != __version__:
        raise UserError(
            f"{path}: was written by dlen {content.get('version')}, and this is dlen {__version__}; check it with that "
            "version"
        )
    if not is_intact(content):
        raise UserError(f"{path}: does not match its checksum, so it has been edited; get the original file")
    seeds = None if config.seeds is None else [str(seed) for seed in parse_seeds(config.seeds)]
    try:
        return [
            _claim(data["name"], entry, run)
            for data in _picked({data["name"]: data for data in content["data_sets"]}, config.data_sets, "data_sets")
            for entry in _picked({entry["model"]: entry for entry in data["entries"]}, config.models, "models")
            for run in _picked({str(run["seed"]): run for run in entry["runs"]}, seeds, "seeds")
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is not the file of a benchmark ({error!r})") from None


def _claim(data_set: str, entry: Mapping[str, Any], run: Mapping[str, Any]) -> Claim:
    """Check the types of a claim; TypeError or KeyError if they are not those that a benchmark writes."""
    measure = "test/auc/mean" if "test/auc/mean" in run else "test/xauc/mean"
    wrong = [k for k, v in run.items() if k.startswith(("test/", "seed", "machine/threads")) and not is_number(v)]
    if wrong or measure not in run:
        raise TypeError(f"{wrong[0] if wrong else measure} is no number")
    settings, auc = [str(setting) for setting in entry["settings"]], [float(value) for value in entry["auc"]]
    return Claim(str(data_set), str(entry["model"]), settings, dict(run), auc, measure)


def _picked(known: dict[str, Value], names: Sequence[str] | None, key: str) -> list[Value]:
    """The named entries; the first without names."""
    return list(chosen(known, names or list(known)[:1], key, "file").values())
