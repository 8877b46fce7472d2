"""Trials of ``sweep=fusion``: weights of the ranking score on the predictions of a finished run, without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import yaml
from numpy.typing import NDArray
from optuna.trial import TrialState

from dlen.comparing.statistics import paired
from dlen.errors import UserError
from dlen.files import write_json, write_text
from dlen.metrics.by_user import NDCG_AT, graded_ndcg
from dlen.ranking.fusion import Form, fuse, values_of, worth
from dlen.schema import Schema
from dlen.sweeping.space import Space
from dlen.sweeping.study import fail
from dlen.training.scoring import SplitScores, score_split

FIGURE = f"ndcg@{NDCG_AT}"
_KEYS = ("weight", "up", "form")


@dataclass(frozen=True, slots=True)
class FusionJob:
    """What all trials of a fusion study share.

    Attributes:
        run: folder of the finished run.
        tasks: of its data.
        values: what each of them is worth.
    """

    run: Path
    tasks: list[str]
    values: list[float]

    def scores(self, split: str) -> SplitScores:
        """Predictions of a split.

        Raises:
            UserError: its data name no user, so there are no lists to rank.
        """
        found = score_split(self.run, split)
        if found.users is None:
            raise UserError(f"{self.run}: its data name no user, so there are no lists whose order could be measured")
        return found

    def by_user(self, scores: SplitScores, params: Mapping[str, Any]) -> NDArray[np.float64]:
        """(U,) NDCG of each known user's list by its worth; nan for a list without any."""
        weights = torch.tensor([float(params.get(f"weight.{t}", 1.0)) for t in self.tasks])
        form = str(params.get("form", Form.PRODUCT))
        score = fuse(scores.log_p, scores.log_up, weights, float(params.get("up", 0.0)), form)
        gains = worth(scores.labels, self.values)
        assert scores.users is not None
        known = scores.known
        score = score.clamp(min=torch.finfo(score.dtype).min)  # where nothing has weight, all tie
        return graded_ndcg(score[known], gains[known], scores.users[known]).numpy()


def make_job(run: Path, schema: Schema, values: Mapping[str, float] | None) -> FusionJob:
    """A finished run and what its tasks are worth.

    Raises:
        UserError: a value is wrong.
    """
    try:
        worths = values_of(values, schema.task_names, [t.dislike for t in schema.tasks])
    except ValueError as error:
        raise UserError(f"config sweep.values: {error}") from None
    return FusionJob(run.absolute(), schema.task_names, worths)


def check_fusion(space: Space, job: FusionJob, objectives: Mapping[str, str]) -> None:
    """Only what a fusion has can be searched, and every point must be one that it can compute.

    Raises:
        UserError: it is not so.
    """
    if objectives != {FIGURE: "maximize"}:
        raise UserError(f"config sweep.maximize: a fusion is measured by {FIGURE} alone")
    for parameter in space.parameters:
        if parameter.key not in _KEYS or (parameter.key == "weight") != (parameter.task is not None):
            raise UserError(
                f"config sweep.space: {parameter.key}: a fusion has weight (with each_task: true), up and form "
                f"({', '.join(Form)})"
            )
    nothing = torch.zeros(1, len(job.tasks))
    for point in space.probes():
        weights = torch.tensor([float(point.get(f"weight.{t}") or 0.0) for t in job.tasks])
        try:
            fuse(nothing, nothing[:, 0], weights, float(point.get("up") or 0.0), str(point.get("form", Form.PRODUCT)))
        except ValueError as error:
            raise UserError(f"config sweep.space: {error}") from None


def equal_weights(space: Space) -> dict[str, Any]:
    """What the best is compared with, as the first point: a product of all probabilities, without P(UP)."""
    wanted: dict[str, Any] = {"weight": 1.0, "up": 0.0, "form": str(Form.PRODUCT)}
    return {p.name: wanted[p.key] for p in space.parameters if p.contains(wanted[p.key])}


def run_fusion(study: optuna.Study, trial: optuna.Trial, space: Space, job: FusionJob, scores: SplitScores) -> None:
    """One trial: milliseconds."""
    params = space.suggest(trial)
    try:
        found = job.by_user(scores, params)
    except ValueError as error:
        fail(study, study._storage.get_trial(trial._trial_id), str(error), 0)
        return
    found = found[~np.isnan(found)]
    if not len(found):
        reason = "no known user of the validation split has anything of worth"
        fail(study, study._storage.get_trial(trial._trial_id), reason, 0)
        return
    trial.set_user_attr("auc", {FIGURE: [float(found.mean())]})
    study.tell(trial, float(found.mean()), TrialState.COMPLETE)


def confirm(job: FusionJob, params: Mapping[str, Any], folder: Path) -> str:
    """The best weights beside equal ones without P(UP), once on the test split.

    Args:
        job: of the study.
        params: of the best trial.
        folder: of the study, for ``confirm.json``.

    Returns:
        A line that tells it.
    """
    scores = job.scores("test")
    best, default = job.by_user(scores, params), job.by_user(scores, {})
    listed = ~np.isnan(best)
    gain = paired(best[listed].tolist(), default[listed].tolist())
    figures = {f"test/{FIGURE}/default": float(np.nanmean(default)), f"test/{FIGURE}/best": float(np.nanmean(best))}
    figures |= {"gain": gain.mean, "low": gain.low, "high": gain.high, "users": gain.seeds}
    write_json(folder / "confirm.json", figures)
    return (
        f"test {FIGURE}: best {figures[f'test/{FIGURE}/best']:.4f}, equal weights without P(UP) "
        f"{figures[f'test/{FIGURE}/default']:.4f}; gain {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], "
        f"95 % over {gain.seeds:,} users with something to find"
    )


def write_best_fusion(job: FusionJob, params: Mapping[str, Any], said: str, path: Path) -> None:
    """The weights as YAML."""
    weights = {t: float(params.get(f"weight.{t}", 1.0)) for t in job.tasks}
    fusion = {"form": str(params.get("form", Form.PRODUCT)), "weights": weights, "up": float(params.get("up", 0.0))}
    text = yaml.safe_dump({"run": str(job.run), "fusion": fusion}, sort_keys=False)
    write_text(path, f"# {said}\n{text}")
