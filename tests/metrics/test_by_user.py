"""GAUC and NDCG against scikit-learn, user by user."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score, roc_auc_score

from dlen.metrics.by_user import ByUser, graded_ndcg, rank_by_user


def draw(rows: int, users: int, levels: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, labels, and users with very different numbers of rows."""
    rng = np.random.default_rng(seed)
    who = (users * rng.random(rows) ** 3).astype(np.int64) * 7 - 20
    return rng.integers(0, levels, rows) / levels, (rng.random(rows) < 0.2).astype(np.int64), who


def slow(scores: np.ndarray, labels: np.ndarray, users: np.ndarray, k: int) -> tuple[float, float, int, int]:
    total, weight, gains, left_out = 0.0, 0, [], 0
    for user in np.unique(users):
        s, y = scores[users == user], labels[users == user]
        if 0 < y.sum() < len(y):
            total += len(y) * roc_auc_score(y, s)
            weight += len(y)
        else:
            left_out += 1
        if y.sum():
            gains.append(1.0 if len(y) == 1 else ndcg_score(y[None], s[None], k=k))
    return total / weight, float(np.mean(gains)), len(np.unique(users)), left_out


@pytest.mark.slow
@pytest.mark.parametrize("levels", [2, 7, 10_000])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_equals_scikit_learn_user_by_user(levels: int, k: int) -> None:
    scores, labels, users = draw(800, 60, levels, seed=levels + k)
    found = rank_by_user(torch.from_numpy(scores), torch.from_numpy(labels), torch.from_numpy(users), k)
    gauc, ndcg, number, left_out = slow(scores, labels, users, k)
    assert (found.users, found.left_out) == (number, left_out)
    assert left_out > 0
    assert found.gauc == pytest.approx(gauc, abs=1e-12)
    assert found.ndcg == pytest.approx(ndcg, abs=1e-12)


def test_the_order_of_rows_does_not_matter() -> None:
    scores, labels, users = (torch.from_numpy(x) for x in draw(500, 20, 5, seed=0))
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    one, other = rank_by_user(scores, labels, users), rank_by_user(scores[order], labels[order], users[order])
    assert one.gauc == pytest.approx(other.gauc, abs=1e-12)
    assert one.ndcg == pytest.approx(other.ndcg, abs=1e-12)


def test_without_a_user_who_has_both_classes() -> None:
    found = rank_by_user(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1, 1, 0]), torch.tensor([4, 4, 5]))
    assert math.isnan(found.gauc)
    assert (found.ndcg, found.users, found.left_out) == (1.0, 2, 2)
    nobody = rank_by_user(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert math.isnan(nobody.gauc)
    assert math.isnan(nobody.ndcg)
    assert nobody.users == 0


def test_batches_and_masks() -> None:
    scores, labels, users = (torch.from_numpy(x) for x in draw(600, 30, 50, seed=3))
    mask = torch.arange(600) % 3 > 0
    metric = ByUser(2)
    for part in torch.arange(600).split(130):
        both = torch.stack([scores[part], -scores[part]], 1)
        masks = torch.stack([torch.ones_like(part), mask[part]], 1)
        metric.update(both, labels[part, None].expand(-1, 2), masks, users[part])
    first, second = metric.compute()
    assert first.gauc == pytest.approx(rank_by_user(scores, labels, users).gauc, abs=1e-6)
    wanted = rank_by_user(-scores[mask], labels[mask], users[mask])
    assert (second.users, second.left_out) == (wanted.users, wanted.left_out)
    assert second.gauc == pytest.approx(wanted.gauc, abs=1e-6)


def test_graded_ndcg_is_scikit_learns() -> None:
    """With tied scores, several gain values, users with one row and a user without gain."""
    generator = torch.Generator().manual_seed(0)
    users = torch.cat([torch.randint(0, 30, (400,), generator=generator), torch.tensor([30, 31, 31])])
    scores = (torch.randn(403, generator=generator) * 3).round() / 3
    gains = torch.randint(0, 4, (403,), generator=generator).float() * 0.5
    gains[users == 31] = 0
    found = graded_ndcg(scores, gains, users)
    assert len(found) == 32
    for user in range(32):
        mine = users == user
        if not gains[mine].any():
            assert torch.isnan(found[user])
            continue
        single = int(mine.sum()) == 1
        wanted = 1.0 if single else ndcg_score(gains[mine][None].numpy(), scores[mine][None].numpy(), k=10)
        assert found[user].item() == pytest.approx(wanted, abs=1e-9)
