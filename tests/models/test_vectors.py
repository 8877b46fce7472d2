"""Rankers with vector fields: projections against a loop, under every preset, tasks apart; inputs of baselines."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from torch import Tensor

from dlen.models import MMoE, Ranker, SingleTask
from dlen.models.rates import RateEncoder
from dlen.nn.vectors import VectorProjections
from dlen.overrides import compose_train
from dlen.schema import Field, Kind, Schema, Task
from dlen.training.configs import build
from tests.conftest import ROOT
from tests.helpers import WITH_VECTORS, make_batch, make_schema

SCHEMA = make_schema(fields=WITH_VECTORS)
FUNNEL = replace(
    make_schema((Task("ctr", 0.3), Task("cvr", 0.1, observed_where="ctr", joint="ctcvr")), WITH_VECTORS),
    position="item",
)
NETWORKS = sorted(p.stem for p in Path(ROOT / "conf/model").glob("*.yaml") if p.stem not in ("lightgbm", "logistic"))


def slow(weight: Tensor, vector: list[float]) -> list[float]:
    """(E, d) weights and a vector -> E numbers."""
    return [sum(w * x for w, x in zip(row, vector, strict=True)) for row in weight.tolist()]


@pytest.mark.parametrize("parts", [1, 3])
def test_projections_are_matrix_products(parts: int) -> None:
    torch.manual_seed(0)
    made = VectorProjections([3, 5], 6, parts)
    vectors = [torch.randn(4, 3), torch.randn(4, 5)]
    with torch.no_grad():
        found = made(vectors).tolist()
    weights = list(made.parameters())
    assert [tuple(w.shape) for w in weights] == [(6 // parts, 3)] * parts + [(6 // parts, 5)] * parts
    for row in range(4):
        inputs = [v[row].tolist() for v in vectors for _ in range(parts)]
        wanted = [x for weight, values in zip(weights, inputs, strict=True) for x in slow(weight, values)]
        assert found[row] == pytest.approx(wanted, abs=1e-6)


def test_a_projected_vector_starts_like_the_vector_of_an_id() -> None:
    torch.manual_seed(0)
    projected = VectorProjections([64], 16, 1)([torch.randn(2000, 64)]).detach()
    assert float(projected.std()) == pytest.approx(0.05, rel=0.1)


def test_fields_stand_before_those_of_the_table_and_a_missing_vector_is_0() -> None:
    torch.manual_seed(0)
    model, batch = MMoE(SCHEMA, embedding_dim=4), make_batch(SCHEMA, 40)
    features, spec = model.features(batch), model.spec
    lists = ("watched", "watched_how", "searches")
    assert spec.fields == (*lists, "caption", "profile", "user", "item", "tags", "matches")
    assert (spec.sides[3], spec.sides[4]) == ("item", "user")
    assert model.vectors is not None
    weight = next(model.vectors.parameters())
    torch.testing.assert_close(features.field("caption"), batch.vectors[0] @ weight.T)
    missing = ~batch.vectors[1].any(1)
    assert 0 < int(missing.sum()) < 40
    assert not features.field("profile")[missing].any()
    without = MMoE(make_schema(fields=WITH_VECTORS[:-2]), embedding_dim=4)
    assert without.vectors is None


def test_the_gradient_reaches_the_projections_and_not_the_vectors() -> None:
    torch.manual_seed(0)
    model, batch = MMoE(SCHEMA, embedding_dim=4), make_batch(SCHEMA, 9)
    model(batch).log_p.sum().backward()
    assert model.vectors is not None
    assert all(p.grad is not None and p.grad.any() for p in model.vectors.parameters())
    assert not any(v.requires_grad for v in batch.vectors)


def test_private_vectors_keep_the_tasks_apart() -> None:
    """No projection gets a gradient from two tasks."""
    torch.manual_seed(0)
    model, batch = SingleTask(SCHEMA, embedding_dim=4), make_batch(SCHEMA, 9)
    log_p = model(batch).log_p
    assert model.vectors is not None
    layers = list(model.vectors.parameters())
    touched = []
    for task in range(len(SCHEMA.tasks)):
        found = torch.autograd.grad(log_p[:, task].sum(), layers, retain_graph=True, allow_unused=True)
        touched.append({i for i, g in enumerate(found) if g is not None and g.any()})
    assert touched == [{task, task + len(SCHEMA.tasks)} for task in range(len(SCHEMA.tasks))]


@pytest.mark.parametrize("interaction", ["none", "cross"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_preset_predicts_each_row_from_its_own_vectors(name: str, interaction: str) -> None:
    torch.manual_seed(0)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose_train(["data=feed", f"model={name}", f"model/interaction={interaction}"])
    model: Any = build(config.model, "model", FUNNEL)
    assert isinstance(model, Ranker)
    model.eval()
    batch = make_batch(FUNNEL, 9)
    changed = replace(batch, vectors=(batch.vectors[0] + (torch.arange(9) == 4)[:, None] * 30.0, batch.vectors[1]))
    with torch.no_grad():
        differs = (model(batch).log_p - model(changed).log_p).abs() > 1e-6
    assert differs.any(1).tolist() == [row == 4 for row in range(9)]


@pytest.mark.parametrize("first_order", [False, True])
def test_a_table_of_vectors_alone(first_order: bool) -> None:
    schema = make_schema(fields=(Field("caption", Kind.VECTOR, "item", size=3),))
    model = MMoE(schema, embedding_dim=4, first_order=first_order)
    assert model(make_batch(schema, 5)).log_p.shape == (5, 3)


def test_baselines_take_the_numbers_of_vectors() -> None:
    encoder, batch = RateEncoder(SCHEMA, 20.0, 5), make_batch(SCHEMA, 7)
    inputs = encoder(batch)
    assert inputs.shape == (7, encoder.width)
    assert encoder.width == RateEncoder(make_schema(fields=WITH_VECTORS[:-2]), 20.0, 5).width + 8
    torch.testing.assert_close(inputs[:, -8:], torch.cat(batch.vectors, 1))


def test_the_size_of_a_vector_is_checked() -> None:
    make = partial(Schema, tasks=(Task("click", 0.5),))
    for wrong in (Field("caption", Kind.VECTOR), Field("age", Kind.NUMERIC, size=3)):
        with pytest.raises(ValueError, match=f"field {wrong.name}: size must be above 0 for kind vector alone"):
            make((wrong,))
    schema = make((Field("user", Kind.ID, vocab_size=3), Field("caption", Kind.VECTOR, size=2)))
    assert Schema.from_dict(schema.to_dict()) == schema
    assert schema.offsets == {"user": 0}
