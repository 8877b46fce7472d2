"""The feed simulator: the generated data have the requested rates, preference and leak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dlen.data.prepare import prepare
from dlen.data.sources.feed import Feed
from dlen.data.store import Store
from tests.data.helpers import arrays, refusal, whole

RATES = {"click": 0.25, "like": 0.1, "share": 0.02}
Floats = np.ndarray[Any, np.dtype[np.float64]]


class World:
    """All rows of a store, as numpy arrays."""

    def __init__(self, store: Store) -> None:
        batches = [whole(store.split(name)) for name in ("train", "validation", "test")]
        self.sizes = [len(b) for b in batches]
        self.labels = np.concatenate([b.labels.numpy() for b in batches]).astype(np.float64)
        self.truth = np.concatenate([b.truth.numpy() for b in batches]).astype(np.float64)
        self.prefers, self.up, self.chance = self.truth[:, 0], self.truth[:, 1], self.truth[:, 2:]
        self.store = store


def make(folder: Path, **settings: Any) -> World:
    asked: dict[str, Any] = {"rows": 150_000, "users": 3000, "items": 800, "rates": RATES, "leak": 0.2} | settings
    return World(prepare(Feed(**asked), folder))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(tmp_path_factory.mktemp("feed"))


def test_realised_rates_are_those_asked_for(world: World) -> None:
    np.testing.assert_allclose(world.labels.mean(0), list(RATES.values()), rtol=0.08)


def test_schema_rates_are_those_of_the_training_rows(world: World) -> None:
    rates = whole(world.store.split("train")).labels.double().mean(0).tolist()
    assert [t.rate for t in world.store.schema.tasks] == pytest.approx(rates, rel=1e-9)
    assert world.store.schema.task_names == list(RATES)


def test_preference_is_as_asked(world: World) -> None:
    assert world.up.mean() == pytest.approx(0.35, abs=0.02)


def test_hidden_preference_is_drawn_from_up(world: World) -> None:
    sigma = np.sqrt((world.up * (1 - world.up)).sum())
    assert abs(world.prefers.sum() - world.up.sum()) < 5 * sigma
    for low in np.arange(0, 1, 0.2):
        part = (world.up >= low) & (world.up < low + 0.2)
        sigma = np.sqrt((world.up * (1 - world.up))[part].sum())
        assert part.sum() > 1000
        assert abs(world.prefers[part].sum() - world.up[part].sum()) < 5 * sigma


def test_true_probabilities_are_calibrated(world: World) -> None:
    sigma = np.sqrt((world.chance * (1 - world.chance)).sum(0))
    assert (np.abs((world.labels - world.chance).sum(0)) < 5 * sigma).all()
    for task in range(len(RATES)):
        chance = world.chance[:, task]
        for part in np.array_split(np.argsort(chance), 10):
            sigma = np.sqrt((chance[part] * (1 - chance[part])).sum())
            assert abs(world.labels[part, task].sum() - chance[part].sum()) < 5 * sigma


@pytest.mark.parametrize("leak", [0.05, 0.5])
def test_leak_is_the_ratio_of_rates(tmp_path: Path, leak: float) -> None:
    world = make(tmp_path, leak=leak, rates={"click": 0.15})
    shown, leaked = (world.labels[world.prefers == state, 0].mean() for state in (1, 0))
    assert leaked / shown == pytest.approx(leak, rel=0.25)


def test_each_task_has_its_own_leak(tmp_path: Path) -> None:
    leaks = {"click": 0.05, "like": 0.4, "share": 0.15}
    world = make(tmp_path, leak=leaks, rates={"click": 0.2, "like": 0.2, "share": 0.1})
    for task, leak in enumerate(leaks.values()):
        shown, leaked = (world.labels[world.prefers == state, task].mean() for state in (1, 0))
        assert leaked / shown == pytest.approx(leak, rel=0.25)


def test_a_leak_for_each_user_is_spread_around_the_asked_one(tmp_path: Path) -> None:
    world = make(tmp_path, leak_spread=1.5, users=40, rates={"click": 0.2})
    users = np.concatenate([whole(world.store.split(n)).ids[:, 4].numpy() for n in ("train", "validation", "test")])
    ratios = []
    for user in np.unique(users):
        shown, leaked = (world.labels[(users == user) & (world.prefers == s), 0] for s in (1, 0))
        if min(len(shown), len(leaked)) > 300 and shown.sum() > 50:
            ratios.append(leaked.mean() / shown.mean())
    assert len(ratios) > 20
    assert np.median(ratios) == pytest.approx(0.2, abs=0.1)
    assert np.std(np.log(np.maximum(ratios, 0.005))) > 0.6  # with a single leak it is below 0.3


def test_dislike_happens_to_those_who_do_not_prefer(tmp_path: Path) -> None:
    world = make(tmp_path, hate=0.03, leak=0.2)
    assert world.store.schema.task_names == [*RATES, "hate"]
    assert [t.dislike for t in world.store.schema.tasks] == [False, False, False, True]
    prefers, not_ = (world.labels[world.prefers == state, 3].mean() for state in (1, 0))
    assert world.labels[:, 3].mean() == pytest.approx(0.03, rel=0.1)
    assert prefers / not_ == pytest.approx(0.2, rel=0.3)
    sigma = np.sqrt((world.chance * (1 - world.chance)).sum(0))
    assert (np.abs((world.labels - world.chance).sum(0)) < 5 * sigma).all()


def test_a_world_without_hidden_state(tmp_path: Path) -> None:
    """Given user and item the tasks are independent: the truth has no preference, and labels follow P(t)."""
    store = prepare(Feed(rows=60_000, users=500, items=100, preference=1.0, own_match=1.5), tmp_path)
    assert store.schema.truth == tuple(store.schema.task_names)
    batch = whole(store.split("train"))
    labels, chance = batch.labels.numpy().astype(np.float64), batch.truth.numpy().astype(np.float64)
    sigma = np.sqrt((chance * (1 - chance)).sum(0))
    assert (np.abs((labels - chance).sum(0)) < 5 * sigma).all()
    residual = (labels - chance) / np.sqrt(chance * (1 - chance))
    joint = residual.T @ residual / len(residual)
    assert np.abs(joint - np.diag(np.diag(joint))).max() < 5 / np.sqrt(len(residual))


def test_exposures(tmp_path: Path) -> None:
    """Uniform exposure shows all items alike; matched exposure shows preferred items before the threshold is set."""
    shown = {}
    for exposure in ("popular", "uniform", "matched"):
        store = prepare(Feed(rows=60_000, users=500, items=100, exposure=exposure), tmp_path)
        batch = whole(store.split("train"))
        counts = np.bincount(batch.ids[:, 0].numpy())[1:]
        shown[exposure] = (counts.std() / counts.mean(), float(batch.truth[:, 1].mean()))
    assert shown["uniform"][0] < 0.1
    assert shown["popular"][0] > 0.5
    assert shown["matched"][1] == pytest.approx(0.35, abs=0.03)  # the requested rate holds among the shown items


def test_interactions_are_independent_given_preference_and_user(world: World) -> None:
    """P(t) = P(t | UP) (P(UP) + leak P(not UP)), so P(t | UP) from the truth columns must fit the rows that prefer."""
    given_up = world.chance / (world.up + 0.2 * (1 - world.up))[:, None]
    for state, factor in ((1, 1.0), (0, 0.2)):
        chosen = world.prefers == state
        chance = factor * given_up[chosen]
        sigma = np.sqrt((chance * (1 - chance)).sum(0))
        assert (np.abs((world.labels[chosen] - chance).sum(0)) < 5 * sigma).all()


def test_splits_have_their_shares(world: World) -> None:
    assert sum(world.sizes) == 150_000
    np.testing.assert_allclose(np.array(world.sizes) / 150_000, [0.8, 0.1, 0.1], atol=0.005)


def test_oracle_stands_beside_the_data(world: World) -> None:
    batch, noted = whole(world.store.split("test")), world.store.content["notes"]["oracle_auc_on_test"]
    assert list(noted) == list(RATES)
    for column, auc in enumerate(noted.values()):
        wanted = roc_auc_score(batch.labels[:, column], batch.truth[:, 2 + column])
        assert auc == pytest.approx(wanted, abs=1e-4)


def test_several_chunks_leave_no_seam(tmp_path: Path) -> None:
    """Rows just over one chunk: all are present and the second chunk is not a copy of the first."""
    world = make(tmp_path, rows=2**17 + 5000)
    assert sum(world.sizes) == 2**17 + 5000
    assert len(np.unique(world.up)) > 0.9 * (2**17 + 5000)


def test_every_id_lies_in_its_field(world: World) -> None:
    fields = world.store.schema.fields
    starts = np.cumsum([0, *(f.vocab_size for f in fields)])
    ids = whole(world.store.split("train")).ids.numpy()
    for column, f in enumerate(fields):
        code = ids[:, column] - starts[column]
        assert code.min() >= 1
        assert code.max() < f.vocab_size


def test_same_seed_same_bytes_other_seed_other_data(tmp_path: Path) -> None:
    def drawn(folder: str, seed: int) -> dict[str, bytes]:
        return arrays(make(tmp_path / folder, rows=3000, seed=seed).store)

    first, again, other = drawn("a", 1), drawn("b", 1), drawn("c", 2)
    assert first == again
    assert first.keys() == other.keys()
    assert first["train/labels.bin"] != other["train/labels.bin"]
    assert first["train/ids.bin"] != other["train/ids.bin"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"preference": 0.0}, "preference"),
        ({"preference": 1.1}, "preference"),
        ({"preference": 1.0, "hate": 0.2}, "hate"),
        ({"leak": {"click": 0.1}}, "leak"),
        ({"leak": dict.fromkeys(("click", "like", "share", "follow"), 0.1) | {"comment": 1.5}}, "leak.comment"),
        ({"leak_spread": -1}, "leak_spread"),
        ({"hate": -0.1}, "hate"),
        ({"own_match": -1}, "own_match"),
        ({"exposure": "machted"}, "exposure"),
        ({"rates": {"hate": 0.1}}, "data.hate"),
        ({"preference": -1}, "preference"),
        ({"leak": 1.5}, "leak"),
        ({"leak": 0}, "leak"),
        ({"rows": 0}, "rows"),
        ({"users": 0}, "users"),
        ({"items": -3}, "items"),
        ({"validation": 0.0}, "validation"),
        ({"test": 1.0}, "test"),
        ({"validation": 0.6, "test": 0.6}, "validation"),
        ({"rates": {"click": 0.9}}, "rates.click"),
        ({"rates": {"click": 0.0}}, "rates.click"),
        ({"rates": {"click": 0.2, "like": -0.1}}, "rates.like"),
        ({"rates": {}}, "rates"),
        ({"positions": 2.5}, "positions"),
        ({"positions": -1}, "positions"),
        ({"position_bias": -0.1}, "position_bias"),
        ({"rates": {"up": 0.1}}, "rates.up"),
        ({"follows": {"nothing": "click"}}, "follows.nothing"),
        ({"follows": {"like": "like"}}, "follows.like"),
        ({"follows": {"like": "share", "share": "click"}}, "follows.like"),
        ({"follows": {"click": "like"}}, "rates.click"),
        ({"follows": {"like": "click"}, "leak": {"click": 0.1, "like": 0.1}}, "leak"),
        ({"play_time": -1}, "play_time"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    assert named in refusal(lambda: prepare(Feed(**{"rows": 1000, **settings}), tmp_path))
    assert not (tmp_path / "feed").exists()


def test_attention_falls_with_the_place(tmp_path: Path) -> None:
    paged = make(tmp_path, positions=5, position_bias=0.7)
    schema = paged.store.schema
    assert schema.position == "position"
    column = [f.name for f in schema.fields].index("position")
    start = schema.offsets["position"] + 1
    ids = np.concatenate([whole(paged.store.split(n)).ids.numpy() for n in ("train", "validation", "test")])
    place = ids[:, column] - start
    assert set(place) == set(range(5))
    tasks = len(RATES)
    seen, relevance = (1.0 + place) ** -0.7, paged.truth[:, 2 + tasks :]
    np.testing.assert_allclose(paged.truth[:, 2 : 2 + tasks], relevance * seen[:, None], rtol=1e-5)
    assert schema.truth[-tasks:] == tuple(f"relevance/{t}" for t in RATES)
    for k in range(5):
        rows = place == k
        wanted = relevance[rows].mean(0) * (1.0 + k) ** -0.7
        np.testing.assert_allclose(paged.labels[rows].mean(0), wanted, rtol=0.25, atol=2e-3)
    both = paged.labels[:, 0] * paged.labels[:, 1]  # unseen items have no interaction
    assert both[place == 4].mean() > paged.labels[place == 4].mean(0)[:2].prod() * 1.5


def test_popular_items_stand_at_the_top(tmp_path: Path) -> None:
    paged = make(tmp_path, positions=4)
    batch = whole(paged.store.split("train"))
    names = [f.name for f in paged.store.schema.fields]
    item, place = (batch.ids[:, names.index(n)].numpy() for n in ("item", "position"))
    shown = np.bincount(item - item.min())[item - item.min()]
    means = [shown[place == p].mean() for p in sorted(set(place))]
    assert means == sorted(means, reverse=True)


def test_a_feed_without_places_is_the_same_feed_as_ever() -> None:
    assert "positions" not in Feed().settings()
    assert Feed(positions=3).settings()["position_bias"] == 1.0


FOLLOWED: dict[str, Any] = {"rates": {"click": 0.3, "long": 0.2, "like": 0.1}, "follows": {"long": "click"}}


def test_a_task_that_follows_another_never_happens_alone(tmp_path: Path) -> None:
    world = make(tmp_path, **FOLLOWED, leak={"click": 0.4, "like": 0.1})
    click, long, _ = world.labels.T
    assert (long <= click).all()
    np.testing.assert_allclose(world.labels.mean(0), list(FOLLOWED["rates"].values()), rtol=0.08)
    np.testing.assert_allclose(world.chance.mean(0), world.labels.mean(0), rtol=0.05)
    assert [t.name for t in world.store.schema.tasks] == ["click", "long", "like"]


def test_a_task_that_follows_another_tells_nothing_of_the_state_beyond_it(tmp_path: Path) -> None:
    """Among clicks of a user, a long view is as likely with preference as without."""
    world = make(tmp_path, **FOLLOWED, leak={"click": 0.4, "like": 0.1}, habit=0.0, rows=300_000)
    clicked = world.labels[:, 0] == 1
    rates = [world.labels[clicked & (world.prefers == state), 1].mean() for state in (0, 1)]
    assert rates[0] == pytest.approx(rates[1], abs=0.015)


def test_play_times_are_longer_with_preference(tmp_path: Path) -> None:
    world, plain = make(tmp_path / "a", play_time=1.5), make(tmp_path / "b")
    np.testing.assert_array_equal(world.labels, plain.labels)
    assert [(view.name, view.bins) for view in world.store.schema.views] == [("play_time", 20)]
    assert plain.store.schema.views == ()
    parts = [whole(world.store.split(name)).views[:, 0] for name in ("train", "validation", "test")]
    bins = np.concatenate(parts).astype(int)
    edges = np.linspace(-2, 3, 19)
    middle = np.concatenate([[-2.1], (edges[1:] + edges[:-1]) / 2, [3.1]])[bins]
    assert middle[world.prefers == 1].mean() - middle[world.prefers == 0].mean() == pytest.approx(1.5, abs=0.25)
    assert whole(plain.store.split("train")).known_views is None


def test_worlds_without_them_are_the_same_as_ever() -> None:
    assert not {"follows", "play_time"} & set(Feed().settings())
