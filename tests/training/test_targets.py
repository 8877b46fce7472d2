"""Which rows train and measure each task of a funnel, row by row."""

from __future__ import annotations

import math

import pytest
import torch

from dlen.schema import Task
from dlen.targets import Targets
from tests.helpers import make_schema

LABELS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])  # the last row: a conversion without a click


def funnel(train_on: str) -> Targets:
    cvr = Task("cvr", 0.1, observed_where="ctr", train_on=train_on, joint="ctcvr")
    return Targets(make_schema((Task("ctr", 0.3), cvr)))


@pytest.mark.parametrize("train_on", ["observed", "all"])
def test_conversion_is_measured_on_clicked_rows(train_on: str) -> None:
    targets = funnel(train_on)
    assert targets.names == ["ctr", "cvr", "ctcvr"]
    assert targets.measured(LABELS).tolist() == [[1, 0], [1, 1], [1, 1], [1, 0]]


def test_conversion_is_trained_on_clicked_rows_or_on_all() -> None:
    assert funnel("observed").trained(LABELS).tolist() == [[1, 0], [1, 1], [1, 1], [1, 0]]
    assert funnel("all").trained(LABELS).tolist() == [[1, 1]] * 4


@pytest.mark.parametrize("train_on", ["observed", "all"])
def test_the_joint_event_needs_the_click_and_counts_every_row(train_on: str) -> None:
    labels, mask = funnel(train_on).labels(LABELS)
    assert labels[:, :2].tolist() == LABELS.tolist()
    assert labels[:, 2].tolist() == [0, 0, 1, 0]
    assert mask.tolist() == [[1, 0, 1], [1, 1, 1], [1, 1, 1], [1, 0, 1]]


def test_joint_probability_is_the_product_or_the_head_itself() -> None:
    log_p = torch.tensor([[math.log(0.5), math.log(0.2)]])
    assert funnel("observed").log_probabilities(log_p).exp()[0].tolist() == pytest.approx([0.5, 0.2, 0.1])
    assert funnel("all").log_probabilities(log_p).exp()[0].tolist() == pytest.approx([0.5, 0.2, 0.2])


def test_only_a_conversion_trained_on_clicked_rows_is_a_probability_of_conversion() -> None:
    assert funnel("observed").is_probability() == [True, True, True]
    assert funnel("all").is_probability() == [True, False, True]


def chain(cart_train_on: str = "observed") -> Targets:
    """A chain of three, with its end declared first."""
    buy = Task("buy", 0.1, observed_where="cart", joint="all_three")
    cart = Task("cart", 0.2, observed_where="click", train_on=cart_train_on, joint="first_two")
    return Targets(make_schema((buy, Task("click", 0.3), cart)))


def test_a_chain_of_three_needs_every_parent() -> None:
    rows = torch.tensor([[b, c, k] for b in (0.0, 1.0) for c in (0.0, 1.0) for k in (0.0, 1.0)])
    targets = chain()
    labels, mask = targets.labels(rows)
    assert targets.names == ["buy", "click", "cart", "all_three", "first_two"]
    for row, (buy, click, cart) in enumerate(rows.tolist()):
        assert mask[row].tolist() == [click * cart, 1, click, 1, 1]
        assert labels[row].tolist() == [buy, click, cart, buy * click * cart, click * cart]
        assert targets.trained(rows)[row].tolist() == [click * cart, 1, click]


def test_a_chain_of_three_multiplies_up_to_the_task_that_is_already_joint() -> None:
    log_p = torch.tensor([[0.1, 0.5, 0.4]]).log()
    assert chain().log_probabilities(log_p).exp()[0].tolist() == pytest.approx([0.1, 0.5, 0.4, 0.02, 0.2])
    assert chain("all").log_probabilities(log_p).exp()[0].tolist() == pytest.approx([0.1, 0.5, 0.4, 0.04, 0.4])


def test_tasks_of_a_feed_have_no_joint_events() -> None:
    targets = Targets(make_schema())
    labels, mask = targets.labels(torch.tensor([[0.0, 1.0, 0.0]]))
    assert labels.tolist() == [[0, 1, 0]]
    assert mask.tolist() == [[1, 1, 1]]
    assert targets.log_probabilities(torch.tensor([[-1.0, -2.0, -3.0]])).tolist() == [[-1, -2, -3]]


@pytest.mark.parametrize(("train_on", "expected"), [("observed", [1.0, 1.0, 0.0]), ("all", [1.0, 0.0, 0.0])])
def test_a_head_on_all_rows_learns_the_task_together_with_its_parent(train_on: str, expected: list[float]) -> None:
    labels = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # the second row is a purchase without a click
    assert funnel(train_on).training_labels(labels)[:, 1].tolist() == expected
