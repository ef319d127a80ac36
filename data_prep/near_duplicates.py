"""Near-duplicates among all documents: each that is near an earlier one, in the order of the inputs.

Band by band (sign_text.py), the documents of one key are compared with the first of them, those that are not near it
with the next one, and so on. A document that is found near another takes no further part, so what is left out is near
a document that was kept up to then. The outcome is a function of the signatures in their order and of nothing else.

Memory, in one process: about 70 bytes a document. Signatures and keys stay on the disk and are mapped.
Used by: gather_scans.py. Tested by: tests/data_prep/test_near_duplicates.py.
Not here: exact copies (find_duplicates.py), which are no part of this where both are asked for.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# documents of one key that are compared with the others of it; more than that is a key of boilerplate, and the rest of
# its documents are left to the other bands
MAX_LEADERS = 64
# 64 Ki pairs: 64 MiB of signatures
_BLOCK_PAIRS = 1 << 16
NONE = -1


def find_near_duplicates(
    signatures: Sequence[npt.NDArray[np.uint32]],
    keys: Sequence[npt.NDArray[np.uint64]],
    left_out: npt.NDArray[np.bool_],
    threshold: float,
) -> npt.NDArray[np.int64]:
    """Return for each document the number of the earlier one that it is near to, or NONE.

    signatures and keys are the units', in their order; left_out [num_documents] documents are not looked at.
    """
    repeats = np.full(len(left_out), NONE, dtype=np.int64)
    first_rows = np.cumsum([0, *map(len, signatures)])
    for band in range(len(keys[0]) if keys else 0):
        rows, groups = _group_rows(np.concatenate([unit[band] for unit in keys]), left_out | (repeats != NONE))
        for _ in range(MAX_LEADERS):
            if not len(rows):
                break
            # the first of each group leads it
            is_leader = np.diff(groups, prepend=NONE) != 0
            leaders = rows[np.flatnonzero(is_leader)[np.cumsum(is_leader) - 1]]
            is_near = np.zeros(len(rows), dtype=np.bool_)
            is_near[~is_leader] = _are_near(signatures, first_rows, rows[~is_leader], leaders[~is_leader], threshold)
            repeats[rows[is_near]] = leaders[is_near]
            rows, groups = _drop_lone(rows, groups, ~is_leader & ~is_near)
    return repeats


def _group_rows(
    keys: npt.NDArray[np.uint64], left_out: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows that share their key with another, in the order of keys and then of rows, and their groups."""
    rows = np.flatnonzero(~left_out)
    # stable: within a key, the order of the inputs
    rows = rows[np.argsort(keys[rows], kind="stable")]
    groups = np.cumsum(np.diff(keys[rows], prepend=keys[rows[:1]]) != 0)
    return _drop_lone(rows, groups, np.ones(len(rows), dtype=np.bool_))


def _drop_lone(
    rows: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the kept rows and their groups, without groups of one row."""
    rows, groups = rows[kept], groups[kept]
    is_same = groups[1:] == groups[:-1]
    has_company = np.concatenate((is_same, [False])) | np.concatenate(([False], is_same)) if len(rows) else kept[:0]
    return rows[has_company], groups[has_company]


def _are_near(
    signatures: Sequence[npt.NDArray[np.uint32]],
    first_rows: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    others: npt.NDArray[np.int64],
    threshold: float,
) -> npt.NDArray[np.bool_]:
    """Return whether the signatures of rows[i] and others[i] agree in the share threshold or more."""
    near = np.zeros(len(rows), dtype=np.bool_)
    for start in range(0, len(rows), _BLOCK_PAIRS):
        block = slice(start, start + _BLOCK_PAIRS)
        pairs = [take_rows(signatures, first_rows, chosen[block]) for chosen in (rows, others)]
        near[block] = np.mean(pairs[0] == pairs[1], axis=1) >= threshold
    return near


def take_rows(
    units: Sequence[npt.NDArray[Any]], first_rows: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """Return the rows [num_rows, width] of arrays that lie one after another, beginning at first_rows."""
    taken = np.empty((len(rows), units[0].shape[1] if units else 0), dtype=units[0].dtype if units else np.int64)
    order = np.argsort(rows, kind="stable")
    borders = np.searchsorted(rows[order], first_rows)
    # a unit is looked at only if rows are of it: there may be thousands
    for unit in np.flatnonzero(np.diff(borders)).tolist():
        chosen = order[borders[unit] : borders[unit + 1]]
        taken[chosen] = units[unit][rows[chosen] - first_rows[unit]]
    return taken
