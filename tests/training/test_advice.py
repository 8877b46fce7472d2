"""Advice: when a line is printed, and what it names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from dlen.data.store import Store
from dlen.nn.id_dropout import IdDropout
from dlen.schema import Schema
from dlen.targets import Targets
from dlen.training.advice import base_rate_warnings, unknown_id_warnings, unseen_sequence_warnings
from tests.helpers import WITH_SEQUENCES, make_schema

SCHEMA = make_schema()
NONE = {f.name: 0.0 for f in SCHEMA.fields if f.vocab_size}


def store_with(train: dict[str, float], later: dict[str, float]) -> Store:
    unknown = {"train": NONE | train, "validation": NONE | later, "test": NONE | later}
    return cast(Store, SimpleNamespace(schema=SCHEMA, unknown=unknown))


def dropout(k: float, schema: Schema = SCHEMA, **fields: float) -> IdDropout:
    return IdDropout(schema, torch.ones(schema.num_embeddings), k=k, fields=fields)


@pytest.mark.parametrize(
    ("train", "later", "k", "lines"),
    [
        ({}, {"item": 0.72}, 0.0, 1),
        ({}, {"item": 0.72}, 3.0, 0),  # trained by id dropout
        ({"item": 0.01}, {"item": 0.72}, 0.0, 0),  # trained by rare ids
        ({}, {}, 0.0, 0),
        ({}, {"item": 0.1, "tags": 0.2}, 0.0, 2),
    ],
)
def test_an_unknown_id_that_nothing_trains(
    train: dict[str, float], later: dict[str, float], k: float, lines: int
) -> None:
    found = unknown_id_warnings(store_with(train, later), dropout(k))
    assert len(found) == lines
    assert all(any(field in line for line in found) for field in later if lines)


def test_a_field_without_dropout_of_its_own() -> None:
    (line,) = unknown_id_warnings(store_with({}, {"item": 0.3, "user": 0.3}), dropout(3.0, item=0.0))
    assert "30.0% of the validation values of item are unknown" in line


def metrics(**changes: float) -> dict[str, Any]:
    common = {f"test/{m}/{t}": 0.9 for m in ("ne", "logloss", "calibration") for t in SCHEMA.task_names}
    return (
        common | {f"val/ne/{t}": 0.9 for t in SCHEMA.task_names} | {k.replace("__", "/"): v for k, v in changes.items()}
    )


@pytest.mark.parametrize(
    ("found", "later", "k", "cause"),
    [
        (metrics(test__ne__t1=5.6), {"item": 0.72}, 0.0, "72% of the test values of item are new"),
        (metrics(test__ne__t1=1.2, test__calibration__t1=2.0), {}, 3.0, "2.00 times the observed positives"),
        (metrics(test__ne__t1=1.2, val__ne__t1=1.1), {}, 3.0, "training has overfitted"),
        (metrics(test__ne__t1=1.2), {}, 3.0, "few positives"),
    ],
)
def test_worse_than_the_base_rate_with_the_likely_cause(
    found: dict[str, Any], later: dict[str, float], k: float, cause: str
) -> None:
    (line,) = base_rate_warnings(found, store_with({}, later), Targets(SCHEMA), dropout(k))
    assert line.startswith("t1: logloss 0.9000 on the test split is worse than always predicting its positive rate")
    assert cause in line


def test_nothing_is_said_of_good_figures_and_undefined_ones() -> None:
    found = metrics() | {"test/ne/t2": None}
    assert base_rate_warnings(found, store_with({}, {"item": 0.7}), Targets(SCHEMA), dropout(0.0)) == []


def test_a_baseline_says_which_sequences_it_does_not_see() -> None:
    store = cast(Store, SimpleNamespace(schema=make_schema(fields=WITH_SEQUENCES)))
    assert unseen_sequence_warnings(store, "LightGBM") == [
        "LightGBM does not see the sequences watched, searches; networks do"
    ]
    assert unseen_sequence_warnings(store_with({}, {}), "LightGBM") == []
