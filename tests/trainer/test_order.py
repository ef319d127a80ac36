from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from disentangled.trainer.mixture import SourceSize
from disentangled.trainer.order import GROUP_SAMPLES, SampleOrder, order_of_sources, rank_slice

SHARDS = [np.array([30, 0, 50]), np.array([7]), np.array([400, 100, 13])]
SHARES = np.array([0.25, 0.25, 0.5])


def order_of(size: int, seed: int = 1) -> SampleOrder:
    return SampleOrder([np.array([size])], None, seed)


def epochs_of_sources(order: SampleOrder, num_samples: int) -> list[NDArray[np.int64]]:
    """For each source of SHARDS its windows in the order they come, numbered within the source."""
    windows = order.windows(np.arange(num_samples))
    sizes = np.array([shards.sum() for shards in SHARDS])
    firsts = np.cumsum(sizes) - sizes
    return [
        windows[(windows >= first) & (windows < first + size)] - first
        for first, size in zip(firsts, sizes, strict=True)
    ]


def test_every_window_comes_once_an_epoch_in_another_order() -> None:
    size = 1000
    epochs = order_of(size).windows(np.arange(5 * size)).reshape(5, size)
    assert all(np.array_equal(np.sort(epoch), np.arange(size)) for epoch in epochs)
    for first in range(5):
        for second in range(first):
            assert np.mean(epochs[first] == epochs[second]) < 0.01


def test_order_follows_the_seed() -> None:
    samples = np.arange(1000)
    one, two = (order_of(1000, seed).windows(samples) for seed in (1, 2))
    assert np.array_equal(one, order_of(1000).windows(samples))
    assert np.mean(one == two) < 0.01


def test_order_needs_nothing_before_a_sample() -> None:
    # an epoch's middle, billions of samples into a run, alone and as part of a longer request
    size, start = 3_000_000_019, 7_500_000_000
    block = order_of(size, 5).windows(np.arange(start, start + 4096))
    assert np.array_equal(order_of(size, 5).windows(np.array([start + 77])), block[77:78])
    assert block.min() >= 0 and block.max() < size and len(set(block.tolist())) == 4096


@pytest.mark.parametrize("block_shards", [0, 2])
def test_kept_groups_change_nothing(block_shards: int) -> None:
    order = SampleOrder(SHARDS, SHARES, 3, block_shards)
    samples = np.arange(3 * GROUP_SAMPLES - 100, 3 * GROUP_SAMPLES + 200)
    expected = order.compute_windows(samples)
    apart = [order.windows(samples[start : start + 50]) for start in range(0, 300, 50)]
    assert np.array_equal(np.concatenate(apart), expected)
    assert np.array_equal(order.windows(samples[[5, 250, 7]]), expected[[5, 250, 7]])


@pytest.mark.parametrize("block_shards", [0, 1, 2, 5])
def test_every_source_has_epochs_of_its_own(block_shards: int) -> None:
    sources = epochs_of_sources(SampleOrder(SHARDS, SHARES, 1, block_shards), 4200)
    for windows, shards in zip(sources, SHARDS, strict=True):
        size = int(shards.sum())
        assert windows.size // size >= 4
        epochs = windows[: windows.size // size * size].reshape(-1, size)
        assert all(np.array_equal(np.sort(epoch), np.arange(size)) for epoch in epochs)
        if size > 20:
            assert np.mean(epochs[0] == epochs[1]) < 0.1


def test_block_shuffle_stays_within_a_group_of_shards() -> None:
    counts = np.full(40, 25)
    order = SampleOrder([counts], None, 1, block_shards=4)
    shards = order.windows(np.arange(2 * 1000)).reshape(2, 10, 100) // 25
    for epoch in shards:
        groups = [tuple(np.unique(block).tolist()) for block in epoch]
        assert all(len(group) == 4 for group in groups)
        assert sorted(shard for group in groups for shard in group) == list(range(40))
        assert all(len(np.unique(block[:25])) > 1 for block in epoch)  # mixed within a group
    assert {tuple(np.unique(block)) for block in shards[0]} != {tuple(np.unique(block)) for block in shards[1]}


def test_no_window_is_an_error() -> None:
    with pytest.raises(ValueError, match="no window"):
        order_of(0)


def test_source_of_a_share_but_no_window_is_an_error() -> None:
    with pytest.raises(ValueError, match="no window"):
        SampleOrder([np.array([3]), np.array([0])], np.array([0.5, 0.5]), 1)


def make_order(weights: tuple[float, float], **changes: Any) -> SampleOrder:
    sources = [
        (SourceSize("a", weights[0], 9000, 90), np.array([90])),
        (SourceSize("b", weights[1], 1000, 10), np.array([10])),
    ]
    keywords = {"alpha": 1.0, "max_epochs": 0.0, "num_samples": 1000, "seed": 1} | changes
    return order_of_sources(sources, **keywords)


def test_sources_that_nothing_tells_apart_are_one() -> None:
    windows = make_order((1.0, 1.0)).windows(np.arange(100))
    assert np.array_equal(np.sort(windows), np.arange(100))


@pytest.mark.parametrize(("weights", "changes", "share"), [((1.0, 1.0), {"alpha": 0.0}, 0.5), ((1.0, 9.0), {}, 0.5)])
def test_alpha_and_weights_make_a_mixture(weights: tuple[float, float], changes: dict[str, Any], share: float) -> None:
    windows = make_order(weights, **changes).windows(np.arange(1000))
    assert np.mean(windows >= 90) == pytest.approx(share, abs=0.002)


def test_cap_is_minded_without_a_mixture_too() -> None:
    with pytest.raises(ValueError, match=r"data\.max_epochs"):
        make_order((1.0, 1.0), max_epochs=5.0)


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
