"""Exact copies among all documents: every one but the first, in the order of the inputs.

Documents are the same if 128 bits of their texts' hashes are: among 10**10 different ones, two agree with a chance of
10**-19. Memory, in one process, is about 48 bytes a document.

Used by: gather_scans.py. Tested by: tests/data_prep/test_find_duplicates.py.
Not here: near-duplicates (near_duplicates.py).
"""

import numpy as np
import numpy.typing as npt


def find_duplicates(keys: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return (the rows of keys [num_documents, 2], sorted, that an earlier row equals; the first row each equals)."""
    # stable, so the first of equal rows comes first
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    is_copy = np.zeros(len(keys), dtype=np.bool_)
    is_copy[1:] = np.all(keys[order[1:]] == keys[order[:-1]], axis=1)
    firsts = order[~is_copy][np.cumsum(~is_copy)[is_copy] - 1]
    copies = order[is_copy]
    by_row = np.argsort(copies)
    return copies[by_row], firsts[by_row]
