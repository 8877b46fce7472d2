"""Feed sessions of a comparison: its models rank on the simulator's truth, compared with random and oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from dlen.comparing.plan import Plan
from dlen.comparing.statistics import Difference, paired
from dlen.data.sources.feed import Feed
from dlen.data.truth import Truth
from dlen.errors import UserError
from dlen.files import read_yaml
from dlen.overrides import compose_train
from dlen.progress import Stage
from dlen.ranking.fusion import Fusion, Score
from dlen.ranking.scoring import load_model, make_scores, score_pairs
from dlen.ranking.sessions import Behaviour, Outcome, session_users, simulate
from dlen.training.configs import build

Array = NDArray[Any]
_RESAMPLES = 500  # bootstrap resamples of the users
WITH_UP, TUNED = "{} with P(UP)", "{}, tuned"
RANDOM, ORACLE = "random", "oracle"


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """Settings of ``experiment.sessions``.

    Attributes:
        users: number of users who have sessions.
        sessions: sessions per user.
        hour: hour of the day.
        seed: seed of users, candidates and moods.
        fusion: fusion of the tasks' probabilities, without P(UP).
        up: exponent of P(UP) in policies that use it.
        floor: in policies that use P(UP), items below this value are ranked last.
        tuned: fusion that ``sweep=fusion`` found on other users, by model.
        behaviour: how sessions continue and end.
        detest: further values of ``behaviour.detest`` at which policies are compared.
    """

    users: int
    sessions: int
    hour: int
    seed: int
    fusion: Fusion
    up: float
    floor: float
    tuned: dict[str, Fusion]
    behaviour: Behaviour
    detest: list[float]


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One ranking policy.

    Attributes:
        name: name of the policy.
        levels: mean over seeds, by measure.
        changes: relative change against the base policy, by measure; for the share of detested impressions, the
            difference. Empty for the base itself.
    """

    name: str
    levels: dict[str, float]
    changes: dict[str, Difference]


@dataclass(frozen=True, slots=True)
class Sessions:
    """All policies on the same users and random numbers.

    Attributes:
        title: title of the experiment.
        base: the policy that the others are compared with.
        tasks: tasks whose interactions are counted.
        seeds: seeds of the models.
        plan: settings.
        rows: one row per policy.
        sensitivity: change of the stay time against the base, by value of ``detest`` and policy.
        paper: the paper's own changes, in percent.
    """

    title: str
    base: str
    tasks: list[str]
    seeds: list[int]
    plan: SessionPlan
    rows: list[PolicyRow]
    sensitivity: dict[float, dict[str, Difference]]
    paper: dict[str, Any]


def parse_sessions(node: DictConfig) -> SessionPlan:
    """Parse the settings. Errors name the config key.

    Raises:
        UserError: a setting is wrong.
    """
    settings: Any = OmegaConf.to_container(node, resolve=True)
    for key, kind in (("fusion", Fusion), ("behaviour", Behaviour)):
        try:
            settings[key] = kind(**(settings.get(key) or {}))
        except (TypeError, ValueError) as error:
            raise UserError(f"config experiment.sessions.{key}: {error}") from None
    settings["tuned"] = {model: _best(model, str(path)) for model, path in (settings.get("tuned") or {}).items()}
    try:
        for detest in settings["detest"]:
            _with_detest(settings["behaviour"], detest)
        plan = SessionPlan(**settings)
        replace(plan.fusion, up=plan.up, floor=plan.floor)
        return plan
    except (TypeError, ValueError) as error:
        raise UserError(f"config experiment.sessions: {error}") from None


def _best(model: str, path: str) -> Fusion:
    """Read the fusion in a study's ``best.yaml``."""
    where = f"config experiment.sessions.tuned.{model}: {path}"
    if not Path(path).is_file():
        raise UserError(f"{where}: no such file; give the best.yaml that sweep=fusion wrote")
    try:
        return Fusion(**read_yaml(Path(path))["fusion"])
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: is not a best.yaml of sweep=fusion ({str(error).splitlines()[0]})") from None


def run_sessions(plan: Plan, settings: SessionPlan, paper: Mapping[str, Any]) -> Sessions:
    """Rank with every trained model and simulate the sessions.

    Args:
        plan: plan whose runs are done, all on one simulated feed.
        paper: the paper's own metrics.

    Raises:
        UserError: the data are not a simulated feed, or a weight names an unknown task.
    """
    first = next(iter(plan.runs.values()))
    source = build(compose_train(first.overrides).data, "data")
    if not isinstance(source, Feed) or source.positions:
        raise UserError(
            "config experiment.sessions: sessions need the simulated feed (data=feed without data.positions)"
        )
    users = session_users(source.users, settings.users, settings.seed)
    settings = replace(settings, users=len(users))
    truth = source.truth(users, settings.hour)
    tasks = list(source.tasks)
    tuned = {model: (TUNED.format(model), fusion) for model, fusion in settings.tuned.items()}
    unknown = set(tuned) - {model for model, _ in plan.runs}
    if unknown:
        raise UserError(f"config experiment.sessions.tuned: {unknown.pop()} is not among the compared models")
    with_up = replace(settings.fusion, up=settings.up, floor=settings.floor)
    scores: dict[str, list[Array | None]] = {RANDOM: [None]}
    with Stage(f"scoring {len(users)} users with {len(plan.runs)} models", len(plan.runs), "models") as stage:
        for (name, _), run in plan.runs.items():
            model = load_model(run.folder, compose_train(run.overrides), run.store)
            log_p, log_states = score_pairs(model, source, users, settings.hour)
            policies = [(name, settings.fusion)]
            policies += [] if log_states is None else [(WITH_UP.format(name), with_up)]
            policies += [tuned[name]] if name in tuned else []
            fusions = [fusion for _, fusion in policies]
            fused = make_scores(fusions, model, run.store, "experiment.sessions.fusion")
            for (policy, _), score in zip(policies, fused, strict=True):
                scores.setdefault(policy, []).append(score(log_p, log_states).numpy())
            stage.advance(1)
    oracle = Score(with_up, with_up.for_tasks(tasks, truth.dislikes.tolist()))
    scores[ORACLE] = [_oracle(truth, oracle)]
    matrices = {
        name: [s if s is None else s.reshape(truth.up.shape) for s in of_seeds] for name, of_seeds in scores.items()
    }
    outcomes = _simulate_all(matrices, truth, settings, settings.behaviour, settings.sessions)
    rows = [_row(name, outcomes, plan.base, tasks, len(plan.seeds)) for name in outcomes]
    sensitivity: dict[float, dict[str, Difference]] = {}
    num_sessions = max(settings.sessions // 5, 1)
    for detest in settings.detest:
        at_detest = _simulate_all(matrices, truth, settings, _with_detest(settings.behaviour, detest), num_sessions)
        sensitivity[detest] = {
            name: _row(name, at_detest, plan.base, tasks, len(plan.seeds)).changes["stay time"]
            for name in at_detest
            if name != plan.base
        }
    return Sessions(plan.title, plan.base, tasks, plan.seeds, settings, rows, sensitivity, dict(paper))


def _with_detest(behaviour: Behaviour, detest: float) -> Behaviour:
    return replace(behaviour, detest=float(detest))


def _oracle(truth: Truth, score: Score) -> Array:
    """The same score, with P(UP), computed from the true probabilities."""
    log_p = torch.from_numpy(truth.probabilities()).flatten(0, 1).log()
    scores: Array = score(log_p, torch.from_numpy(truth.up).flatten().log()[:, None]).numpy()
    return scores


def _simulate_all(
    scores: Mapping[str, Sequence[Array | None]],
    truth: Truth,
    settings: SessionPlan,
    behaviour: Behaviour,
    sessions: int,
) -> dict[str, list[Outcome]]:
    """Outcomes of each policy, one per seed of its model."""
    number = sum(map(len, scores.values()))
    with Stage(f"{len(truth.up) * sessions:,} sessions, leaving by {behaviour.detest:g}", number, "rankings") as stage:
        outcomes: dict[str, list[Outcome]] = {}
        for name, of_seeds in scores.items():
            for matrix in of_seeds:
                outcomes.setdefault(name, []).append(simulate(matrix, truth, sessions, behaviour, settings.seed))
                stage.advance(1)
    return outcomes


def _measures(outcome: Outcome, weights: Array, tasks: Sequence[str]) -> dict[str, Array]:
    """(R,) values of each measure under R weightings (R, U) of the users."""
    views, sessions = weights @ outcome.views, weights @ outcome.sessions
    measures = {f"{task} rate": (weights @ outcome.happened[:, t]) / views for t, task in enumerate(tasks)}
    measures |= {"stay time": (weights @ outcome.seconds) / sessions, "page views": views / sessions}
    return measures | {"detested": (weights @ outcome.detested) / views}


def _row(
    name: str, outcomes: Mapping[str, Sequence[Outcome]], base: str, tasks: Sequence[str], seeds: int
) -> PolicyRow:
    """Levels and changes of a policy. The interval combines seed variance and the sampling of users."""
    users = len(outcomes[base][0].views)
    rng = np.random.default_rng(0)
    resampled = rng.multinomial(users, np.full(users, 1 / users), _RESAMPLES).astype(np.float64)
    weights = np.concatenate([np.ones((1, users)), resampled])

    def of_seeds(policy: str) -> list[dict[str, Array]]:
        measured = [_measures(outcome, weights, tasks) for outcome in outcomes[policy]]
        return measured if len(measured) == seeds else measured * seeds  # random and oracle have no seed

    figures, reference = of_seeds(name), of_seeds(base)
    levels = {m: float(np.mean([f[m][0] for f in figures])) for m in figures[0]}
    if name == base:
        return PolicyRow(name, levels, {})
    changes = {}
    for measure in figures[0]:
        pairs = zip(figures, reference, strict=True)
        each = [o[measure] - r[measure] if measure == "detested" else o[measure] / r[measure] - 1 for o, r in pairs]
        variance = float(np.mean(each, axis=0)[1:].var(ddof=1))
        changes[measure] = paired([float(e[0]) for e in each], [0.0] * seeds, variance)
    return PolicyRow(name, levels, changes)
