"""The first pass over a unit's text, for what must be known of the whole before any document is encoded.

It is run only where it is needed: to train a tokenizer, to fill a validation floor or to find copies.

Used by: prepare_text.py. Tested by: tests/data_prep/test_prepare_text.py.
Not here: what follows from the scans of all units (gather_scans.py).
"""

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from disentangled.data_prep.clean import CleaningRules
from disentangled.data_prep.read_unit import Rejects, read_unit
from disentangled.data_prep.sample_text import TextSample
from disentangled.data_prep.split import split_hash
from disentangled.data_prep.unit_signatures import SignatureWriter
from disentangled.data_prep.work_units import Unit


@dataclass(frozen=True)
class UnitScan:
    """What one unit holds.

    hashes uint64: where there is a floor, the `floor` + 1 smallest different split hashes, sorted; where copies are
    looked for as well, those of all documents, in order, as copies do not count. Where copies are looked for, places
    [num_documents, 3] uint64: file, byte and piece of each; where exact ones are, keys [num_documents, 2] uint64: 128
    bits of each text's hash.
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

    directory: Path
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
        finds_copies = self.rules.finds_copies
        signer = SignatureWriter(self.rules.drop_near_duplicates)
        rejects = Rejects(unit.source)
        for document in read_unit(unit, self.text_field, self.skip_bad_text, self.rules, {}, rejects):
            text_bytes += len(document.utf8)
            drawn = split_hash(document.utf8, self.seed)
            if self.sample_bytes and drawn >= self.threshold:
                sample.offer(document.text, document.place, drawn)
            if self.floor:
                hashes.append(drawn)
                if not finds_copies and len(hashes) > max(self.floor, 1 << 16):
                    smallest, hashes = smallest_distinct([smallest, _as_uint64(hashes)], self.floor + 1), array("Q")
            if finds_copies:
                places.extend(document.place)
            if self.rules.drop_duplicates:
                digest = xxhash.xxh3_128_intdigest(document.utf8)
                keys.extend((digest >> 64, digest & (1 << 64) - 1))
            if self.rules.drop_near_duplicates:
                signer.add(document.text)
        if self.rules.drop_near_duplicates:
            signer.write(self.directory, unit)
        all_hashes = _as_uint64(hashes)
        return UnitScan(
            unit=unit,
            text_bytes=text_bytes,
            hashes=all_hashes if finds_copies else smallest_distinct([smallest, all_hashes], self.floor + 1),
            sample=sample,
            keys=_as_uint64(keys).reshape(-1, 2),
            places=_as_uint64(places).reshape(-1, 3),
        )


def smallest_distinct(hashes: list[npt.NDArray[np.uint64]], count: int) -> npt.NDArray[np.uint64]:
    """Return the smallest `count` different values, sorted."""
    return np.unique(np.concatenate(hashes))[:count]


def _as_uint64(values: "array[int]") -> npt.NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)
