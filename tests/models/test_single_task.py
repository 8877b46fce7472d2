"""SingleTask: nothing is shared, and each task is an ordinary network of its own."""

from __future__ import annotations

from typing import Any

import torch

from dlen.models import SingleTask
from dlen.targets import Targets
from dlen.training.conflict import task_gradients
from tests.helpers import make_batch, make_schema

DIM = 3


def model() -> SingleTask:
    torch.manual_seed(0)
    return SingleTask(make_schema(), embedding_dim=DIM, expert=(16, 12), tower=(8,))


def test_no_parameter_has_a_gradient_from_two_tasks() -> None:
    net, batch = model(), make_batch(make_schema(), 32)
    touched: dict[str, list[int]] = {}
    for task in range(3):
        net.zero_grad()
        net(batch).log_p[:, task].sum().backward()
        for name, parameter in net.named_parameters():
            grad = parameter.grad
            if grad is None:
                continue
            if grad.is_sparse:  # the columns of the table: T parts of each vector
                for part, values in enumerate(grad.to_dense().split(DIM, 1)):
                    touched.setdefault(f"{name}/{part}", []).extend([task] * bool((values != 0).any()))
            elif (grad != 0).any():
                touched.setdefault(name, []).append(task)
    assert len(touched) > 10
    assert all(len(tasks) == 1 for tasks in touched.values()), touched


def test_each_task_is_its_network_on_its_own_parts_of_the_vectors() -> None:
    net, batch = model(), make_batch(make_schema(), 8)
    x = net.embedding(batch)
    vectors, numbers = x[:, : 4 * 3 * DIM].view(8, 4, 3, DIM), x[:, 4 * 3 * DIM :]
    backbone: Any = net.backbone
    representations = backbone(net.features(batch))
    for task in range(3):
        for row in range(8):
            parts = [vectors[row, field, task] for field in range(4)]
            alone = backbone.networks[task](torch.cat([*parts, numbers[row]])[None])[0]
            torch.testing.assert_close(representations[task, row], alone)


def test_tasks_that_share_nothing_have_no_conflict() -> None:
    net, batch = model(), make_batch(make_schema(), 8)
    shared, rows = task_gradients(net, batch, Targets(net.schema))
    assert shared.shape == (3, 0)
    inner = rows[..., : 4 * 3 * DIM]  # all tasks get the numeric fields
    products = inner @ inner.transpose(1, 2)
    assert (products.diagonal(dim1=1, dim2=2) > 0).all()
    assert torch.equal(products, torch.diag_embed(products.diagonal(dim1=1, dim2=2)))
