"""Model sizes, counted by hand."""

from __future__ import annotations

from functools import partial

from dlen.models import MMoE
from dlen.models.interactions import CrossInteraction
from dlen.schema import Field, Kind
from dlen.training.size import size_figures
from tests.helpers import FIELDS, make_schema


def test_parameters_and_operations_of_a_small_mmoe() -> None:
    schema = make_schema()
    model = MMoE(schema, embedding_dim=3, num_experts=2, expert=(8, 6), tower=(4,), interaction=None)
    width, tasks, experts = 4 * 3 + 2, 3, 2
    layers = [(width, 8), (8, 6)] * experts + [(6, 4), (4, 1)] * tasks
    gates = width * tasks * experts
    figures = size_figures(model.train())
    assert figures["model/dense_parameters"] == sum(a * b + b for a, b in layers) + gates
    assert figures["model/embedding_parameters"] == schema.num_embeddings * (3 + 4)  # three first-order numbers, padded
    mixing = tasks * experts * 6
    assert figures["model/flops_per_row"] == 2 * (sum(a * b for a, b in layers) + gates + mixing)
    assert model.training


def test_projected_vectors_count_as_well() -> None:
    dense, wide = (
        MMoE(make_schema(fields=fields), embedding_dim=4, num_experts=2, expert=(8,), tower=(4,), interaction=None)
        for fields in (FIELDS, (*FIELDS, Field("caption", Kind.VECTOR, "item", size=30)))
    )
    more = size_figures(wide)["model/flops_per_row"] - size_figures(dense)["model/flops_per_row"]
    assert more == 2 * (30 * 4 + 4 * (2 * 8 + 3 * 2))  # the projection, and 4 more inputs of 2 experts and 3 gates


def test_an_interaction_counts_as_well() -> None:
    schema, width = make_schema(), 4 * 3 + 2
    before, after = (
        size_figures(MMoE(schema, embedding_dim=3, interaction=made))
        for made in (None, partial(CrossInteraction, layers=3, rank=5))
    )
    more = {key: after[key] - before[key] for key in before}
    assert more["model/dense_parameters"] == 3 * (2 * width * 5 + width)
    assert more["model/embedding_parameters"] == 0
    assert more["model/flops_per_row"] == 3 * 2 * 2 * width * 5
