"""The first pass over a unit's text, for what must be known of the whole before any document is encoded.

It is run only where it is needed: to train a tokenizer, to fill a validation floor or to find exact copies.

Used by: prepare_text.py. Tested by: tests/data_prep/test_prepare_text.py.
Not here: what follows from the scans of all units (prepare_text.py, find_duplicates.py).
"""

from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from disentangled.data_prep.clean import CleaningRules
from disentangled.data_prep.read_unit import Rejects, read_unit
from disentangled.data_prep.sample_text import TextSample
from disentangled.data_prep.split import split_hash
from disentangled.data_prep.work_units import Unit


@dataclass(frozen=True)
class UnitScan:
    """What one unit holds.

    hashes uint64: where there is a floor, the `floor` smallest different split hashes, sorted; where copies are looked
    for as well, those of all documents, in order, as copies do not count. Where copies are looked for, keys
    [num_documents, 2] uint64: 128 bits of each text's hash; places [num_documents, 2] uint64: file and byte of each.
    """

    unit: Unit
    text_bytes: int
    hashes: npt.NDArray[np.uint64]
    sample: TextSample
    keys: npt.NDArray[np.uint64]
    places: npt.NDArray[np.uint64]


@dataclass(frozen=True)
class ScanJob:
    """Scans a unit when called with it; the same in every process. sample_bytes 0 draws no sample."""

    text_field: str
    skip_bad_text: bool
    rules: CleaningRules
    seed: int
    threshold: int
    floor: int
    sample_bytes: int

    def __call__(self, unit: Unit) -> UnitScan:
        """Read the unit; ValueError where it cannot be read."""
        sample = TextSample(self.sample_bytes, self.seed)
        hashes, keys, places = array("Q"), array("Q"), array("Q")
        smallest = np.empty(0, dtype=np.uint64)
        text_bytes = 0
        rejects = Rejects(unit.source)
        for document in read_unit(unit, self.text_field, self.skip_bad_text, self.rules, (), rejects):
            text_bytes += len(document.utf8)
            drawn = split_hash(document.utf8, self.seed)
            if self.sample_bytes and drawn >= self.threshold:
                sample.offer(document.text, document.place, drawn)
            if self.floor:
                hashes.append(drawn)
                if not self.rules.drop_duplicates and len(hashes) > max(self.floor, 1 << 16):
                    smallest, hashes = smallest_distinct([smallest, _as_uint64(hashes)], self.floor), array("Q")
            if self.rules.drop_duplicates:
                digest = xxhash.xxh3_128_intdigest(document.utf8)
                keys.extend((digest >> 64, digest & (1 << 64) - 1))
                places.extend(document.place)
        all_hashes = _as_uint64(hashes)
        return UnitScan(
            unit=unit,
            text_bytes=text_bytes,
            hashes=all_hashes if self.rules.drop_duplicates else smallest_distinct([smallest, all_hashes], self.floor),
            sample=sample,
            keys=_as_uint64(keys).reshape(-1, 2),
            places=_as_uint64(places).reshape(-1, 2),
        )


def smallest_distinct(hashes: list[npt.NDArray[np.uint64]], count: int) -> npt.NDArray[np.uint64]:
    """Return the smallest `count` different values, sorted."""
    return np.unique(np.concatenate(hashes))[:count]


def _as_uint64(values: "array[int]") -> npt.NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)
