"""Rankers with sequences: every pool under every model, tasks apart, id dropout, labels of the candidate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlen.models import DLEN, MRAN, PLE, MMoE, SingleTask
from dlen.models.named import Named
from dlen.nn.id_dropout import IdDropout
from dlen.nn.sequences import LastPool, MeanPool, MultiHeadTargetAttention, SequencePool, TargetAttention
from tests.helpers import WITH_SEQUENCES, make_batch, make_schema

POOLS = [MeanPool, LastPool, TargetAttention, MultiHeadTargetAttention]
SCHEMA = make_schema(fields=WITH_SEQUENCES)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("model", [MMoE, PLE, DLEN, MRAN, SingleTask])
def test_every_row_is_predicted_by_itself(model: type[Named], pool: type[SequencePool]) -> None:
    torch.manual_seed(0)
    made, batch = model(SCHEMA, embedding_dim=4, sequence=pool).eval(), make_batch(SCHEMA, 9)
    features = made.features(batch)
    assert features.spec.fields[:3] == ("watched", "watched_how", "searches")
    of_empty = features.field("watched")[batch.sequences[0].lengths == 0]
    assert len(of_empty)
    assert not of_empty.any()
    made(batch).log_p.sum().backward()
    assert all(p.grad is not None for p in made.parameters())


def test_private_vectors_keep_the_tasks_apart() -> None:
    """No parameter of a sequence's pool, and no vector of its ids, gets a gradient from two tasks."""
    torch.manual_seed(0)
    model, batch = SingleTask(SCHEMA, embedding_dim=4), make_batch(SCHEMA, 9)
    log_p = model(batch).log_p
    touched = []
    for task in range(len(SCHEMA.tasks)):
        model.zero_grad()
        log_p[:, task].sum().backward(retain_graph=True)
        assert model.sequences is not None
        gradients: list[Tensor] = [
            p.grad if p.grad is not None else torch.zeros(1) for p in model.sequences.parameters()
        ]
        table = model.embedding.weight.grad
        assert table is not None
        columns = table.to_dense()[:, : model.embedding.dim].view(len(table), len(SCHEMA.tasks), -1)
        assert set(columns.abs().sum((0, 2)).nonzero().flatten().tolist()) == {task}
        touched.append({i for i, g in enumerate(gradients) if g.any()})
    assert all(touched)
    assert not touched[0] & touched[1] | touched[0] & touched[2] | touched[1] & touched[2]


@pytest.mark.parametrize("pool", [TargetAttention, MultiHeadTargetAttention])
def test_attention_looks_at_the_candidate(pool: type[SequencePool]) -> None:
    """With another candidate the history is pooled differently, and without one by mean."""
    torch.manual_seed(0)
    model, batch = MMoE(SCHEMA, embedding_dim=4, sequence=pool).eval(), make_batch(SCHEMA, 30)
    with torch.no_grad():
        model.embedding.weight.mul_(40)  # vectors as far apart as after training
    before = model.features(batch)
    batch.ids[:, 1] = torch.where(batch.ids[:, 1] == SCHEMA.offsets["item"], 1, 0) + SCHEMA.offsets["item"]
    after = model.features(batch)
    assert not torch.allclose(before.field("watched"), after.field("watched"), atol=1e-3)
    assert torch.equal(before.field("searches"), after.field("searches"))
    mean = MMoE(SCHEMA, embedding_dim=4, sequence=MeanPool).eval()
    mean.embedding.load_state_dict(model.embedding.state_dict())
    torch.testing.assert_close(mean.features(batch).field("searches"), after.field("searches"))


def test_dropout_of_ids_reaches_the_lists_that_share_them() -> None:
    """Rare items become unknown in the history as well; ids that are never rare stay."""
    counts = torch.ones(SCHEMA.num_embeddings, dtype=torch.int64)
    counts[SCHEMA.rows("watched_how")] = 1 << 40
    dropout, batch = IdDropout(SCHEMA, counts, k=1.0), make_batch(SCHEMA, 2000)
    torch.manual_seed(0)
    watched, before = dropout(batch).sequences[0].ids, batch.sequences[0].ids
    changed = watched != before
    assert torch.equal(watched[changed], torch.full_like(watched[changed], SCHEMA.offsets["item"]))
    known = before[:, 0] != SCHEMA.offsets["item"]
    assert abs(float(changed[known, 0].double().mean()) - 0.5) < 0.05
    assert not changed[:, 1].any()


def test_a_factory_of_ones_own() -> None:
    def make(dim: int, lists: int, targets: list[int]) -> SequencePool:
        return MeanPool(dim, lists, targets)

    model = MMoE(SCHEMA, embedding_dim=4, sequence=make)
    assert model(make_batch(SCHEMA, 3)).log_p.shape == (3, 3)
