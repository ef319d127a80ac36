"""find_duplicates.py against a loop over a set."""

import numpy as np

from disentangled.data_prep.find_duplicates import find_duplicates


def test_copies_are_all_but_the_first_in_order():
    keys = np.random.default_rng(0).integers(0, 12, (400, 2)).astype(np.uint64)
    seen: set[tuple[int, int]] = set()
    expected = []
    for row, key in enumerate(map(tuple, keys.tolist())):
        if key in seen:
            expected.append(row)
        seen.add(key)
    rows, firsts = find_duplicates(keys)
    assert rows.tolist() == expected
    everything = keys.tolist()
    assert firsts.tolist() == [everything.index(everything[row]) for row in expected]


def test_no_documents_have_no_copies():
    assert find_duplicates(np.empty((0, 2), dtype=np.uint64))[0].tolist() == []
    assert find_duplicates(np.array([[1, 2]], dtype=np.uint64))[0].tolist() == []
