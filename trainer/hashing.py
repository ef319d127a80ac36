"""Counter-based hashes in NumPy: the randomness of the order of samples and of masks, drawn on the host.

What: splitmix64's finaliser (Steele, Lea, Flood, OOPSLA 2014) as a hash of 64-bit words. The counter generator of
kernels/counter_rng.py serves what is drawn on devices; this one takes a tenth of its time on a core and, like it, has
no state: a value depends on what it is for and on nothing else.
Used by: trainer/permutation.py, order.py, masking.py. Tested by: tests/trainer/test_hashing.py.
"""

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
GOLDEN_32 = np.uint32(0x9E3779B9)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit words whose every output bit depends on every input bit."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def mix_32(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The same for 32-bit words, in a quarter of the time (MurmurHash3's finaliser); `values` is overwritten."""
    values ^= values >> np.uint32(16)
    values *= np.uint32(0x85EBCA6B)
    values ^= values >> np.uint32(13)
    values *= np.uint32(0xC2B2AE35)
    values ^= values >> np.uint32(16)
    return values


def hash_words(*words: int | NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One hash of each broadcast tuple of words, in order: hash_words(a, b) is not hash_words(b, a). At least 1-d."""
    value = np.zeros(1, dtype=np.uint64)
    for word in words:
        number = np.asarray(word & 0xFFFFFFFFFFFFFFFF if isinstance(word, int) else word).astype(np.uint64)
        value = mix((value ^ number) + GOLDEN)
    return value
