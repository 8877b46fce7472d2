"""Metrics of a pass over binary and regression tasks, and the metric that selects weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from dlen.batch import Batch
from dlen.errors import UserError
from dlen.models import DLEN, MMoE, Ranker
from dlen.models.predictions import Predictions
from dlen.schema import Schema, Task, TaskKind
from dlen.training.measures import Measures
from dlen.training.selection import monitor_mode, monitored
from tests.helpers import make_batch, make_schema

PLAY = Task("play", 0.5, "click", kind=TaskKind.REGRESSION, transform="log1p", mean=3.0, deviation=2.0)
WATCH = Task("watch", 0.5, kind=TaskKind.REGRESSION, mean=-1.0, deviation=0.5)
TASKS = (Task("click", 0.4), PLAY, Task("buy", 0.2, "click", joint="both"), Task("hate", 0.1, dislike=True), WATCH)
SCHEMA = replace(make_schema(TASKS), user="user")
ROWS = 150


def log(schema: Schema = SCHEMA) -> Batch:
    batch, generator = make_batch(schema, ROWS), torch.Generator().manual_seed(1)
    batch.labels[:, schema.regressions] = torch.randn(ROWS, len(schema.regressions), generator=generator)
    batch.labels[torch.rand(batch.labels.shape, generator=generator) < 0.2] = torch.nan
    return batch


@pytest.mark.parametrize("make", [MMoE, DLEN])
def test_binary_metrics_are_those_without_regression_tasks(make: Callable[..., Ranker]) -> None:
    model, batch = make(SCHEMA, embedding_dim=4).eval(), log()
    binary, columns = SCHEMA.binary, torch.tensor([0, 2, 3])
    with torch.no_grad():
        predictions = model(batch)
    found = Measures(SCHEMA, "exact", ranking=model.ranking, by_user=True)
    wanted = Measures(binary, "exact", ranking=model.ranking, by_user=True)
    found.update(predictions, batch)
    wanted.update(predictions.only(columns), replace(batch, labels=batch.labels[:, columns]))
    own = {f"{m}/{t}" for m in ("rmse", "mae", "xauc", "spearman") for t in ("play", "watch")} | {"xauc/mean"}
    values = found.compute().values
    assert {k: v for k, v in values.items() if k not in own} == wanted.compute().values
    assert own <= values.keys()
    assert found.curves().keys() == {"click", "buy", "hate", "both"}


def test_metrics_of_numbers_are_in_their_unit() -> None:
    model, batch = MMoE(SCHEMA, embedding_dim=4).eval(), log()
    with torch.no_grad():
        predictions = model(batch)
    measures = Measures(SCHEMA)
    for rows in (slice(0, 60), slice(60, ROWS)):
        part = Predictions(predictions.log_p[rows], predictions.log_q[rows], predictions.log_score[rows])
        part.values = replace(predictions.values, outputs=predictions.values.outputs[rows])
        measures.update(part, replace(batch, labels=batch.labels[rows], ids=batch.ids[rows]))
    values, labels = measures.compute().values, batch.labels.double().numpy()
    z = predictions.values.expected.double().numpy()
    told = ~np.isnan(labels)
    units = {"play": lambda x: np.sign(2 * x + 3) * np.expm1(abs(2 * x + 3)), "watch": lambda x: 0.5 * x - 1}
    xaucs = []
    for column, (task, used) in enumerate(((1, told[:, 1] & (labels[:, 0] == 1)), (4, told[:, 4]))):
        name = TASKS[task].name
        p, y = units[name](z[used, column]), units[name](labels[used, task])
        assert values[f"rmse/{name}"] == pytest.approx(np.sqrt(np.mean((p - y) ** 2)), rel=1e-5)
        assert values[f"mae/{name}"] == pytest.approx(np.mean(np.abs(p - y)), rel=1e-5)
        assert values[f"spearman/{name}"] == pytest.approx(stats.spearmanr(p, y).statistic, abs=1e-6)
        xaucs.append((stats.kendalltau(p, y).statistic + 1) / 2)
        assert values[f"xauc/{name}"] == pytest.approx(xaucs[-1], abs=1e-6)
    assert values["xauc/mean"] == pytest.approx(np.mean(xaucs), abs=1e-6)


def test_regressions_alone_have_no_other_metrics() -> None:
    schema = make_schema((replace(PLAY, observed_where=None), WATCH))
    model, batch = MMoE(schema, embedding_dim=4).eval(), log(schema)
    measures = Measures(schema)
    measures.update(model(batch), batch)
    figures = measures.compute()
    assert {key.split("/")[0] for key in figures.values} == {"rmse", "mae", "xauc", "spearman"}
    assert not figures.undefined
    assert measures.curves() == {}


def test_a_head_without_numbers_is_told() -> None:
    nothing = torch.zeros(3, 5) - 1
    with pytest.raises(UserError, match="predicts no number for play, watch"):
        Measures(SCHEMA).update(Predictions(nothing, nothing, nothing), make_batch(SCHEMA, 3))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_regression_is_told(value: float) -> None:
    model, batch = MMoE(SCHEMA, embedding_dim=4).eval(), log()
    with torch.no_grad():
        predictions = model(batch)
    predictions.values.outputs[:, 1] = value
    measures = Measures(SCHEMA)
    measures.update(predictions, batch)
    with pytest.raises(UserError, match="the predictions of watch are not finite: training has diverged"):
        measures.compute()


def test_what_can_be_monitored() -> None:
    only = make_schema((WATCH,))
    assert monitored("val/auc/weighted", SCHEMA) == "val/auc/weighted"
    assert monitored("val/auc/weighted", only) == "val/xauc/mean"
    assert monitored("val/rmse/watch", only) == "val/rmse/watch"
    modes = {"val/xauc/mean": "max", "val/spearman/play": "max", "val/rmse/watch": "min", "val/mae/play": "min"}
    for key, mode in modes.items():
        assert monitor_mode(key, SCHEMA) == mode
    for key, schema in (
        ("val/auc/play", SCHEMA),
        ("val/rmse/mean", SCHEMA),
        ("val/xauc/click", SCHEMA),
        ("val/auc/mean", only),
    ):
        with pytest.raises(
            UserError, match=rf"config monitor: '{key}' cannot be monitored; choose one of .*val/xauc/mean"
        ):
            monitor_mode(key, schema)
