"""The user-item match against a double loop over fields and factors."""

from __future__ import annotations

import pytest
import torch

from dlen.nn.match import Match


def test_match_is_the_weighted_product_of_both_sides() -> None:
    torch.manual_seed(0)
    match = Match([0, 3], [1, 2], dim=4, factors=3, outputs=2)
    match.weight.data.normal_()
    x = torch.randn(5, 4, 4)
    found = match(x)
    for row, vectors in enumerate(x):
        for output in range(2):
            wanted = 0.0
            for factor in range(3):
                sides = []
                for fields in (match.users, match.items):
                    sides.append(sum((vectors[f] @ match.projection[f, :, factor]).item() for f in fields))
                wanted += match.weight[factor, output].item() * sides[0] * sides[1]
            assert found[row, output].item() == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("users", "items", "factors"), [([], [0], 2), ([0], [], 2), ([0], [1], 0)])
def test_a_match_needs_two_sides(users: list[int], items: list[int], factors: int) -> None:
    with pytest.raises(ValueError, match="match needs a factor and fields on both sides"):
        Match(users, items, dim=4, factors=factors, outputs=1)
