"""The order of samples: a pure function of the seed and the global sample index.

What: sample g of a run is window `permute(g mod n; epoch g div n)` of n windows. The permutation is a keyed Feistel
network with cycle walking, so no index array exists and the only state of the data is one integer, consumed_samples.
Ranks slice a step's samples as g = consumed + accumulation * (ranks * micro) + rank * micro + k: any number of ranks
and any accumulation sees the same set of samples in a step.
Used by: trainer/batch.py. Tested by tests/trainer/test_order.py.
Not here: mixtures of several sources.
"""

import numpy as np
from numpy.typing import NDArray

NUM_ROUNDS = 6


def windows_of_samples(samples: NDArray[np.int64], num_windows: int, seed: int) -> NDArray[np.int64]:
    """Window of each global sample index: every window once per epoch, in another order each epoch."""
    if num_windows < 1:
        raise ValueError("the shards hold no window: use more text or a shorter data.sequence_length")
    epochs, places = np.divmod(samples, num_windows)
    windows = np.empty_like(samples)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        windows[chosen] = permute(places[chosen], num_windows, _mix(_mix(seed) ^ int(epoch)))
    return windows


def rank_slice(consumed: int, accumulation: int, rank: int, world_size: int, micro_sequences: int) -> NDArray[np.int64]:
    """Global sample indices of one micro-batch: number `accumulation` of the step that starts at `consumed`."""
    start = consumed + (accumulation * world_size + rank) * micro_sequences
    return np.arange(start, start + micro_sequences, dtype=np.int64)


def permute(places: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """A permutation of range(size), applied to `places`: a Feistel network on the next even number of bits."""
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    walking = np.arange(places.size)
    values = places.astype(np.uint64)
    while walking.size:  # a value outside the range is sent through again: at most four times as many values as places
        values[walking] = _feistel(values[walking], half_bits, key)
        walking = walking[values[walking] >= size]
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half_bits: int, key: int) -> NDArray[np.uint64]:
    low_mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> np.uint64(half_bits), values & low_mask
    for number in range(NUM_ROUNDS):
        round_key = np.uint64(_mix(key + number))
        left, right = right, left ^ (_mix_array(right ^ round_key) & low_mask)
    return (left << np.uint64(half_bits)) | right


def _mix_array(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The 64-bit finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _mix(value: int) -> int:
    stepped = np.array([(value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    return int(_mix_array(stepped)[0])
