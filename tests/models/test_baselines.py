"""Baselines: rates against slow loops, no row's own label in its inputs, and predictions of the libraries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import lightgbm
import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from dlen.batch import Batch
from dlen.models import LightGBM, Logistic
from dlen.models.baseline import Baseline
from dlen.models.examples import Examples, Rows
from dlen.models.rates import FoldSums, RateEncoder
from dlen.schema import Field, Kind, Pooling, Schema, Task, TaskKind
from dlen.targets import Targets
from dlen.training.baseline import examples_of
from tests.helpers import FIELDS, make_batch, make_schema

SMOOTHING, FOLDS, SEED = 3.0, 4, 7
FUNNEL = (Task("click", 0.5), Task("buy", 0.5, observed_where="click"), Task("cart", 0.3, "click", train_on="all"))
MODELS: dict[str, Callable[[Schema], Baseline]] = {
    "lightgbm": lambda schema: LightGBM(
        schema, rounds=8, min_data_in_leaf=5, learning_rate=0.3, min_sum_hessian_in_leaf=1.0
    ),
    "logistic": lambda schema: Logistic(schema, l2=[10.0, 1.0]),
}


def rows_of(schema: Schema, *batches: Batch) -> Rows:
    targets = Targets(schema)

    def rows() -> Iterator[Examples]:
        for batch in batches:
            yield examples_of(batch, targets)

    return rows


def learnable(schema: Schema, rows: int, seed: int) -> Batch:
    """Random rows whose labels depend on the user, the item and a number."""
    batch, rng = make_batch(schema, rows, seed), np.random.default_rng(seed)
    logit = 0.7 * (batch.ids[:, 0].numpy() % 4) - 0.3 * (batch.ids[:, 1].numpy() % 5) + batch.numeric[:, 0].numpy()
    drawn = rng.random((rows, len(schema.tasks))) < expit(logit)[:, None]
    return replace(batch, labels=torch.tensor(drawn, dtype=torch.float32))


def log_odds(p: float) -> float:
    return math.log(p / (1 - p))


def slow_inputs(schema: Schema, batch: Batch, examples: Examples, fold: Tensor, out_of: bool) -> list[list[float]]:
    """The inputs of every row by loops; with ``out_of``, each from the rows of the other folds."""
    ids, lengths = batch.ids.tolist(), batch.bag_lengths.tolist()
    bags, weights = (
        batch.bag_ids.split(batch.bag_lengths.flatten().tolist()),
        batch.bag_weights.split(batch.bag_lengths.flatten().tolist()),
    )
    values = [[bags[m * len(batch) + b].tolist() for m in range(len(lengths))] for b in range(len(batch))]

    def of(found: Callable[[int], int], b: int) -> list[float]:
        """T log-odds and the log count of an id, where ``found`` counts the id in a row."""
        others = [r for r in range(len(batch)) if not out_of or fold[r] != fold[b]]
        result = []
        for t in range(len(schema.tasks)):
            trained = [r for r in others if examples.mask[r, t]]
            prior = sum(float(examples.labels[r, t]) for r in trained) / len(trained)
            positives = sum(found(r) * float(examples.labels[r, t]) for r in trained)
            result.append(log_odds((positives + SMOOTHING * prior) / (sum(map(found, trained)) + SMOOTHING)))
        scale = FOLDS / (FOLDS - 1) if out_of else 1.0
        return [*result, math.log1p(scale * sum(map(found, others)))]

    inputs = []
    for b in range(len(batch)):
        row: list[float] = []
        for column, value in enumerate(ids[b]):
            row += of(lambda r, value=value, column=column: int(ids[r][column] == value), b)  # type: ignore[misc]
        totals = []
        for m, field in enumerate(schema.of_kind(Kind.IDS)):
            own, w = values[b][m], weights[m * len(batch) + b].tolist()
            each = [of(lambda r, v=v, m=m: values[r][m].count(v), b) for v in own]  # type: ignore[misc]
            if own:
                row += (np.array(w) @ np.array(each) / sum(w)).tolist()
            else:
                row += [*of(lambda r: 0, b)[:-1], 0.0]
            row.append(float(len(own)))
            totals += [sum(w)] if field.pooling is Pooling.SUM else []
        inputs.append([*row, *totals, *batch.numeric[b].tolist()])
    return inputs


@pytest.mark.parametrize("tasks", [make_schema().tasks, FUNNEL], ids=["independent", "funnel"])
def test_rates_are_those_of_a_slow_loop(tasks: tuple[Task, ...]) -> None:
    schema = make_schema(tasks)
    whole = make_batch(schema, 40)
    (examples,) = rows_of(schema, whole)()
    encoder = RateEncoder(schema, SMOOTHING, FOLDS)
    sums = encoder.fit(rows_of(schema, whole), SEED)
    fold = sums.fold_of(0, len(whole))
    assert set(fold.tolist()) == set(range(FOLDS))
    found = encoder.out_of_fold(whole, 0, sums)
    assert found.shape == (40, encoder.width)
    np.testing.assert_allclose(found, slow_inputs(schema, whole, examples, fold, True), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoder(whole), slow_inputs(schema, whole, examples, fold, False), rtol=1e-4, atol=1e-5)


def test_rates_are_the_same_in_batches_of_any_size() -> None:
    schema = make_schema()
    batches = [make_batch(schema, n, seed) for seed, n in enumerate((5, 20, 1))]
    ids, numeric, labels, truth = (
        torch.cat([getattr(b, name) for b in batches]) for name in ("ids", "numeric", "labels", "truth")
    )
    whole = Batch(ids, numeric, *_joined_bags(batches), labels, truth)
    one, many = RateEncoder(schema, SMOOTHING, FOLDS), RateEncoder(schema, SMOOTHING, FOLDS)
    of_one, of_many = one.fit(rows_of(schema, whole), SEED), many.fit(rows_of(schema, *batches), SEED)
    assert torch.equal(one.table, many.table)
    assert torch.equal(of_one.by_fold, of_many.by_fold)
    parts = [many.out_of_fold(b, first, of_many) for b, first in zip(batches, (0, 5, 25), strict=True)]
    torch.testing.assert_close(torch.cat(parts), one.out_of_fold(whole, 0, of_one))


def _joined_bags(batches: list[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    """Field-major lengths, ids and weights of several batches as one."""
    ids, weights = [], []
    for m in range(len(batches[0].bag_lengths)):
        for batch in batches:
            ends = [0, *batch.bag_lengths.sum(1).cumsum(0).tolist()]
            ids.append(batch.bag_ids[ends[m] : ends[m + 1]])
            weights.append(batch.bag_weights[ends[m] : ends[m + 1]])
    return torch.cat([b.bag_lengths for b in batches], 1), torch.cat(ids), torch.cat(weights)


@pytest.mark.parametrize("tasks", [make_schema().tasks, FUNNEL], ids=["independent", "funnel"])
@pytest.mark.parametrize("row", range(0, 30, 3))
def test_no_label_enters_its_own_rows_inputs(tasks: tuple[Task, ...], row: int) -> None:
    schema = make_schema(tasks)
    batch = make_batch(schema, 30)

    def inputs(labels: Tensor) -> Tensor:
        changed, encoder = replace(batch, labels=labels), RateEncoder(schema, SMOOTHING, FOLDS)
        return encoder.out_of_fold(changed, 0, encoder.fit(rows_of(schema, changed), SEED))

    before = inputs(batch.labels)
    for task in range(len(tasks)):
        labels = batch.labels.clone()
        labels[row, task] = 1 - labels[row, task]
        after = inputs(labels)
        assert torch.equal(after[row], before[row])
        assert not torch.equal(after, before) or schema.tasks[task].observed_where is not None


def test_ids_that_training_did_not_see_have_the_prior() -> None:
    schema = make_schema(fields=(Field("user", Kind.ID, "user", 9), Field("tags", Kind.IDS, "item", 4)))
    batch = make_batch(replace(schema, fields=(replace(schema.fields[0], vocab_size=5), schema.fields[1])), 50)
    batch = replace(batch, bag_ids=batch.bag_ids + 4)  # as the smaller vocabulary shifts the ids of the second field
    encoder = RateEncoder(schema, SMOOTHING, FOLDS)
    encoder.fit(rows_of(schema, batch), SEED)
    rates = batch.labels.mean(0)
    wanted = torch.cat([(rates / (1 - rates)).log(), torch.zeros(1)])
    torch.testing.assert_close(encoder.table[5:9], wanted.expand(4, -1))


def test_folds_are_of_about_the_same_size_and_of_the_seed() -> None:
    one, same, other = (FoldSums(1, 1, 5, seed).fold_of(1000, 50_000) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one != other).double().mean() == pytest.approx(0.8, abs=0.02)
    assert torch.bincount(one).double().div(50_000).sub(0.2).abs().max() < 0.01
    assert torch.equal(FoldSums(1, 1, 5, 1).fold_of(1300, 10), one[300:310])


@pytest.mark.parametrize("name", MODELS)
def test_it_learns_and_a_checkpoint_gives_the_same_predictions(name: str, tmp_path: Any) -> None:
    schema = make_schema()
    train, validation, test = (learnable(schema, n, seed) for seed, n in enumerate((1200, 300, 300)))
    model = MODELS[name](schema)
    model.fit(rows_of(schema, train), rows_of(schema, validation), SEED)
    predictions = model(test)
    assert predictions.log_p.dtype == torch.float32
    torch.testing.assert_close(predictions.log_p.exp() + predictions.log_q.exp(), torch.ones(300, 3))
    assert predictions.log_score is predictions.log_p
    for task in range(3):
        positive = test.labels[:, task] > 0
        assert predictions.log_p[positive, task].mean() > predictions.log_p[~positive, task].mean() + 0.1
    torch.save(model.state_dict(), tmp_path / "model.ckpt")
    again = MODELS[name](schema)
    again.load_state_dict(torch.load(tmp_path / "model.ckpt", weights_only=True))
    assert torch.equal(again(test).log_p, predictions.log_p)
    assert again.size() == model.size()
    third = MODELS[name](schema)
    third.fit(rows_of(schema, train), rows_of(schema, validation), SEED)
    assert all(torch.equal(a, b) for a, b in zip(third.state_dict().values(), model.state_dict().values(), strict=True))


def test_lightgbm_without_a_task_of_0_and_1() -> None:
    schema = make_schema((Task("play", 0.5, kind=TaskKind.REGRESSION),))
    model = LightGBM(schema, rounds=8, min_data_in_leaf=5)
    train = learnable(schema, 400, 0)
    model.fit(rows_of(schema, train), rows_of(schema, learnable(schema, 100, 1)), SEED)
    counts = train.ids[:, 0].bincount(minlength=schema.num_embeddings)[schema.rows("user")]
    torch.testing.assert_close(model.encoder.table[schema.rows("user"), -1], counts.float().log1p())
    test = learnable(schema, 50, 9)
    values = model(test).values
    assert values is not None
    text = bytes(model.state_dict()["trees0"].numpy()).decode()
    own = lightgbm.Booster(model_str=text).predict(model.inputs(test).numpy())
    np.testing.assert_allclose(values.expected[:, 0], own, rtol=1e-5)


def test_lightgbm_gives_the_boosters_own_probabilities() -> None:
    schema = make_schema()
    model = LightGBM(schema, rounds=20, min_data_in_leaf=5, min_sum_hessian_in_leaf=1.0)
    model.fit(rows_of(schema, learnable(schema, 900, 0)), rows_of(schema, learnable(schema, 300, 1)), SEED)
    test = learnable(schema, 200, 9)
    inputs, found = model.inputs(test).numpy(), model(test).log_p.exp()
    assert inputs.shape == (200, model.encoder.width + 2)
    np.testing.assert_array_equal(inputs[:, -2], test.ids[:, 0] - schema.offsets["user"])
    np.testing.assert_array_equal(inputs[:, -1], test.ids[:, 1] - schema.offsets["item"])
    for task in range(3):
        text = bytes(model.state_dict()[f"trees{task}"].numpy()).decode()
        own = lightgbm.Booster(model_str=text).predict(inputs)
        np.testing.assert_allclose(found[:, task], own, rtol=1e-5)


def test_large_fields_are_no_categories() -> None:
    schema = make_schema()
    assert LightGBM(schema, categories=7).categorical == [0]
    assert LightGBM(schema, categories=0).categorical == []
    model = MODELS["lightgbm"](make_schema(fields=FIELDS[1:3]))  # no single-valued id
    train, validation = (rows_of(model.schema, make_batch(model.schema, 200, seed)) for seed in (0, 1))
    model.fit(train, validation, SEED)
    assert model(make_batch(model.schema, 5)).log_p.shape == (5, 3)


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_do_not_train_a_task_do_not_count(name: str) -> None:
    """Labels of a purchase without a click change nothing, in training or validation."""
    schema = make_schema(FUNNEL)
    found = []
    for fill in (0.0, 1.0):
        parts = []
        for seed, n in enumerate((600, 200)):
            batch = learnable(schema, n, seed)
            unseen = batch.labels[:, :1] == 0
            batch.labels[:, 1:] = torch.where(unseen, fill, batch.labels[:, 1:])
            parts.append(rows_of(schema, batch))
        model = MODELS[name](schema)
        model.fit(parts[0], parts[1], SEED)
        found.append(model(learnable(schema, 100, 5)).log_p)
    assert torch.equal(found[0], found[1])


def test_logistic_is_scikit_learns_on_a_dense_matrix() -> None:
    schema = make_schema(make_schema().tasks[:1])
    model = Logistic(schema, l2=[2.0], iterations=2000)
    train, validation, test = (learnable(schema, n, seed) for seed, n in enumerate((400, 100, 50)))
    sums = RateEncoder(schema, 20.0, 5).fit(rows_of(schema, train), SEED)
    model.fit(rows_of(schema, train), rows_of(schema, validation), SEED)

    def dense(batch: Batch, numbers: Tensor) -> Any:
        one_hot = np.zeros((len(batch), schema.num_embeddings))
        bags = iter(zip(batch.bag_ids.tolist(), batch.bag_weights.tolist(), strict=True))
        for m, field in enumerate(schema.of_kind(Kind.IDS)):
            for b, length in enumerate(batch.bag_lengths[m].tolist()):
                values = [next(bags) for _ in range(length)]
                total = sum(w for _, w in values) if field.pooling is Pooling.MEAN else 1.0
                for value, weight in values:
                    one_hot[b, value] += weight / total
        one_hot[np.arange(len(batch))[:, None], batch.ids.numpy()] = 1
        return np.concatenate([one_hot, numbers.numpy()], 1)

    own = model.encoder.out_of_fold(train, 0, sums)
    mean, scale = own.mean(0), own.std(0, correction=0)
    reference = LogisticRegression(C=0.5, max_iter=5000, tol=1e-8)
    reference.fit(dense(train, (own - mean) / scale), train.labels[:, 0].numpy())
    wanted = reference.predict_proba(dense(test, (model.encoder(test) - mean) / scale))[:, 1]
    np.testing.assert_allclose(model(test).log_p.exp()[:, 0], wanted, atol=2e-3)


@pytest.mark.parametrize("name", MODELS)
def test_a_label_of_weight_0_is_left_out(name: str) -> None:
    """Its value changes nothing, in training or validation."""
    schema, found = make_schema(), []
    for flipped in (False, True):
        parts = []
        for seed, n in enumerate((600, 200)):
            batch = learnable(schema, n, seed)
            weights = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed)) + 0.5
            weights[::3, 2] = 0
            labels = batch.labels.clone()
            if flipped:
                labels[::3, 1] = 1 - labels[::3, 1]
            parts.append(rows_of(schema, replace(batch, labels=labels, weights=weights)))
        model = MODELS[name](schema)
        model.fit(parts[0], parts[1], SEED)
        found.append(model(learnable(schema, 100, 5)).log_p)
    assert torch.equal(found[0], found[1])


def test_weights_are_those_of_scikit_learn_and_of_lightgbm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the libraries are given: each task its own weights, of the rows that train it."""
    schema = make_schema(FUNNEL[:2])
    batches = [learnable(schema, n, seed) for seed, n in enumerate((300, 100))]
    batches = [replace(b, weights=torch.rand(len(b), 3) + 0.1) for b in batches]
    wanted = [(b.weights[:, :1] * b.weights[:, 1:]).numpy() for b in batches]
    used = [[np.ones(len(b), bool), b.labels[:, 0].numpy() == 1] for b in batches]
    seen: list[Any] = []
    fit, train = LogisticRegression.fit, lightgbm.train

    def spied_fit(self: Any, inputs: Any, labels: Any, weights: Any = None) -> Any:
        seen.append(weights)
        return fit(self, inputs, labels, weights)

    def spied_train(settings: Any, rows: Any, rounds: int, **kwargs: Any) -> Any:
        seen.append((rows.get_weight(), kwargs["valid_sets"][0].get_weight()))
        return train(settings, rows, rounds, **kwargs)

    monkeypatch.setattr(LogisticRegression, "fit", spied_fit)
    monkeypatch.setattr(lightgbm, "train", spied_train)
    Logistic(schema, l2=[1.0]).fit(rows_of(schema, batches[0]), rows_of(schema, batches[1]), SEED)
    for task, weights in enumerate(seen):
        np.testing.assert_array_equal(weights, wanted[0][used[0][task], task])
    seen.clear()
    MODELS["lightgbm"](schema).fit(rows_of(schema, batches[0]), rows_of(schema, batches[1]), SEED)
    for task, parts in enumerate(seen):
        for part in range(2):
            np.testing.assert_array_equal(parts[part], wanted[part][used[part][task], task])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda s: LightGBM(s, num_leaves=1), "num_leaves must be a whole number from 2 to 131072, got 1"),
        (lambda s: LightGBM(s, learning_rate=0.0), "learning_rate must be a number above 0 and at most 1, got 0.0"),
        (lambda s: LightGBM(s, feature_fraction=math.nan), "feature_fraction must be a number above 0 and at most 1"),
        (lambda s: LightGBM(s, smoothing=-1.0), "smoothing must be a number above 0"),
        (lambda s: LightGBM(s, folds=1), "folds must be a whole number from 2 to 100, got 1"),
        (lambda s: LightGBM(s, rounds=True), "rounds must be a whole number from 1"),
        (lambda s: Logistic(s, l2=[]), "l2 must be a list of numbers above 0"),
        (lambda s: Logistic(s, l2=[1.0, -1.0]), "l2 must be a number above 0"),
        (lambda s: Logistic(s, iterations=0), "iterations must be a whole number from 1"),
    ],
)
def test_wrong_settings(make: Callable[[Schema], Baseline], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        make(make_schema())


@pytest.mark.parametrize("kind", [LightGBM, Logistic])
def test_a_library_that_is_missing_is_told(kind: type[Baseline], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "library", "no_such_library")
    with pytest.raises(ValueError, match=r"pip install 'dlen\[baselines\]'"):
        kind(make_schema())
