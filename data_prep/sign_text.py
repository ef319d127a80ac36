"""Signatures of texts by which near-duplicates are found: MinHash of what a text is made of, and keys to look up by.

A text, in lower case and without blanks and line ends, is taken as the set of its shingles: all runs of 12 bytes of
UTF-8. Bytes and not words or characters, so that no language is favoured: 12 are two words of English, four characters
of Chinese. The share of equal numbers in two signatures estimates the Jaccard similarity of the sets, with a standard
error of 0.035 at 0.8 (arXiv 2107.06499 section 4.2 does the same with words).

Signatures are cut into bands. Texts that agree on a whole band are compared, others never: the bands are as long as
leaves a chance of 0.01 at most to miss a pair at the threshold.

Shapes: signatures [num_texts, 128] uint32, keys [num_bands, num_texts] uint64.
Used by: scan_unit.py, near_duplicates.py. Tested by: tests/data_prep/test_sign_text.py.
Not here: what is compared with what (near_duplicates.py).
"""

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

# one thread in each process, as everywhere in data_prep; read when rensa first makes its threads
os.environ.setdefault("RAYON_NUM_THREADS", "1")
import rensa

# 128: the standard error above; 512 bytes a text
NUM_HASHES = 128
SHINGLE_BYTES = 12
MAX_MISSED = 0.01
_SEED = 1
_WHITE_SPACE = b" \t\r\n"
# odd 64-bit numbers of mixed bits (the golden ratio; splitmix64's)
_FACTORS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SIGNING = f"MinHash of {NUM_HASHES}, {SHINGLE_BYTES} bytes, rensa {rensa.RMinHash.ALGORITHM_VERSION}"


def sign_texts(texts: Sequence[str]) -> npt.NDArray[np.uint32]:
    """Return the signature of each text."""
    shingles = [_hash_shingles(text) for text in texts]
    ends = np.cumsum([0, *map(len, shingles)]).astype(np.uint64)
    flat = np.concatenate([np.empty(0, np.uint64), *shingles])
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(flat, ends, NUM_HASHES, _SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(-1, NUM_HASHES)


def band_shape(threshold: float) -> tuple[int, int]:
    """Return (bands, numbers in a band) for pairs of this similarity and more."""
    for length in range(NUM_HASHES, 1, -1):
        num_bands = NUM_HASHES // length
        if (1 - threshold**length) ** num_bands <= MAX_MISSED:
            return num_bands, length
    return NUM_HASHES, 1


def band_keys(signatures: npt.NDArray[np.uint32], threshold: float) -> npt.NDArray[np.uint64]:
    """Return a key of every band of every signature: equal where the band's numbers are."""
    num_bands, length = band_shape(threshold)
    keys = np.zeros((num_bands, len(signatures)), dtype=np.uint64)
    for band in range(num_bands):
        for place in range(band * length, (band + 1) * length):
            keys[band] = _mix(keys[band] ^ signatures[:, place])
    return keys


def _hash_shingles(text: str) -> npt.NDArray[np.uint64]:
    """Return a hash of each shingle; of a text shorter than one, of the whole text."""
    utf8 = text.lower().encode().translate(None, _WHITE_SPACE)
    num_shingles = len(utf8) - SHINGLE_BYTES + 1
    if num_shingles < 1:
        return np.array([xxhash.xxh3_64_intdigest(utf8)], dtype=np.uint64)
    # two overlapping words of 8 bytes cover a shingle
    first = np.ndarray(num_shingles, "<u8", utf8, 0, (1,))
    second = np.ndarray(num_shingles, "<u8", utf8, SHINGLE_BYTES - 8, (1,))
    return _mix(first * np.uint64(_FACTORS[0]) + second)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return values spread over 64 bits, one to one."""
    mixed = values + np.uint64(_FACTORS[0])
    for factor, shift in zip(_FACTORS[1:], (30, 27), strict=True):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed
