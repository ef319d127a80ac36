"""A keyed permutation of range(n) without an array of n numbers.

What: a Feistel network over the next even number of bits, walked again for values outside the range (Black and Rogaway,
CT-RSA 2002, "cycle walking"). Place, size and key are arrays, so one call serves many permutations of any size.
Used by: trainer/order.py. Tested by: tests/trainer/test_permutation.py.
"""

import numpy as np
from numpy.typing import NDArray

from disentangled.trainer.hashing import GOLDEN, mix

NUM_ROUNDS = 6


def permute(places: NDArray[np.int64], sizes: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Element i: where the permutation of range(sizes[i]) with key keys[i] sends places[i] (below sizes[i] < 2^53).

    All three [N]. Takes at most four times as many rounds as there are places, on average.
    """
    bits = np.frexp((sizes - 1).astype(np.float64))[1]
    half_bits = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    limits = sizes.astype(np.uint64)
    values = _feistel(places.astype(np.uint64), half_bits, keys)
    walking = np.flatnonzero(values >= limits)
    while walking.size:
        values[walking] = _feistel(values[walking], half_bits[walking], keys[walking])
        walking = walking[values[walking] >= limits[walking]]
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half_bits: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    low_mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & low_mask
    round_keys = keys.copy()
    for _ in range(NUM_ROUNDS):
        round_keys += GOLDEN
        left, right = right, left ^ (mix(right ^ mix(round_keys)) & low_mask)
    return (left << half_bits) | right
