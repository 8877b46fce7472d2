"""What labels alone say of DLEN's hidden state: which tasks are one view of it, and where training starts.

By the full likelihood, labels are independent given UP. Two tasks of which one nearly implies the other, such as a long
view and a click, break this, and UP becomes what these two have in common instead of what all tasks do. Such tasks
form a *view*: within it, labels may depend on each other given UP. A view is a tree of :class:`Link`, and the joint
probability of two linked labels follows from their own probabilities and an odds ratio for each state, so each task
keeps its tower, its equation (1) and its bound.

Two states are identified by three views that are independent given the state (Allman, Matias and Rhodes 2009).
:func:`fit_classes` finds them from the counts of label patterns, without any input, by expectation maximisation: the
latent class model from which the network then starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from dlen.label_patterns import MISSING_MARK
from dlen.schema import Schema, check_known_tasks
from dlen.targets import Targets

Floats = NDArray[np.float64]
SAME_SIGN = 0.3  # correlation of two labels from which they count as one sign; those of one UP alone reach .25
LEAST_VIEWS = 3  # with fewer, labels alone do not identify the hidden state
STEPS, CONVERGED = 5000, 1e-10  # of expectation maximisation; nats per row and step
TINY = 1e-9  # least probability of a label
_MOST_LOG_RATIO = 8.0  # initial; that of labels which never differ is infinite


@dataclass(frozen=True, slots=True)
class Link:
    """A dependence between two tasks of a view, by their indices."""

    parent: int
    child: int


@dataclass(frozen=True, slots=True)
class LabelClasses:
    """Two classes of rows by their labels, the first of which has more interactions.

    Attributes:
        up: share of the first class.
        given: (2, T) probability of each task's positive label in each class; nan for regression tasks.
        log_ratios: (2, E) logarithm of the odds ratio of each link in each class.
    """

    up: float
    given: Floats
    log_ratios: Floats


def correlations(schema: Schema) -> Floats:
    """(T, T) correlation of each pair of labels, over the training rows that train both; nan if they never vary."""
    result = np.full((len(schema.tasks),) * 2, np.nan)
    if not schema.patterns:
        return result
    labels, trained, weights = training_patterns(schema)
    for a, b in combinations(range(len(schema.tasks)), 2):
        both = weights * trained[:, a] * trained[:, b]
        if both.sum() > 0:
            x, y = labels[:, a], labels[:, b]
            mean_x, mean_y, mean_xy = (float(both @ v) / float(both.sum()) for v in (x, y, x * y))
            variance = mean_x * (1 - mean_x) * mean_y * (1 - mean_y)
            if variance > 0:
                result[a, b] = result[b, a] = (mean_xy - mean_x * mean_y) / math.sqrt(variance)
    return result


def find_links(schema: Schema, views: Sequence[Sequence[str]] | None = None) -> list[Link]:
    """The links of all views: a tree over the tasks of each view, along the strongest correlations.

    A child of a funnel is not linked to its parents: its probability is conditional on them already.

    Args:
        schema: schema of the data. Without label patterns, no view is found.
        views: names of the tasks of each view; a task in none is one of its own. None joins tasks whose labels
            correlate by .3 or more, the strongest first, as long as three views are left.
    """
    strength, edges = np.nan_to_num(correlations(schema), nan=-1.0), []
    pairs = sorted(combinations(range(len(schema.tasks)), 2), key=lambda pair: -strength[pair])
    view, left = list(range(len(schema.tasks))), len(view_names(schema, []))
    together = _together(schema.task_names, views or [])
    for a, b in pairs:
        if view[a] == view[b] or not _may_link(schema, a, b):
            continue
        if together[a, b] if views is not None else strength[a, b] >= SAME_SIGN and left > LEAST_VIEWS:
            edges.append((a, b))
            view, left = _merged(view, a, b), left - 1
    return _directed(edges, [task.rate for task in schema.tasks])


def view_names(schema: Schema, links: Sequence[Link]) -> list[list[str]]:
    """Names of the tasks of each view, in the order of their first task; regressions and tasks of weight 0 are none."""
    view = list(range(len(schema.tasks)))
    for link in links:
        view = _merged(view, link.parent, link.child)
    found: dict[int, list[str]] = {}
    for place, task in zip(view, schema.tasks, strict=True):
        if not task.is_regression and task.weight > 0:
            found.setdefault(place, []).append(task.name)
    return list(found.values())


def _merged(view: Sequence[int], a: int, b: int) -> list[int]:
    """The view of each task, by its first task, with those of two tasks made one."""
    first, second = sorted((view[a], view[b]))
    return [first if v == second else v for v in view]


def _together(tasks: Sequence[str], views: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    """(T, T) whether two tasks are in the same of the given views."""
    result = np.zeros((len(tasks),) * 2, bool)
    for view in views:
        check_known_tasks("views", view, tasks)
        places = [tasks.index(name) for name in view]
        result[np.ix_(places, places)] = True
    return result


def _may_link(schema: Schema, a: int, b: int) -> bool:
    """Whether both tasks are binary, and none is a parent of the other in a funnel."""
    first, second = schema.tasks[a], schema.tasks[b]
    if first.is_regression or second.is_regression:
        return False
    return b not in schema.chain(first.name) and a not in schema.chain(second.name)


def _directed(edges: Sequence[tuple[int, int]], rates: Sequence[float]) -> list[Link]:
    """Direct the edges of a forest away from the task with the highest rate of each tree."""
    links, left, reached = [], list(edges), set[int]()
    for root in sorted(range(len(rates)), key=lambda task: -rates[task]):
        if root in reached:
            continue
        waiting = [root]
        while waiting:
            parent = waiting.pop(0)
            reached.add(parent)
            for edge in [edge for edge in left if parent in edge]:
                left.remove(edge)
                child = edge[0] if edge[1] == parent else edge[1]
                links.append(Link(parent, child))
                waiting.append(child)
    return links


@lru_cache(maxsize=8)  # a run builds its model several times, and a sweep checks many settings on the same data
def fit_classes(schema: Schema, links: tuple[Link, ...], up: float, leak: float) -> LabelClasses:
    """Fit two classes to the label patterns of the training rows by maximum likelihood.

    Args:
        schema: schema with patterns.
        links: dependences within views, parents first; all other pairs are independent given the class.
        up: initial share of the first class.
        leak: initial ratio of a label's probabilities in the second and the first class.
    """
    labels, trained, weights = training_patterns(schema)
    counts = _Counts(labels, trained, links)
    share, tables, last = up, _initial_tables(schema, up, leak), -math.inf
    for _ in range(STEPS):
        of_classes = np.stack([counts.log_likelihood(table) for table in tables]) + np.log([[share], [1 - share]])
        total = np.logaddexp(*of_classes)
        reached = float(weights @ total / weights.sum())
        if reached - last < CONVERGED:
            break
        last, posterior = reached, np.exp(of_classes - total) * weights
        share = float(np.clip(posterior[0].sum() / weights.sum(), TINY, 1 - TINY))
        tables = [counts.tables(of_class, table) for of_class, table in zip(posterior, tables, strict=True)]
    given = np.stack([counts.marginals(table)[:, 1] for table in tables])
    ratios = np.array([[_log_odds_ratio(table[link.child]) for link in links] for table in tables])
    given[:, schema.regressions] = np.nan
    if _is_reversed(schema, given):
        return LabelClasses(1 - share, given[::-1], ratios[::-1])
    return LabelClasses(share, given, ratios)


class _Counts:
    """Label patterns in the form that expectation maximisation multiplies with.

    A table (T, 2, 2) holds P(label | label of the parent) for one class; tasks without a parent use its first row.

    Args:
        labels: (P, T) training labels.
        trained: (P, T) 1 where a label is known.
        links: parent of each task that has one, parents first.
    """

    def __init__(self, labels: Floats, trained: Floats, links: Sequence[Link]) -> None:
        self.links = links
        kinds = np.stack([1 - labels, labels], 2) * trained[:, :, None]  # (P, T, 2) one-hot of known labels
        self.alone = kinds.copy()  # labels whose parent's label is not known
        self.paired = np.zeros((*labels.shape, 2, 2))  # (P, T, label of the parent, label)
        self.paired[:, :, 0] = kinds
        for link in links:
            self.paired[:, link.child] = kinds[:, link.parent, :, None] * kinds[:, link.child, None, :]
        self.alone -= self.paired.sum(2)

    def marginals(self, table: Floats) -> Floats:
        """(T, 2) probability of each label."""
        result: Floats = table[:, 0].copy()
        for link in self.links:
            result[link.child] = result[link.parent] @ table[link.child]
        return result

    def log_likelihood(self, table: Floats) -> Floats:
        """(P,) of each pattern."""
        paired, alone = self.paired.reshape(len(self.paired), -1), self.alone.reshape(len(self.alone), -1)
        result: Floats = paired @ np.log(table).ravel() + alone @ np.log(self.marginals(table)).ravel()
        return result

    def tables(self, weights: Floats, table: Floats) -> Floats:
        """The table that (P,) weights of the patterns make most likely, given the current one."""
        expected = np.tensordot(weights, self.paired, 1)
        alone, marginals = np.tensordot(weights, self.alone, 1), self.marginals(table)
        for link in self.links:
            parents = marginals[link.parent][:, None] * table[link.child] / marginals[link.child]
            expected[link.child] += parents * alone[link.child]
        expected += TINY
        result: Floats = expected / expected.sum(2, keepdims=True)
        return np.clip(result, TINY, 1 - TINY)


def training_patterns(schema: Schema) -> tuple[Floats, Floats, Floats]:
    """(P, T) training labels, (P, T) 1 where they train their task, and (P,) weights."""
    values = {"0": 0.0, "1": 1.0, MISSING_MARK: math.nan}
    marks = [[values[mark] for mark in pattern] for pattern, _ in schema.patterns]
    labels = torch.tensor(marks, dtype=torch.float64, device="cpu")  # also while a model is built elsewhere
    targets, counted = Targets(schema), np.array([task.weight > 0 for task in schema.tasks])
    weights = np.array([weight for _, weight in schema.patterns], np.float64)
    return targets.training_labels(labels).numpy(), targets.trained(labels).numpy() * counted, weights


def _initial_tables(schema: Schema, up: float, leak: float) -> list[Floats]:
    """Labels independent of their parents, with their training rates."""
    given = []
    for task in schema.tasks:
        share = 1 - up if task.dislike else up
        strong = min(task.rate / (share + leak * (1 - share)), 0.99)
        weak = max((task.rate - strong * share) / (1 - share), TINY)
        given.append((weak, strong) if task.dislike else (strong, weak))
    positive = np.clip(np.array(given).T[:, :, None], TINY, 1 - TINY)  # (2, T, 1)
    tables = np.stack([1 - positive, positive], 3)  # (2, T, 1, 2)
    return list(np.repeat(tables, 2, 2))


def _log_odds_ratio(table: Floats) -> float:
    log = np.log(table)
    ratio = log[1, 1] + log[0, 0] - log[1, 0] - log[0, 1]
    return float(np.clip(ratio, -_MOST_LOG_RATIO, _MOST_LOG_RATIO))


def _is_reversed(schema: Schema, given: Floats) -> bool:
    """Whether interactions are less likely in the first class, and dislikes more."""
    binary = [index for index, task in enumerate(schema.tasks) if not task.is_regression]
    signs = np.array([-1.0 if schema.tasks[index].dislike else 1.0 for index in binary])
    evidence = np.log(np.maximum(given[0, binary], TINY)) - np.log(np.maximum(given[1, binary], TINY))
    return float(signs @ np.clip(evidence, -2, 2)) < 0
