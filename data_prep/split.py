"""Which split a document belongs to: a pure function of its text, the seed and its source's threshold.

Neither file order, nor the place of a document, nor what is added later moves it, and exact copies of a document fall
on the same side, so no validation document is also trained on word for word. A floor, the least number of different
validation documents in a source, raises that source's threshold to the hash that gives as many.

Used by: scan_unit.py, encode_unit.py, prepare_text.py. Tested by: tests/data_prep/test_split.py.
Not here: near-duplicates.
"""

import numpy as np
import numpy.typing as npt
import xxhash


def split_hash(text: bytes, seed: int) -> int:
    """Return what decides a document's split, of its text in UTF-8: it is for validation if below the threshold."""
    return xxhash.xxh3_64_intdigest(text, seed=seed)


def validation_threshold(validation_fraction: float) -> int:
    """Return the threshold without a floor: fraction * 2**64."""
    return int(validation_fraction * 2.0**64)


def raise_to_floor(threshold: int, floor: int, smallest_hashes: npt.NDArray[np.uint64]) -> int:
    """Return the threshold below which lie `floor` different hashes of a source, or all it has, at least.

    smallest_hashes [<= floor], sorted, are the source's smallest different hashes.
    """
    chosen = smallest_hashes[:floor]
    # 2**64 - 1: what a uint64 holds; it leaves out one hash that no text of this world has
    return max(threshold, min(int(chosen[-1]) + 1, (1 << 64) - 1)) if len(chosen) else threshold
