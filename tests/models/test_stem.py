"""STEM-Net against a slow loop from its paper and the authors' code, and which task trains which part of the table."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dlen.models import STEM, MMoE, SingleTask
from dlen.models.backbones import STEMBackbone
from dlen.models.features import Features, FeatureSpec
from dlen.models.interactions import FMInteraction, MakeInteraction, PerTask, SENetInteraction
from dlen.nn.embedding import EmbeddingTable
from dlen.schema import Field
from tests.helpers import FIELDS, WITH_DIMS, WITH_SEQUENCES, WITH_VECTORS, make_batch, make_schema, tasks_with_rates
from tests.models.test_backbones import slow_mix, slow_mlp

DIM, TASKS, B = 3, 3, 5


def drawn(num_tasks: int) -> Features:
    """Two fields with a part for each task and a shared one, and a number."""
    parts = num_tasks + 1
    spec = FeatureSpec(("a", "b"), ("user", "item"), ("n",), dim=DIM * parts, parts=parts, shared_part=True)
    return Features(torch.randn(B, spec.width, generator=torch.Generator().manual_seed(0)), spec)


@pytest.mark.parametrize(("num_tasks", "shared", "own"), [(1, 1, 1), (2, 1, 3), (3, 2, 1)])
def test_it_equals_the_definition(num_tasks: int, shared: int, own: int) -> None:
    torch.manual_seed(1)
    x = drawn(num_tasks)
    module: Any = STEMBackbone(x.spec, num_tasks, shared_experts=shared, task_experts=own, expert=(6, 4))
    found = module(x)
    assert found.shape == (num_tasks, B, module.out_dim) == (num_tasks, B, 4)
    vectors, numbers = x.fields.view(B, 2, num_tasks + 1, DIM), x.numbers
    for row in range(B):
        inputs = []
        for part in range(num_tasks + 1):
            inputs.append([*vectors[row, 0, part].tolist(), *vectors[row, 1, part].tolist(), *numbers[row].tolist()])
        outputs = []
        for task in range(num_tasks):
            outputs += [slow_mlp(expert, inputs[task]) for expert in module.task_experts[task]]
        outputs += [slow_mlp(expert, inputs[-1]) for expert in module.shared_experts]
        for task in range(num_tasks):
            gate_input = [a + b for a, b in zip(inputs[task], inputs[-1], strict=True)]
            wanted = slow_mix(module.gates[task].weight.tolist(), gate_input, outputs)
            torch.testing.assert_close(found[task, row], torch.tensor(wanted), rtol=1e-5, atol=1e-5)


def test_it_is_the_layer_of_the_authors() -> None:
    """Outputs and gradients of STEM_Layer in models/STEM.py of LiangcaiSu/STEM, with gates of one linear layer."""

    def fill(parameters: list[Tensor]) -> None:
        for k, parameter in enumerate(parameters):
            wave = (torch.arange(parameter.numel(), dtype=torch.float32) * 1.7 + k).sin() / 2
            parameter.data = wave.view_as(parameter)

    values = (torch.arange(18, dtype=torch.float32) * 0.9).cos().view(2, 9).requires_grad_()
    features = Features(values, FeatureSpec(("a",), ("user",), (), dim=9, parts=3, shared_part=True))
    module = STEMBackbone(features.spec, 2, shared_experts=1, task_experts=2, expert=(4, 3))
    fill([*module.shared_experts.parameters(), *module.task_experts.parameters()])
    fill(list(module.gates.parameters()))
    found = module(features)
    wanted = [
        [[0.226689, 0.065030, 0.018820], [0.277306, 0.164826, 0.089286]],
        [[0.179633, 0.115626, 0.026622], [0.345361, 0.167396, 0.063441]],
    ]
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=0, atol=2e-6)
    for task, gradients in enumerate([[0.555269, 0.0, 0.307442], [0.0, 0.315193, 0.249847]]):
        (gradient,) = torch.autograd.grad(found[task].sum(), values, retain_graph=True)
        of_parts = gradient.view(2, 3, 3).abs().sum((0, 2))
        torch.testing.assert_close(of_parts, torch.tensor(gradients), rtol=0, atol=2e-6)


SMALL: dict[str, Any] = {"embedding_dim": DIM, "expert": (16, 8), "tower": (8,)}
CASES = {"plain": FIELDS, "sequences": WITH_SEQUENCES, "lengths": WITH_DIMS, "vectors": WITH_VECTORS}


def of_parts(gradient: Tensor, first_order: int) -> list[float]:
    """The size of a table's gradient on each of its four parts."""
    width = (gradient.shape[1] - first_order) // (TASKS + 1)
    return [float(part.abs().sum()) for part in gradient.split(width, 1)][: TASKS + 1]


@pytest.mark.parametrize("interaction", [None, SENetInteraction, FMInteraction])
@pytest.mark.parametrize("case", CASES)
def test_a_task_trains_its_own_vectors_and_the_shared_ones(case: str, interaction: MakeInteraction | None) -> None:
    torch.manual_seed(0)
    fields: tuple[Field, ...] = CASES[case]
    model = STEM(make_schema(fields=fields), interaction=interaction, **SMALL)
    batch = make_batch(model.schema, 64)
    tables = [m for m in model.embedding.modules() if isinstance(m, EmbeddingTable)]
    layers: Any = () if model.vectors is None else model.vectors.layers
    for task in range(TASKS):
        model.zero_grad()
        model(batch).log_p[:, task].sum().backward()
        trained = [part in (task, TASKS) for part in range(TASKS + 1)]
        for table in tables:
            assert table.weight.grad is not None
            sizes = of_parts(table.weight.grad.to_dense(), 4)  # three first-order terms, padded
            assert [size > 0 for size in sizes] == trained
        for place, layer in enumerate(layers):
            assert (layer.weight.grad is not None and bool(layer.weight.grad.any())) is trained[place % (TASKS + 1)]
        for pools in () if model.sequences is None else model.sequences.pools:
            assert isinstance(pools, torch.nn.ModuleList)
            for part, pool in enumerate(pools):
                grads = [p.grad for p in pool.parameters() if p.grad is not None]
                assert any(bool(grad.any()) for grad in grads) is trained[part] or not list(pool.parameters())
        backbone: Any = model.backbone
        for owner, group in enumerate(backbone.task_experts):
            assert any(p.grad is not None and bool(p.grad.any()) for p in group.parameters()) is (owner == task)
        assert all(p.grad is not None for p in backbone.shared_experts.parameters())


def test_the_interaction_of_the_shared_part_is_what_all_tasks_train() -> None:
    model = STEM(make_schema(), interaction=SENetInteraction, **SMALL)
    assert isinstance(model.interaction, PerTask)
    assert len(model.interaction.tasks) == TASKS + 1
    backbone: Any = model.backbone
    wanted = [*model.interaction.tasks[TASKS].parameters(), *backbone.shared_experts.parameters()]
    assert [id(p) for p in model.shared_parameters()] == [id(p) for p in wanted]


def test_every_task_sees_the_experts_of_all() -> None:
    """All forward: another task's vectors move its prediction, though they get no gradient from it."""
    torch.manual_seed(0)
    model = STEM(make_schema(), **SMALL).eval()
    batch = make_batch(model.schema, 16)
    before = model(batch).log_p
    model.embedding.weight.data[:, DIM : 2 * DIM] += 0.5  # the part of task 1
    assert ((model(batch).log_p - before).abs().amax(0) > 1e-6).all()


def test_a_gate_names_the_experts_that_it_mixes() -> None:
    model = STEM(make_schema(tasks_with_rates(0.3, 0.1)), shared_experts=1, task_experts=2, **SMALL)
    mixtures = model.mixtures()
    names = ["task0_expert0", "task0_expert1", "task1_expert0", "task1_expert1", "shared0"]
    assert [(mixture.owners, mixture.names) for mixture in mixtures] == [([0], names), ([1], names)]
    assert all(len(mixture.experts) == 5 == mixture.gate.shape[1] for mixture in mixtures)


@pytest.mark.parametrize("private", [False, True])
def test_vectors_without_a_shared_part_are_refused_in_one_line(private: bool) -> None:
    with pytest.raises(
        ValueError, match=r"^stem needs .*; set embedding\.private=true and embedding\.shared_part=true$"
    ):
        STEM(make_schema(), embedding=partial(EmbeddingTable, private=private))
    with pytest.raises(ValueError, match=r"embedding\.shared_part is .*set embedding\.private=true"):
        MMoE(make_schema(), embedding=partial(EmbeddingTable, shared_part=True))


def test_networks_of_tasks_take_the_shared_part_beside_their_own() -> None:
    """``model=single_task model.embedding.shared_part=true``: a shared and an own vector, without experts."""
    torch.manual_seed(0)
    table = partial(EmbeddingTable, dim=DIM, private=True, shared_part=True)
    model = SingleTask(make_schema(), embedding=table, expert=(16, 8), tower=(8,))
    batch = make_batch(model.schema, 64)
    for task in range(TASKS):
        model.zero_grad()
        model(batch).log_p[:, task].sum().backward()
        assert isinstance(model.embedding.weight, Tensor)
        assert model.embedding.weight.grad is not None
        sizes = of_parts(model.embedding.weight.grad.to_dense(), 0)
        assert [size > 0 for size in sizes] == [part in (task, TASKS) for part in range(TASKS + 1)]
