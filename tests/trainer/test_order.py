import numpy as np
import pytest

from disentangled.trainer.order import permute, rank_slice, windows_of_samples

SIZES = [1, 2, 5, 10, 37, 1000, 65_537]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", [0, 1, 0xFFFF_FFFF_FFFF_FFFF])
def test_permute_is_a_bijection(size: int, key: int) -> None:
    permuted = permute(np.arange(size), size, key)
    assert np.array_equal(np.sort(permuted), np.arange(size))


def test_permute_of_some_places_is_part_of_the_whole() -> None:
    whole = permute(np.arange(1000), 1000, 7)
    places = np.array([999, 0, 5, 5, 500])
    assert np.array_equal(permute(places, 1000, 7), whole[places])


def test_permute_spreads_places_evenly_over_windows() -> None:
    # a 32 x 32 table of (where from, where to); for a random permutation chi-square / df is 1 with a deviation of 0.046
    size, cells = 102_400, 32
    windows = permute(np.arange(size), size, 3)
    table = np.zeros((cells, cells))
    np.add.at(table, (np.arange(size) * cells // size, windows * cells // size), 1)
    expected = size / cells**2
    chi_square = ((table - expected) ** 2 / expected).sum() / (cells - 1) ** 2
    assert 1 - 4 * 0.046 < chi_square < 1 + 4 * 0.046


@pytest.mark.parametrize("lag", [1, 2, 3, 64])
def test_permute_leaves_no_correlation_between_neighbours(lag: int) -> None:
    size = 100_003
    windows = permute(np.arange(size), size, 11).astype(float)
    correlation = np.corrcoef(windows[:-lag], windows[lag:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(size)
    near = np.mean(np.abs(np.diff(windows)) < size / 1000)
    assert near == pytest.approx(2 / 1000, abs=4 * np.sqrt(2 / 1000 / size))


def test_windows_of_samples_gives_every_window_once_an_epoch_in_another_order() -> None:
    size = 1000
    epochs = windows_of_samples(np.arange(5 * size), size, seed=1).reshape(5, size)
    assert all(np.array_equal(np.sort(epoch), np.arange(size)) for epoch in epochs)
    for first in range(5):
        for second in range(first):
            assert np.mean(epochs[first] == epochs[second]) < 0.01


def test_windows_of_samples_follow_the_seed() -> None:
    samples = np.arange(1000)
    one, two = (windows_of_samples(samples, 1000, seed) for seed in (1, 2))
    assert np.array_equal(one, windows_of_samples(samples, 1000, 1))
    assert np.mean(one == two) < 0.01


def test_windows_of_samples_need_nothing_before_them() -> None:
    # an epoch's middle, billions of samples into a run, alone and as part of a longer request
    size, start = 3_000_000_019, 7_500_000_000
    block = windows_of_samples(np.arange(start, start + 4096), size, seed=5)
    assert np.array_equal(windows_of_samples(np.array([start + 77]), size, seed=5), block[77:78])
    assert block.min() >= 0 and block.max() < size and len(set(block.tolist())) == 4096


def test_windows_of_samples_of_no_window_is_an_error() -> None:
    with pytest.raises(ValueError, match="no window"):
        windows_of_samples(np.arange(4), 0, seed=1)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_rank_slice_gives_the_same_samples_to_any_number_of_ranks(world_size: int, accumulation: int) -> None:
    global_sequences, consumed = 64, 640
    micro = global_sequences // world_size // accumulation
    slices = [
        rank_slice(consumed, number, rank, world_size, micro)
        for number in range(accumulation)
        for rank in range(world_size)
    ]
    assert np.array_equal(np.concatenate(slices), np.arange(consumed, consumed + global_sequences))
