"""Advice: warnings about problems in a run's metrics or data, with a remedy for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlen.data.store import Store
from dlen.nn.id_dropout import IdDropout
from dlen.targets import Targets

_MORE_UNKNOWN = 0.05  # excess share of unknown values over the training split
_RATE_SHIFT = 1.5  # ratio of predicted to observed positives


def unknown_id_warnings(store: Store, id_dropout: IdDropout) -> list[str]:
    """One line per field whose unknown id occurs in the validation rows but is never trained."""
    lines = []
    for field, share in store.unknown["validation"].items():
        if share and not store.unknown["train"][field] and not id_dropout.trains(store.schema.rows(field)):
            lines.append(
                f"{share:.1%} of the validation values of {field} are unknown ids, and nothing trains the unknown id: "
                "set id_dropout.k above 0, or a min_count for the field, so that rare ids become unknown"
            )
    return lines


def unseen_sequence_warnings(store: Store, model: str) -> list[str]:
    """One line if the data have sequences, which a baseline does not see."""
    names = list(store.schema.sequences)
    return [f"{model} does not see the sequences {', '.join(names)}; networks do"] if names else []


def base_rate_warnings(
    metrics: Mapping[str, Any], store: Store, targets: Targets, id_dropout: IdDropout | None
) -> list[str]:
    """One line per tested target that is worse than its constant positive rate, with the likely cause.

    Args:
        metrics: content of ``metrics.json``.
        id_dropout: id dropout used in training; None for a baseline, which does not train in steps.
    """
    lines = []
    for name in targets.names:
        entropy = metrics.get(f"test/ne/{name}")
        if entropy is not None and entropy > 1:
            lines.append(
                f"{name}: logloss {metrics[f'test/logloss/{name}']:.4f} on the test split is worse than always "
                f"predicting its positive rate (normalised entropy {entropy:.2f}): "
                f"{_cause(metrics, name, store, id_dropout)}"
            )
    return lines


def _cause(metrics: Mapping[str, Any], name: str, store: Store, id_dropout: IdDropout | None) -> str:
    unknown = {f: s - store.unknown["train"][f] for f, s in store.unknown["test"].items()}
    field = max(unknown, key=lambda f: unknown[f], default=None)
    if field is not None and unknown[field] > _MORE_UNKNOWN and id_dropout and not id_dropout.active:
        share = store.unknown["test"][field]
        return f"{share:.0%} of the test values of {field} are new ids, which nothing trains; set id_dropout.k=3"
    ratio = metrics.get(f"test/calibration/{name}") or 1.0
    validation = metrics.get(f"val/ne/{name}", 0.0)
    if not 1 / _RATE_SHIFT < ratio < _RATE_SHIFT and validation <= 1:
        return (
            f"it predicts {ratio:.2f} times the observed positives although validation was fine, so the positive rate "
            "differs between the splits; the ranking may still be good, but the probabilities are not"
        )
    if validation > 1 and id_dropout is None:
        return "validation was worse as well, so the task has too few positives for this model"
    if validation > 1:
        return (
            "validation was worse as well, so training has overfitted this task: lower optimizer.lr or "
            "trainer.max_epochs, or set monitor=val/logloss/labels"
        )
    return "the split has few positives, or the test rows differ from the validation rows"
