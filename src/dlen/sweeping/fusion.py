"""Trials of ``sweep=fusion``: search weights of the ranking score on a finished run's predictions, without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import yaml
from numpy.typing import NDArray
from optuna.trial import TrialState
from torch import Tensor

from dlen.comparing.statistics import paired
from dlen.data.sources.feed import Feed
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.files import write_json, write_text
from dlen.metrics.by_user import NDCG_AT, graded_ndcg
from dlen.models.model import Model
from dlen.ranking.fusion import Form, Fusion, Score, values_of, worth
from dlen.ranking.scoring import calibrate, load_model, score, score_pairs
from dlen.ranking.sessions import Behaviour, session_users, simulate
from dlen.schema import Schema
from dlen.sweeping.space import Space
from dlen.sweeping.study import fail_started
from dlen.training.configs import build
from dlen.training.stores import open_run

NDCG, STAY, VIEWS = f"ndcg@{NDCG_AT}", "stay_time", "page_views"
FIGURES = (NDCG, STAY, VIEWS)
_KEYS = ("weight", "up", "form")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Audience:
    """Users with items to rank, and a measure of how a ranking serves each of them.

    Attributes:
        log_p: (N, T) log-probabilities of the tasks.
        log_states: (N, S) of the hidden states, or None.
        measure: maps (N,) scores to the (U,) metric of each user; nan for a user without information.
    """

    log_p: Tensor
    log_states: Tensor | None
    measure: Callable[[Tensor], Floats]


@dataclass(frozen=True)
class FusionJob:
    """What all trials of a fusion study share, as plain values.

    Attributes:
        run: folder of the finished run.
        tasks: tasks of its data.
        values: value of each task.
        figure: metric, one of ``FIGURES``.
        sessions: settings of the sessions, for stay time and page views.
        calibrate: calibrate the probabilities on the validation rows first.
    """

    run: str
    tasks: list[str]
    values: list[float]
    figure: str
    sessions: dict[str, Any]
    calibrate: bool

    def audience(self, split: str, trust: Sequence[str]) -> Audience:
        """Users on which the trials are measured (``validation``) or the best one is (``test``): other rows or users.

        Args:
            split: ``validation`` or ``test``.
            trust: packages, in addition to dlen, whose classes the run's config may name.

        Raises:
            UserError: the data name no user, or have no truth for sessions.
        """
        config, store = open_run(Path(self.run), trust)
        model = load_model(Path(self.run), config, store)
        if self.figure == NDCG:
            return self._lists(model, store, split, config.loader.eval_batch_size)
        source = build(config.data, "data")
        if not isinstance(source, Feed) or source.positions:
            raise UserError(
                f"config sweep.maximize: {self.figure} needs a run on the simulated feed, without data.positions; "
                f"for other data, use {NDCG}"
            )
        return self._feed_sessions(model, store, source, split == "validation")

    def _lists(self, model: Model, store: Store, split: str, batch_size: int) -> Audience:
        """The logged rows of each known user as a list, measured by NDCG: by the worth of what happened."""
        logged = score(model, store.split(split), batch_size)
        if logged.users is None:
            raise UserError(f"{self.run}: the data have no user field, so {NDCG} cannot rank the rows of each user")
        known = logged.known
        gains, users = worth(logged.labels, self.values)[known], logged.users[known]

        def measure(scores: Tensor) -> Floats:
            scores = scores.clamp(min=torch.finfo(scores.dtype).min)  # where nothing has weight, all scores tie
            return graded_ndcg(scores, gains, users).numpy()

        log_states = None if logged.log_states is None else logged.log_states[known]
        return Audience(self._scaled(logged.log_p, model, store)[known], log_states, measure)

    def _feed_sessions(self, model: Model, store: Store, source: Feed, searching: bool) -> Audience:
        """Simulated users with known truth, measured by seconds or page views per session."""
        settings = self.sessions
        users = session_users(source.users, settings["users"], settings["seed"], searching)
        log_p, log_states = score_pairs(model, source, users, settings["hour"])
        truth, behaviour = source.truth(users, settings["hour"]), Behaviour(**settings["behaviour"])
        seed = settings["seed"] + (1 << 32) * searching

        def measure(scores: Tensor) -> Floats:
            ranked = scores.reshape(truth.up.shape).float().numpy()
            outcome = simulate(ranked, truth, settings["sessions"], behaviour, seed)
            return (outcome.seconds if self.figure == STAY else outcome.views) / outcome.sessions

        return Audience(self._scaled(log_p, model, store), log_states, measure)

    def _scaled(self, log_p: Tensor, model: Model, store: Store) -> Tensor:
        return calibrate(score(model, store.split("validation")), store.schema)(log_p) if self.calibrate else log_p

    def fusion(self, params: Mapping[str, Any]) -> Fusion:
        """The fusion at a point. A weight that is not searched is 1, and an exponent of P(UP) is 0."""
        weights = {task: float(params.get(f"weight.{task}", 1.0)) for task in self.tasks}
        form, up = str(params.get("form", Form.PRODUCT)), float(params.get("up", 0.0))
        return Fusion(form, weights, up, calibrate=self.calibrate)

    def by_user(self, audience: Audience, params: Mapping[str, Any]) -> Floats:
        """(U,) metric of each user under the settings of a point."""
        fusion = self.fusion(params)
        fused = Score(fusion, fusion.for_tasks(self.tasks, [False] * len(self.tasks)))
        return audience.measure(fused(audience.log_p, audience.log_states))


def make_job(options: Mapping[str, Any], schema: Schema, objectives: Mapping[str, str]) -> FusionJob:
    """Build a job from a finished run and the settings by which its score is measured.

    Args:
        options: config of ``sweep``.
        objectives: direction of each metric.

    Raises:
        UserError: a setting is wrong.
    """
    if schema.regressions:
        name = schema.tasks[schema.regressions[0]].name
        raise UserError(f"config sweep.run: what a list is worth is a sum of events, and {name} is a regression")
    try:
        worths = values_of(options["values"], schema.task_names, [t.dislike for t in schema.tasks])
    except ValueError as error:
        raise UserError(f"config sweep.values: {error}") from None
    if len(objectives) != 1 or next(iter(objectives.items())) not in [(f, "maximize") for f in FIGURES]:
        raise UserError(f"config sweep.maximize: a fusion needs exactly one of {', '.join(FIGURES)}")
    (figure,), sessions = objectives, dict(options["sessions"] or {})
    if figure != NDCG and not sessions:
        raise UserError(f"config sweep.sessions: {figure} is measured in sessions; set them as in sweeps/fusion.yaml")
    try:
        sessions["behaviour"] = asdict(Behaviour(**(sessions.get("behaviour") or {})))
    except (TypeError, ValueError) as error:
        raise UserError(f"config sweep.sessions.behaviour: {error}") from None
    run = str(Path(options["run"]).absolute())
    return FusionJob(run, schema.task_names, worths, figure, sessions, options["calibrate"])


def check_fusion(space: Space, job: FusionJob) -> None:
    """Check that only settings of a fusion are searched and that every point can be computed.

    Raises:
        UserError: a parameter or point is invalid.
    """
    for parameter in space.parameters:
        if parameter.key not in _KEYS or (parameter.key == "weight") != (parameter.task is not None):
            raise UserError(
                f"config sweep.space: {parameter.key} is not a setting of a fusion; search weight (with each_task: "
                f"true), up or form ({', '.join(Form)})"
            )
    nothing = torch.zeros(1, len(job.tasks))
    for point in space.probes():
        try:
            fusion = job.fusion({name: 0.0 if value is None else value for name, value in point.items()})
            Score(fusion, fusion.for_tasks(job.tasks, [False] * len(job.tasks)))(nothing, nothing[:, :1])
        except ValueError as error:
            raise UserError(f"config sweep.space: {error}") from None


def equal_weights(space: Space) -> dict[str, Any]:
    """The baseline and first point: a product of all probabilities with equal weights, without P(UP)."""
    wanted: dict[str, Any] = {"weight": 1.0, "up": 0.0, "form": str(Form.PRODUCT)}
    return {p.name: wanted[p.key] for p in space.parameters if p.contains(wanted[p.key])}


def run_fusion(study: optuna.Study, trial: optuna.Trial, space: Space, job: FusionJob, audience: Audience) -> None:
    """Run one trial. Takes milliseconds, or about a second with sessions."""
    params = space.suggest(trial)
    try:
        by_user = job.by_user(audience, params)
    except ValueError as error:
        fail_started(study, trial, str(error), 0)
        return
    by_user = by_user[~np.isnan(by_user)]
    if not len(by_user):
        fail_started(study, trial, "no known user of the validation split has a row of any worth", 0)
        return
    trial.set_user_attr("auc", {job.figure: [float(by_user.mean())]})
    study.tell(trial, float(by_user.mean()), TrialState.COMPLETE)


def confirm(job: FusionJob, params: Mapping[str, Any], folder: Path, trust: Sequence[str]) -> str:
    """Compare the best weights with equal ones without P(UP), once, on the test split or on users outside the search.

    Args:
        params: parameters of the best trial.
        folder: folder of the study, for ``confirm.json``.
        trust: packages, in addition to dlen, whose classes the run's config may name.

    Returns:
        A line that reports the result.
    """
    audience = job.audience("test", trust)
    best, default = job.by_user(audience, params), job.by_user(audience, {})
    defined = ~np.isnan(best)
    gain = paired(best[defined].tolist(), default[defined].tolist())
    key = f"test/{job.figure}"
    figures = {f"{key}/default": float(np.nanmean(default)), f"{key}/best": float(np.nanmean(best))}
    figures |= {"gain": gain.mean, "low": gain.low, "high": gain.high, "users": gain.seeds}
    write_json(folder / "confirm.json", figures)
    population = "users with a row of any worth" if job.figure == NDCG else "users outside the search"
    return (
        f"test {job.figure}: best {figures[f'{key}/best']:.4f}, equal weights without P(UP) "
        f"{figures[f'{key}/default']:.4f}; gain {gain.mean:+.4f} {gain.interval}, "
        f"95 % over {gain.seeds:,} {population}"
    )


def write_best_fusion(job: FusionJob, params: Mapping[str, Any], origin: str, path: Path) -> None:
    """Write the weights as YAML, in the format of predict.py's ``fusion``."""
    text = yaml.safe_dump({"run": job.run, "fusion": asdict(job.fusion(params))}, sort_keys=False)
    write_text(path, f"# {origin}\n{text}")
