"""Views found in labels, and the two classes that labels show, against the worlds that they were drawn from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from dlen.models.label_classes import Link, correlations, find_links, fit_classes, view_names
from dlen.schema import Schema, Task, TaskKind

Labels = NDArray[np.int64]
UP, LEAK = 0.3, 0.15
GIVEN = np.array([0.6, 0.4, 0.3, 0.2])
ROWS = 200_000


def schema_of(labels: Labels, tasks: tuple[Task, ...] | None = None) -> Schema:
    """A schema with the patterns and rates of labels; -1 is a missing label."""
    counts = Counter("".join("01-"[value] for value in row) for row in labels.tolist())
    names = [f"t{number}" for number in range(labels.shape[1])]
    rates = [float((column == 1).sum() / (column >= 0).sum()) for column in labels.T]
    own = tasks or tuple(Task(name, rate) for name, rate in zip(names, rates, strict=True))
    own = tuple(replace(task, rate=rate) for task, rate in zip(own, rates, strict=True))
    return Schema((), own, patterns=tuple((pattern, float(n)) for pattern, n in sorted(counts.items())))


def draw(rng: np.random.Generator, rows: int = ROWS) -> tuple[NDArray[np.bool_], Labels]:
    """Labels that are independent given a class."""
    up = rng.random(rows) < UP
    chance = GIVEN * np.where(up, 1.0, LEAK)[:, None]
    return up, (rng.random(chance.shape) < chance).astype(np.int64)


def with_follower(rng: np.random.Generator, labels: Labels) -> Labels:
    """A further task that happens after most positives of the first one, and never else."""
    return np.column_stack([labels, labels[:, 0] * (rng.random(len(labels)) < 0.8)])


def test_independent_labels_are_views_of_their_own() -> None:
    schema = schema_of(draw(np.random.default_rng(0))[1])
    assert find_links(schema) == []
    assert view_names(schema, []) == [["t0"], ["t1"], ["t2"], ["t3"]]


def test_correlations_are_those_of_numpy() -> None:
    labels = draw(np.random.default_rng(1))[1]
    ours = correlations(schema_of(labels))
    apart = ~np.eye(4, dtype=bool)
    np.testing.assert_allclose(ours[apart], np.asarray(np.corrcoef(labels.T))[apart], rtol=1e-9)


def test_a_task_that_follows_another_is_of_its_view() -> None:
    rng = np.random.default_rng(2)
    schema = schema_of(with_follower(rng, draw(rng)[1]))
    assert find_links(schema) == [Link(0, 4)]
    assert view_names(schema, find_links(schema)) == [["t0", "t4"], ["t1"], ["t2"], ["t3"]]


def test_three_views_are_left() -> None:
    rng = np.random.default_rng(3)
    labels = with_follower(rng, draw(rng)[1])[:, [0, 1, 4]]
    schema = schema_of(labels)
    assert find_links(schema) == []
    assert find_links(schema, [["t0", "t2"]]) == [Link(0, 2)]


def test_a_task_of_weight_0_is_no_view() -> None:
    rng = np.random.default_rng(12)
    schema = schema_of(with_follower(rng, draw(rng)[1])[:, [0, 4, 1, 2]])
    assert find_links(schema) == [Link(0, 1)]
    held_out = replace(schema, tasks=tuple(replace(t, weight=0.0 if t.name == "t3" else 1.0) for t in schema.tasks))
    assert find_links(held_out) == []
    assert view_names(held_out, []) == [["t0"], ["t1"], ["t2"]]


def test_given_views_replace_those_found() -> None:
    rng = np.random.default_rng(4)
    schema = schema_of(with_follower(rng, draw(rng)[1]))
    assert {(link.parent, link.child) for link in find_links(schema, [["t1", "t3", "t2"]])} == {(1, 2), (1, 3)}
    assert find_links(schema, []) == []
    with pytest.raises(ValueError, match="unknown task"):
        find_links(schema, [["t1", "nothing"]])


def test_a_view_is_a_tree() -> None:
    labels = draw(np.random.default_rng(5))[1]
    links = find_links(schema_of(labels), [["t0", "t1", "t2", "t3"]])
    children = [link.child for link in links]
    assert sorted(children) == [1, 2, 3]
    for place, link in enumerate(links):
        assert link.parent == 0 or link.parent in children[:place]


def test_tasks_of_a_funnel_and_regressions_are_not_linked() -> None:
    rng = np.random.default_rng(6)
    labels = with_follower(rng, draw(rng)[1])
    tasks = tuple(Task(f"t{n}", 0.5, observed_where="t0" if n == 4 else None) for n in range(5))
    everything = [[f"t{n}" for n in range(5)]]
    assert Link(0, 4) not in find_links(schema_of(labels, tasks), everything)
    labels[:, 1] = -1
    tasks = tuple(Task(f"t{n}", 0.5, kind=TaskKind.REGRESSION if n == 1 else TaskKind.BINARY) for n in range(5))
    numbered = replace(schema_of(labels[:, [0, 2, 3, 4]]), tasks=tuple(t for t in tasks if t.name != "t1"))
    links = find_links(replace(numbered, tasks=tasks, patterns=_with_gap(numbered, 1)), everything)
    assert 1 not in {task for link in links for task in (link.parent, link.child)}


def _with_gap(schema: Schema, place: int) -> tuple[tuple[str, float], ...]:
    return tuple((pattern[:place] + "-" + pattern[place:], weight) for pattern, weight in schema.patterns)


@pytest.mark.parametrize("start", [(0.5, 0.05), (0.1, 0.3), (0.8, 0.5)])
def test_classes_are_those_that_labels_were_drawn_from(start: tuple[float, float]) -> None:
    schema = schema_of(draw(np.random.default_rng(7))[1])
    classes = fit_classes(schema, (), *start)
    assert classes.up == pytest.approx(UP, abs=0.03)
    np.testing.assert_allclose(classes.given[0], GIVEN, rtol=0.06)
    np.testing.assert_allclose(classes.given[1] / classes.given[0], LEAK, rtol=0.2)


def test_a_follower_takes_the_class_unless_it_is_linked() -> None:
    rng = np.random.default_rng(8)
    up, labels = draw(rng)
    labels[:, 0] |= rng.random(ROWS) < 0.3  # most positives of the first task have nothing to do with the class
    schema = schema_of(with_follower(rng, labels))
    apart, joined = fit_classes(schema, (), 0.5, 0.05), fit_classes(schema, tuple(find_links(schema)), 0.5, 0.05)
    assert apart.up == pytest.approx(labels[:, 0].mean(), abs=0.05)
    assert joined.up == pytest.approx(up.mean(), abs=0.03)
    np.testing.assert_allclose(joined.given[0, 1:4], GIVEN[1:], rtol=0.07)


def test_missing_labels_change_little() -> None:
    rng = np.random.default_rng(9)
    labels = with_follower(rng, draw(rng)[1])
    whole = schema_of(labels)
    labels[rng.random(labels.shape) < 0.3] = -1
    parts = schema_of(labels)
    links = find_links(whole)
    assert find_links(parts) == links
    first, second = (fit_classes(schema, tuple(links), 0.5, 0.05) for schema in (whole, parts))
    assert second.up == pytest.approx(first.up, abs=0.03)
    np.testing.assert_allclose(second.given, first.given, rtol=0.15)


def test_a_dislike_happens_in_the_other_class() -> None:
    rng = np.random.default_rng(10)
    up, labels = draw(rng)
    hate = (rng.random(ROWS) < np.where(up, 0.02, 0.25)).astype(np.int64)
    tasks = (*(Task(f"t{n}", 0.5) for n in range(4)), Task("hate", 0.5, dislike=True))
    for start in (0.3, 0.7):
        classes = fit_classes(schema_of(np.column_stack([labels, hate]), tasks), (), start, 0.05)
        assert classes.up == pytest.approx(UP, abs=0.03)
        assert classes.given[0, 4] < classes.given[1, 4]


def test_odds_ratios_are_those_of_the_labels_in_each_class() -> None:
    rng = np.random.default_rng(11)
    labels = draw(rng)[1]
    follows = rng.random(ROWS) < np.where(labels[:, 0] == 1, 0.8, 0.02)
    schema = schema_of(np.column_stack([labels, follows.astype(np.int64)]))
    classes = fit_classes(schema, (Link(0, 4),), 0.5, 0.05)
    wanted = np.log(0.8 / 0.2 * 0.98 / 0.02)
    np.testing.assert_allclose(classes.log_ratios, [[wanted], [wanted]], atol=0.3)
