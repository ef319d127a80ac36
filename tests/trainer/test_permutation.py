import numpy as np
import pytest
from numpy.typing import NDArray

from disentangled.trainer.permutation import permute

SIZES = [1, 2, 5, 10, 37, 1000, 65_537]


def permute_all(places: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    return permute(places, np.full(places.size, size), np.full(places.size, key, dtype=np.uint64))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", [0, 1, 0xFFFF_FFFF_FFFF_FFFF])
def test_permute_is_a_bijection(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permute_all(np.arange(size), size, key)), np.arange(size))


def test_permute_of_some_places_is_part_of_the_whole() -> None:
    whole = permute_all(np.arange(1000), 1000, 7)
    places = np.array([999, 0, 5, 5, 500])
    assert np.array_equal(permute_all(places, 1000, 7), whole[places])


def test_permute_takes_a_size_and_a_key_for_each_place() -> None:
    places, sizes, keys = np.array([3, 3, 36, 0]), np.array([5, 1000, 37, 1]), np.array([1, 2, 3, 4], dtype=np.uint64)
    alone = [
        permute_all(np.array([place]), size, key)[0]
        for place, size, key in zip(places.tolist(), sizes.tolist(), keys.tolist(), strict=True)
    ]
    assert permute(places, sizes, keys).tolist() == alone


def test_permute_spreads_places_evenly_over_windows() -> None:
    # a 32 x 32 table of (where from, where to); for a random permutation chi-square / df is 1 with a deviation of 0.046
    size, cells = 102_400, 32
    windows = permute_all(np.arange(size), size, 3)
    table = np.zeros((cells, cells))
    np.add.at(table, (np.arange(size) * cells // size, windows * cells // size), 1)
    expected = size / cells**2
    chi_square = ((table - expected) ** 2 / expected).sum() / (cells - 1) ** 2
    assert 1 - 4 * 0.046 < chi_square < 1 + 4 * 0.046


@pytest.mark.parametrize("lag", [1, 2, 3, 64])
def test_permute_leaves_no_correlation_between_neighbours(lag: int) -> None:
    size = 100_003
    windows = permute_all(np.arange(size), size, 11).astype(float)
    correlation = np.corrcoef(windows[:-lag], windows[lag:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(size)
    near = np.mean(np.abs(np.diff(windows)) < size / 1000)
    assert near == pytest.approx(2 / 1000, abs=4 * np.sqrt(2 / 1000 / size))
