"""The seeded order of rows is a bijection and looks random."""

from __future__ import annotations

import numpy as np
import pytest

from dlen.data.shuffle import permute


def order(size: int, seed: int = 0, epoch: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return permute(np.arange(size), size, seed, epoch)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 1000, 4095, 4096, 4097, 100_003])
def test_every_row_occurs_once(size: int) -> None:
    np.testing.assert_array_equal(np.sort(order(size, 3, 1)), np.arange(size))


def test_each_place_can_be_asked_alone() -> None:
    whole = order(1000, 5, 2)
    places = np.array([999, 0, 17, 17, 500])
    np.testing.assert_array_equal(permute(places, 1000, 5, 2), whole[places])
    np.testing.assert_array_equal(places, [999, 0, 17, 17, 500])


def test_no_places_give_no_rows() -> None:
    assert permute(np.zeros(0, np.int64), 10, 0, 0).shape == (0,)


@pytest.mark.parametrize(("a", "b"), [((0, 0), (0, 1)), ((0, 0), (1, 0)), ((0, 1), (1, 0)), ((1, 2), (2, 1))])
def test_seed_and_epoch_change_the_order(a: tuple[int, int], b: tuple[int, int]) -> None:
    same = np.mean(order(10_000, *a) == order(10_000, *b))
    assert same < 0.002  # two random orders agree in one place on average


def test_same_seed_and_epoch_give_the_same_order() -> None:
    np.testing.assert_array_equal(order(1000, 7, 3), order(1000, 7, 3))


@pytest.mark.parametrize("size", [4096, 5000, 65_537, 100_003])
def test_place_says_nothing_about_row(size: int) -> None:
    places = np.arange(size)
    for epoch in range(5):
        rows = order(size, 11, epoch)
        assert abs(np.corrcoef(places, rows)[0, 1]) < 5 / np.sqrt(size)
        assert abs(np.corrcoef(rows[1:], rows[:-1])[0, 1]) < 5 / np.sqrt(size)


@pytest.mark.parametrize("size", [4096, 100_003])
def test_coarse_bins_are_evenly_filled(size: int) -> None:
    bins = 16
    table = np.zeros((bins, bins))
    np.add.at(table, (np.arange(size) * bins // size, order(size, 2, 9) * bins // size), 1)
    expected = size / bins**2
    chi = ((table - expected) ** 2 / expected).sum()
    freedom = (bins - 1) ** 2
    assert abs(chi - freedom) < 6 * np.sqrt(2 * freedom)


def test_a_small_set_reaches_all_its_orders() -> None:
    seen = {tuple(order(3, 0, epoch)) for epoch in range(200)}
    assert len(seen) == 6
