"""Read the trials of a study: which ones count, which ones are retried, and which ones are best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState


def own_trials(study: optuna.Study) -> list[FrozenTrial]:
    """All trials of a study except surplus ones, which a second worker started beyond the wanted number."""
    return [t for t in study.get_trials(deepcopy=False) if "surplus" not in t.user_attrs]


def retried(trial: FrozenTrial) -> bool:
    """Whether the trial died or was interrupted and another trial has its parameters."""
    return trial.state == TrialState.FAIL and bool(trial.user_attrs.get("retried"))


def used(trials: Sequence[FrozenTrial]) -> list[int]:
    """Numbers of the trials that count towards the wanted number: started or ended, and not retried."""
    return [t.number for t in trials if t.state != TrialState.WAITING and not retried(t)]


def ended(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that are complete, pruned or failed for good."""
    return [t for t in trials if t.state.is_finished() and not retried(t)]


def last_value(trial: FrozenTrial) -> float | None:
    """The last reported value; None before the first report."""
    return None if trial.last_step is None else trial.intermediate_values[trial.last_step]


def params_of(trials: Sequence[FrozenTrial]) -> list[str]:
    """Names of all parameters of the trials."""
    return list(dict.fromkeys(name for t in trials for name in t.params))


def targets_of(trials: Sequence[FrozenTrial]) -> list[str]:
    """Names of all AUCs that the trials recorded."""
    return list(dict.fromkeys(name for t in trials for name in t.user_attrs.get("auc", {})))


def seed_aucs(trial: FrozenTrial, target: str) -> list[float]:
    """Validation AUC of a target for each seed that has one."""
    return [v for v in trial.user_attrs.get("auc", {}).get(target, []) if v is not None]


def best_trial(trials: Sequence[FrozenTrial], objectives: Mapping[str, str]) -> FrozenTrial | None:
    """The best complete trial; with several objectives, the one on the Pareto front with the best mean AUC.

    Args:
        objectives: direction of each metric, by key.
    """
    front = pareto_front(trials, objectives)
    if len(objectives) > 1:
        return max(front, key=mean_auc, default=None)
    return front[0] if front else None


def pareto_front(trials: Sequence[FrozenTrial], objectives: Mapping[str, str]) -> list[FrozenTrial]:
    """Complete trials that no other dominates; the earliest one among equals."""
    signs = [1 if direction == "maximize" else -1 for direction in objectives.values()]
    complete = [(t, [s * v for s, v in zip(signs, t.values, strict=True)]) for t in trials if t.values]
    complete = [(t, values) for t, values in complete if t.state == TrialState.COMPLETE]

    def beaten(values: list[float], number: int) -> bool:
        return any(
            all(o >= v for o, v in zip(other, values, strict=True)) and (other != values or t.number < number)
            for t, other in complete
            if t.number != number
        )

    return [t for t, values in complete if not beaten(values, t.number)]


def mean_auc(trial: FrozenTrial) -> float:
    """Mean AUC over tasks and seeds; minus infinity if unknown."""
    aucs = seed_aucs(trial, "mean")
    return sum(aucs) / len(aucs) if aucs else float("-inf")
