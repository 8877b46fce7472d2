"""DLEN's second hidden state against sums over all four states, and against data drawn from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dlen.models.dlen import joint_loss
from dlen.models.predictions import Latent
from dlen.models.second_state import fit_four_classes, switches, tasks_of_states
from dlen.schema import Schema, Task
from tests.models.test_label_classes import schema_of
from tests.models.test_views import ROWS, head_of, predict

STATES = {"watching": ["t0", "t1", "t4"], "liking": ["t2", "t3", "t4"]}  # t4 needs both
ON = [{0}, {0}, {1}, {1}, {0, 1}]  # states of each task: 0 is watching, 1 is liking


@pytest.fixture(scope="module")
def labels() -> NDArray[np.int64]:
    """(N, 5) labels drawn from four states: P(W) = .4, P(UP | W) = .6, P(UP | not W) = .1, a leak of .1."""
    rng = np.random.default_rng(0)
    watches = rng.random(60_000) < 0.4
    likes = rng.random(60_000) < np.where(watches, 0.6, 0.1)
    columns = []
    for states, p in zip(ON, (0.8, 0.5, 0.4, 0.3, 0.5), strict=True):
        holds = (watches | (0 not in states)) & (likes | (1 not in states))
        columns.append(rng.random(60_000) < p * np.where(holds, 1, 0.1))
    return np.stack(columns, 1).astype(np.int64)


@pytest.fixture(scope="module")
def schema(labels: NDArray[np.int64]) -> Schema:
    return schema_of(labels)


def four_states(latent: Latent, row: int) -> Mapping[tuple[int, int], tuple[float, list[float]]]:
    """P(w, u) and P(t | w, u) of each task by (w, u), from what the state's tensors say of one row."""
    second = latent.second
    assert second is not None
    found = {}
    for w, u in product((0, 1), repeat=2):
        share = float((latent.log_up, latent.log_not_up)[u][row].exp())
        share *= float((second.log_given_up, second.log_given_not_up)[u][w, row].exp())
        found[w, u] = share, second.conditionals[w][u][row].exp().tolist()
    return found


def likelihood(latent: Latent, row: int, labels: Sequence[int], known: Sequence[int]) -> float:
    """P(labels) of one row by a sum over the four states."""
    total = 0.0
    for share, given in four_states(latent, row).values():
        for p, label, counts in zip(given, labels, known, strict=True):
            share *= (p if label else 1 - p) if counts else 1
        total += share
    return total


def test_the_loss_is_the_likelihood_of_all_labels(schema: Schema) -> None:
    _, latent = predict(head_of(schema, states=STATES))
    rng = np.random.default_rng(3)
    labels, known = rng.integers(0, 2, (ROWS, 5)), rng.integers(0, 2, (ROWS, 5))
    wanted = -np.mean([math.log(likelihood(latent, row, labels[row], known[row])) for row in range(ROWS)])
    got = joint_loss(latent, torch.tensor(labels).double(), torch.tensor(known).double())
    assert got.item() == pytest.approx(wanted, rel=1e-9)


def test_a_task_depends_on_its_own_states_alone(schema: Schema) -> None:
    _, latent = predict(head_of(schema, states=STATES))
    for row in range(ROWS):
        found = four_states(latent, row)
        for task, own in enumerate(ON):
            on, off = found[0, 0][1][task], found[1, 1][1][task]
            assert off <= on
            for (w, u), (_, given) in found.items():
                holds = (w == 0 or 0 not in own) and (u == 0 or 1 not in own)
                assert given[task] == (on if holds else off)


def test_each_task_keeps_its_own_probability_and_up_its_meaning(schema: Schema) -> None:
    """Sums over labels and W give equation (1), P(UP) and P(t | UP)."""
    predictions, latent = predict(head_of(schema, states=STATES))
    everything = torch.ones(ROWS, 5, dtype=torch.float64)
    with_up, of_task, of_both = (torch.zeros(ROWS, n, dtype=torch.float64) for n in (1, 5, 5))
    for labels in product((0.0, 1.0), repeat=5):
        rows = torch.tensor(labels, dtype=torch.float64).expand(ROWS, 5)
        up, not_up = (part.exp()[:, None] for part in latent.log_with_labels(rows, everything))
        with_up, of_task, of_both = with_up + up, of_task + rows * (up + not_up), of_both + rows * up
    torch.testing.assert_close(with_up[:, 0], latent.log_up.exp(), rtol=1e-9, atol=0)
    torch.testing.assert_close(of_task, predictions.log_p.exp(), rtol=1e-9, atol=0)
    torch.testing.assert_close(of_both, (latent.log_up[:, None] + latent.log_given_up).exp(), rtol=1e-9, atol=0)


def test_pairs_happen_together_as_all_labels_say(schema: Schema) -> None:
    _, latent = predict(head_of(schema, states=STATES))
    first, second = torch.combinations(torch.arange(5)).unbind(1)
    got = latent.log_both(first, second).exp()
    for row, (a, b) in product(range(ROWS), zip(first.tolist(), second.tolist(), strict=True)):
        known = [int(task in (a, b)) for task in range(5)]
        assert float(got[row, [*zip(first, second, strict=True)].index((a, b))]) == pytest.approx(
            likelihood(latent, row, [1] * 5, known), rel=1e-9
        )


def test_one_state_is_the_case_where_both_are_one(schema: Schema) -> None:
    """With P(UP | W) = 1 and P(UP | not W) = 0 all tasks hang on one state."""
    head = head_of(schema, states=STATES, views="none")
    alone = head_of(schema, views="none")
    alone.towers.load_state_dict(head.towers.state_dict())
    draw = torch.Generator().manual_seed(5)
    c, n, up = (torch.randn(ROWS, size, dtype=torch.float64, generator=draw) for size in (5, 5, 1))
    sure = torch.full_like(up, 40.0)
    two, one = head.mixture(c, n, torch.cat([up, sure, -sure], 1)).latent, alone.mixture(c, n, up).latent
    assert two is not None
    assert one is not None
    labels = torch.randint(0, 2, (ROWS, 5), generator=draw).double()
    everything = torch.ones_like(labels)
    for a, b in zip(two.log_with_labels(labels, everything), one.log_with_labels(labels, everything), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(two.log_up, one.log_up)


def test_the_start_is_what_the_labels_were_drawn_from(schema: Schema) -> None:
    found = tasks_of_states(STATES, schema, [])
    assert found is not None
    name, of_states = found
    assert name == "watching"
    fit = fit_four_classes(schema, switches(of_states), 0.5, 0.05)
    assert fit.shares.sum(1) == pytest.approx([0.4, 0.6], abs=0.02)
    assert fit.shares[:, 0] / fit.shares.sum(1) == pytest.approx([0.6, 0.1], abs=0.04)
    assert fit.given[0] == pytest.approx([0.8, 0.5, 0.4, 0.3, 0.5], abs=0.03)
    assert fit.given[1] == pytest.approx([0.08, 0.05, 0.04, 0.03, 0.05], abs=0.02)
    head = head_of(schema, states=STATES)
    c, n = head.start_pairs[None].unbind(2)
    start = head.mixture(c, n, head.start_states[None])
    assert start.latent is not None
    assert start.latent.second is not None
    assert start.log_p.exp()[0].tolist() == pytest.approx([task.rate for task in schema.tasks], rel=1e-3)
    assert start.latent.second.log_state.exp().tolist() == pytest.approx([0.4], abs=0.02)
    assert start.latent.log_up.exp().tolist() == pytest.approx([0.3], abs=0.02)


def test_two_states_are_found_from_the_tasks_that_go_with_the_most_frequent_one(schema: Schema) -> None:
    found = tasks_of_states(2, schema, [["t0", "t1"], ["t2"], ["t3"], ["t4"]])
    assert found is not None
    assert found[1].tolist() == [[True, True, False, False, False], [False, False, True, True, True]]
    assert tasks_of_states(1, schema, []) is None


@pytest.mark.parametrize(
    ("states", "names"),
    [
        (2, "t0"),
        (3, "states"),
        (True, "states"),
        ({"watching": ["t0"]}, "states"),
        ({"watching": ["t0"], "liking": ["t1", "t2", "t3"]}, "t4"),
        ({"watching": ["t0", "x"], "liking": ["t1", "t2", "t3", "t4"]}, "x"),
        ({"watching": "t0", "liking": ["t1", "t2", "t3", "t4"]}, "states.watching"),
        ({"t1": ["t0"], "liking": ["t1", "t2", "t3", "t4"]}, "t1"),
    ],
)
def test_wrong_settings_name_what_is_wrong(schema: Schema, states: object, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        tasks_of_states(states, schema, [[f"t{n}"] for n in range(5)])  # type: ignore[arg-type]


def test_a_dislike_happens_where_its_states_do_not_hold(labels: NDArray[np.int64]) -> None:
    schema = schema_of(labels)
    tasks = (*schema.tasks[:3], Task("t3", schema.tasks[3].rate, dislike=True), schema.tasks[4])
    _, latent = predict(head_of(Schema(schema.fields, tasks), states=STATES))
    for row in range(ROWS):
        found = four_states(latent, row)
        assert all(found[w, 1][1][3] > found[w, 0][1][3] for w in (0, 1))
