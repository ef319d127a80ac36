"""near_duplicates.py against a loop over all pairs, and unit_signatures.py."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from disentangled.data_prep import near_duplicates
from disentangled.data_prep.near_duplicates import NONE, find_near_duplicates, take_rows
from disentangled.data_prep.sign_text import NUM_HASHES, band_keys, sign_texts
from disentangled.data_prep.unit_signatures import SignatureWriter, map_signatures, remove_signatures
from disentangled.data_prep.work_units import Unit

THRESHOLD = 0.8


def make_families(num_families: int = 30, seed: int = 0) -> npt.NDArray[np.uint32]:
    """Return signatures of families that agree in all but 0 to 40 numbers with their founder, shuffled."""
    draw = np.random.default_rng(seed)
    rows = []
    for founder in draw.integers(0, 1 << 32, (num_families, NUM_HASHES)):
        for _ in range(draw.integers(1, 6)):
            row = founder.copy()
            changed = draw.choice(NUM_HASHES, draw.integers(0, 41), replace=False)
            row[changed] = draw.integers(0, 1 << 32, len(changed))
            rows.append(row)
    return draw.permutation(np.array(rows).astype(np.uint32))


def search(signatures: npt.NDArray[np.uint32], cuts: list[int], left_out: list[int] | None = None) -> list[int]:
    units = np.split(signatures, cuts)
    is_out = np.zeros(len(signatures), dtype=np.bool_)
    is_out[left_out or []] = True
    return find_near_duplicates(units, [band_keys(unit, THRESHOLD) for unit in units], is_out, THRESHOLD).tolist()


def similarity(signatures: npt.NDArray[np.uint32], row: int, other: int) -> float:
    return float(np.mean(signatures[row] == signatures[other]))


def test_what_is_left_out_is_near_an_earlier_one_and_what_is_kept_is_not():
    signatures = make_families()
    repeats = search(signatures, [])
    kept = [row for row, other in enumerate(repeats) if other == NONE]
    assert 30 <= len(kept) < len(signatures) - 10
    for row, other in enumerate(repeats):
        if other != NONE:
            assert other < row
            assert similarity(signatures, row, other) >= THRESHOLD
    missed = sum(similarity(signatures, a, b) >= THRESHOLD for a in kept for b in kept if a < b)
    pairs = sum(similarity(signatures, a, b) >= THRESHOLD for a in range(len(repeats)) for b in range(a))
    assert missed <= 0.02 * pairs


@pytest.mark.parametrize("cuts", [[1], [10, 10, 50], list(range(0, 60, 3))])
def test_units_make_no_difference(cuts: list[int]):
    signatures = make_families(seed=1)
    assert search(signatures, cuts) == search(signatures, [])


def test_documents_left_out_before_are_not_looked_at():
    signatures = np.repeat(make_families(1)[:1], 4, axis=0)
    assert search(signatures, [], []) == [NONE, 0, 0, 0]
    assert search(signatures, [2], [0, 2]) == [NONE, NONE, NONE, 1]
    assert search(signatures[:0], []) == []


def test_key_of_many_different_documents_is_given_up_after_some(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(near_duplicates, "MAX_LEADERS", 3)
    draw = np.random.default_rng(0)
    signatures = draw.integers(0, 1 << 32, (8, NUM_HASHES)).astype(np.uint32)
    signatures[7] = signatures[6]
    keys = np.zeros((1, 8), dtype=np.uint64)
    none = np.zeros(8, dtype=np.bool_)
    assert find_near_duplicates([signatures], [keys], none, THRESHOLD).tolist() == [NONE] * 8
    monkeypatch.setattr(near_duplicates, "MAX_LEADERS", 7)
    assert find_near_duplicates([signatures], [keys], none, THRESHOLD).tolist() == [NONE] * 7 + [6]


def test_rows_of_several_arrays_are_taken_in_the_order_asked_for():
    whole = np.arange(40).reshape(20, 2)
    rows = np.random.default_rng(0).integers(0, 20, 100)
    assert np.array_equal(take_rows(np.split(whole, [3, 3, 11]), np.array([0, 3, 3, 11, 20]), rows), whole[rows])


def test_signatures_are_kept_on_the_disk_until_they_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("disentangled.data_prep.unit_signatures._BATCH_CHARACTERS", 100)
    (tmp_path / "unfinished").mkdir()
    texts = [f"text number {number} of some" * 3 for number in range(20)]
    unit = Unit(3, "text", 3, ())
    writer = SignatureWriter(THRESHOLD)
    for text in texts:
        writer.add(text)
    writer.write(tmp_path, unit)
    signatures, keys = map_signatures(tmp_path, unit)
    assert np.array_equal(signatures, sign_texts(texts))
    assert np.array_equal(keys, band_keys(sign_texts(texts), THRESHOLD))
    remove_signatures(tmp_path)
    assert not list((tmp_path / "unfinished").iterdir())
