"""Every metric of a pass over a small funnel and a small feed, against scikit-learn and numpy."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from dlen.batch import Batch
from dlen.errors import UserError
from dlen.metrics import ExactAUC, HistogramAUC
from dlen.metrics.functional import auc_weight
from dlen.models.heads import Ranking
from dlen.models.predictions import Latent, Predictions
from dlen.schema import Field, Kind, Schema, Task
from dlen.training.measures import Figures, Measures
from tests.helpers import make_batch, make_schema

ROWS = 300
ERRORS = {"exact": 1e-6, "histogram": 1e-4}
TRUTH = ("click", "up", "like", "prefers")


def funnel(train_on: str = "observed") -> Schema:
    cvr = Task("cvr", 0.1, observed_where="ctr", train_on=train_on, joint="ctcvr")
    return make_schema((Task("ctr", 0.3), cvr))


def feed(truth: tuple[str, ...] = TRUTH) -> Schema:
    return make_schema((Task("click", 0.3), Task("like", 0.1)), truth=truth)


def probabilities(columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.02, 0.98, (ROWS, columns))


def plain(p: np.ndarray) -> Predictions:
    log_p = torch.tensor(np.log(p), dtype=torch.float32)
    return Predictions(log_p, torch.tensor(np.log1p(-p), dtype=torch.float32), log_p)


def labelled(schema: Schema, p: np.ndarray, seed: int = 7) -> Batch:
    """A batch whose labels follow the probabilities and whose truth has a drawn hidden state."""
    batch, rng = make_batch(schema, ROWS, seed), np.random.default_rng(seed)
    batch.labels = torch.tensor((rng.random(p.shape) < p).astype(np.float32))
    if "prefers" in schema.truth:
        batch.truth[:, schema.truth.index("prefers")] = torch.tensor(rng.integers(0, 2, ROWS)).float()
    return batch


def parts(predictions: Predictions, batch: Batch) -> list[tuple[Predictions, Batch]]:
    """The same rows in two uneven pieces; most fields that the metrics do not use stay whole."""
    cut = []
    for rows in (slice(0, 110), slice(110, ROWS)):
        latent = predictions.latent
        if latent is not None:
            latent = Latent(*(getattr(latent, f.name)[rows] for f in fields(latent)[:7]))  # the tensors
        log_p, log_q, score = predictions.log_p[rows], predictions.log_q[rows], predictions.log_score[rows]
        labels, truth = batch.labels[rows], batch.truth[rows]
        piece = Batch(
            batch.ids[rows], batch.numeric, batch.bag_lengths, batch.bag_ids, batch.bag_weights, labels, truth
        )
        cut.append((Predictions(log_p, log_q, score, latent), piece))
    return cut


def measure(measures: Measures, predictions: Predictions, batch: Batch) -> Figures:
    for piece in parts(predictions, batch):
        measures.update(*piece)
    return measures.compute()


@pytest.mark.parametrize("auc", list(ERRORS))
def test_figures_of_a_funnel(auc: str) -> None:
    schema, p = funnel(), probabilities(2, 1)
    batch = labelled(schema, p)
    figures = measure(Measures(schema, auc), plain(p), batch)
    click, convert = batch.labels.numpy().T
    clicked = click == 1
    wanted = {
        "ctr": (click, p[:, 0]),
        "cvr": (convert[clicked], p[clicked, 1]),
        "ctcvr": (click * convert, p[:, 0] * p[:, 1]),
    }
    for name, (y, score) in wanted.items():
        assert figures.values[f"auc/{name}"] == pytest.approx(roc_auc_score(y, score), abs=ERRORS[auc])
        assert figures.values[f"logloss/{name}"] == pytest.approx(log_loss(y, score), rel=1e-5)
        assert figures.values[f"calibration/{name}"] == pytest.approx(score.sum() / y.sum(), rel=1e-5)
        assert 0 < figures.values[f"ece/{name}"] < 0.3
        rate_alone = log_loss(y, np.full(len(y), y.mean()))
        assert figures.values[f"ne/{name}"] == pytest.approx(log_loss(y, score) / rate_alone, rel=1e-5)
    observed = log_loss(click, p[:, 0]) + log_loss(convert[clicked], p[clicked, 1]) * clicked.mean()
    assert figures.values["logloss/labels"] == pytest.approx(observed, rel=1e-5)
    mean = (figures.values["auc/ctr"] + figures.values["auc/cvr"]) / 2
    assert figures.values["auc/mean"] == pytest.approx(mean)
    weights = [auc_weight(y.sum(), len(y) - y.sum()) for y, _ in (wanted["ctr"], wanted["cvr"])]
    weighted = np.average([figures.values["auc/ctr"], figures.values["auc/cvr"]], weights=weights)
    assert figures.values["auc/weighted"] == pytest.approx(weighted)
    keys = {f"{k}/{name}" for k in ("auc", "logloss", "ne", "calibration", "ece") for name in wanted}
    keys |= {"auc/mean", "auc/weighted", "logloss/labels"}
    assert set(figures.values) == keys
    assert figures.undefined == {}


def test_ranking_within_users_counts_observed_rows_alone() -> None:
    user = Field("user", Kind.ID, "user", 40)
    schema = replace(funnel(), fields=(Field("item", Kind.ID, "item", 5), user), user="user")
    p = probabilities(2, 4)
    batch = labelled(schema, p)
    users = torch.arange(ROWS) % 40
    batch.ids = torch.stack([torch.zeros_like(users), users + schema.offsets["user"]], 1)
    figures = measure(Measures(schema, "exact", by_user=True), plain(p), batch)
    click, convert = batch.labels.numpy().T
    total, rows, gains, alone = 0.0, 0, [], 0
    for number in range(1, 40):  # 0 is unknown: many users, or none
        mine = (users.numpy() == number) & (click == 1)
        if 0 < convert[mine].sum() < mine.sum():
            total += mine.sum() * roc_auc_score(convert[mine], p[mine, 1])
            rows += mine.sum()
        else:
            alone += 1
        if convert[mine].sum():
            gains.append(ndcg_score(convert[mine][None], p[mine, 1][None], k=10) if mine.sum() > 1 else 1.0)
    assert figures.values["gauc/cvr"] == pytest.approx(total / rows, abs=1e-6)
    assert figures.values["ndcg@10/cvr"] == pytest.approx(np.mean(gains), abs=1e-6)
    assert figures.values["users_without_auc/cvr"] == alone / 39
    assert "gauc/ctcvr" in figures.values
    assert "gauc/cvr" not in measure(Measures(schema, "exact"), plain(p), batch).values


def test_auto_is_exact_for_small_splits() -> None:
    assert isinstance(Measures(funnel(), "auto", rows=1 << 18).auc, ExactAUC)
    assert isinstance(Measures(funnel(), "auto", rows=(1 << 18) + 1).auc, HistogramAUC)


def latent_predictions(ranking: Ranking) -> tuple[Predictions, dict[str, np.ndarray]]:
    """A hidden state and conditional probabilities, combined by equations (1) and (4)."""
    up, given, leak = probabilities(1, 2), probabilities(2, 3), 0.3 * probabilities(2, 4)
    total, joint = given * up + leak * (1 - up), given * up
    log_up, log_not_up, log_joint = (torch.tensor(np.log(x), dtype=torch.float32) for x in (up, 1 - up, joint))
    log_given, log_leak, log_not_given, log_not_leak = (
        torch.tensor(np.log(x), dtype=torch.float32) for x in (given, leak, 1 - given, 1 - leak)
    )
    predictions = plain(total)
    latent = Latent(log_up[:, 0], log_not_up[:, 0], log_given, log_leak, log_not_given, log_not_leak, log_joint)
    score = predictions.log_p if ranking is Ranking.TOTAL else torch.tensor(np.log(joint), dtype=torch.float32)
    known = {"joint": joint, "total": total, "up": up[:, 0], "given": given, "leak": leak}
    return Predictions(predictions.log_p, predictions.log_q, score, latent), known


@pytest.mark.parametrize("auc", list(ERRORS))
@pytest.mark.parametrize("ranking", list(Ranking))
def test_figures_of_a_feed_with_truth(auc: str, ranking: Ranking) -> None:
    schema = feed()
    predictions, known = latent_predictions(ranking)
    batch = labelled(schema, known["total"])
    values = measure(Measures(schema, auc, ranking=ranking), predictions, batch).values
    other = "total" if ranking is Ranking.JOINT else "joint"
    labels, truth = batch.labels.numpy(), dict(zip(TRUTH, batch.truth.numpy().T, strict=True))
    error = ERRORS[auc]
    for task, name in enumerate(("click", "like")):
        y = labels[:, task]
        assert values[f"auc/{name}"] == pytest.approx(roc_auc_score(y, known[ranking.value][:, task]), abs=error)
        assert values[f"auc_{other}/{name}"] == pytest.approx(roc_auc_score(y, known[other][:, task]), abs=error)
        assert values[f"logloss/{name}"] == pytest.approx(log_loss(y, known["total"][:, task]), rel=1e-5)
        assert values[f"oracle/{name}"] == pytest.approx(roc_auc_score(y, truth[name]), abs=error)
    any_positive = labels.max(1)
    hidden = {"up_any": any_positive, "up_truth": truth["prefers"]}
    for name, y in hidden.items():
        assert values[f"auc/{name}"] == pytest.approx(roc_auc_score(y, known["up"]), abs=error)
        assert values[f"oracle/{name}"] == pytest.approx(roc_auc_score(y, truth["up"]), abs=error)
    each = [np.where(labels == 1, known[k], 1 - known[k]).prod(1) for k in ("given", "leak")]
    likelihood = known["up"] * each[0] + (1 - known["up"]) * each[1]
    assert values["logloss/labels"] == pytest.approx(-np.log(likelihood).mean(), rel=1e-5)
    correlation = np.corrcoef(known["up"], truth["up"])[0, 1]
    assert values["corr/up_truth"] == pytest.approx(correlation, abs=1e-4)


def test_a_log_without_truth_has_only_the_necessary_sign() -> None:
    schema = feed(truth=())
    predictions, known = latent_predictions(Ranking.JOINT)
    batch = labelled(schema, known["total"])
    values = measure(Measures(schema, "exact", ranking=Ranking.JOINT), predictions, batch).values
    assert values["auc/up_any"] == pytest.approx(roc_auc_score(batch.labels.amax(1), known["up"]), abs=1e-6)
    assert not {"auc/up_truth", "corr/up_truth", "oracle/click"} & set(values)


def test_figures_after_reset_hold_the_new_rows_alone() -> None:
    schema = feed()
    predictions, known = latent_predictions(Ranking.JOINT)
    batch, later = labelled(schema, known["total"]), labelled(schema, known["total"], seed=8)
    measures = Measures(schema, "exact", ranking=Ranking.JOINT, base={"click": 0.5})
    first = measure(measures, predictions, batch).values
    measures.reset()
    second = measure(measures, predictions, later).values
    alone = measure(Measures(schema, "exact", ranking=Ranking.JOINT, base={"click": 0.5}), predictions, later).values
    assert second == alone
    assert all(first[key] != second[key] for key in ("auc/click", "oracle/click", "logloss/like", "corr/up_truth"))


def test_gain_beside_a_base_run_with_one_figure() -> None:
    schema, p = funnel(), probabilities(2, 1)
    batch = labelled(schema, p)
    figures = measure(Measures(schema, "exact", base={"ctr": 0.6, "ctcvr": 0.7}), plain(p), batch)
    y = batch.labels.numpy()
    click = roc_auc_score(y[:, 0], p[:, 0]) - 0.6
    assert figures.values["gain/ctr"] == pytest.approx(click, abs=1e-6)
    assert figures.values["gain/ctcvr"] == pytest.approx(roc_auc_score(y.prod(1), p.prod(1)) - 0.7, abs=1e-6)
    assert figures.values["gain/mean"] == pytest.approx(click, abs=1e-6)  # over the tasks that have one
    assert "gain/cvr" not in figures.values
    assert figures.undefined == {"gain/cvr": "the base run has no such metric"}


@pytest.mark.slow
@pytest.mark.parametrize(("label", "reason"), [(0.0, "no positives"), (1.0, "no negatives")])
@pytest.mark.parametrize("auc", list(ERRORS))
def test_one_class_has_a_reason_and_no_value(label: float, reason: str, auc: str) -> None:
    schema, p = feed(truth=()), probabilities(2, 5)
    batch = labelled(schema, p)
    batch.labels[:, 1] = label
    figures = measure(Measures(schema, auc), plain(p), batch)
    assert "auc/like" not in figures.values
    assert figures.undefined["auc/like"] == f"{reason} among {ROWS} observed rows"
    assert figures.values["auc/mean"] == figures.values["auc/click"]
    assert figures.values["logloss/like"] == pytest.approx(log_loss(batch.labels[:, 1], p[:, 1], labels=[0, 1]), 1e-5)
    assert ("calibration/like" in figures.undefined) == (label == 0)


def test_no_clicks_leave_conversion_without_rows() -> None:
    schema, p = funnel(), probabilities(2, 6)
    batch = labelled(schema, p)
    batch.labels[:] = 0
    figures = measure(Measures(schema), plain(p), batch)
    for key in ("auc/cvr", "logloss/cvr", "ne/cvr", "calibration/cvr", "ece/cvr"):
        assert key not in figures.values
        assert figures.undefined[key] == "no rows among 0 observed rows"


def test_conversion_trained_on_all_rows_has_no_logloss_of_its_own() -> None:
    schema, p = funnel("all"), probabilities(2, 1)
    batch = labelled(schema, p)
    figures = measure(Measures(schema, "exact"), plain(p), batch)
    for key in ("logloss/cvr", "ne/cvr", "calibration/cvr", "ece/cvr"):
        assert key not in figures.values
        assert "ctcvr" in figures.undefined[key]
    click, convert = batch.labels.numpy().T
    clicked = click == 1
    assert figures.values["auc/cvr"] == pytest.approx(roc_auc_score(convert[clicked], p[clicked, 1]), abs=1e-6)
    assert figures.values["logloss/ctcvr"] == pytest.approx(log_loss(click * convert, p[:, 1]), rel=1e-5)


@pytest.mark.parametrize("auc", ["histogram", "exact"])
def test_diverged_predictions_are_told(auc: str) -> None:
    schema = funnel()
    p = probabilities(2, 0)
    batch = labelled(schema, p)
    predictions = plain(p)
    predictions.log_p[3] = predictions.log_q[3] = predictions.log_score[3] = torch.nan
    with pytest.raises(UserError, match=r"the predictions of ctr.* are NaN: training has diverged"):
        measure(Measures(schema, auc), predictions, batch)
