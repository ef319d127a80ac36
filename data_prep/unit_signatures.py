"""A unit's signatures, on the disk between the scan that makes them and the search that needs those of all units.

    DIR/unfinished/signatures/000000.npy        signatures [num_documents, 128] uint32
    DIR/unfinished/signatures/000000.keys.npy   keys [num_bands, num_documents] uint64

512 bytes a document and 8 for each band (168 at a threshold of 0.8); removed once the search is done.

Used by: scan_unit.py, gather_scans.py, prepare_text.py. Tested by: tests/data_prep/test_near_duplicates.py.
Not here: what a signature is (sign_text.py).
"""

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from disentangled.data_prep.build_folder import UNFINISHED
from disentangled.data_prep.sign_text import NUM_HASHES, band_keys, sign_texts
from disentangled.data_prep.whole_file import create_file
from disentangled.data_prep.work_units import Unit

_FOLDER = f"{UNFINISHED}/signatures"
# texts that are signed at a time: as many as make arrays of some 8 MiB
_BATCH_CHARACTERS = 1 << 20


class SignatureWriter:
    """Signs documents in their order and writes the two files."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._texts: list[str] = []
        self._num_characters = 0
        self._signatures = [np.empty((0, NUM_HASHES), dtype=np.uint32)]

    def add(self, text: str) -> None:
        """Sign a document."""
        self._texts.append(text)
        self._num_characters += len(text)
        if self._num_characters >= _BATCH_CHARACTERS:
            self._sign()

    def write(self, directory: Path, unit: Unit) -> None:
        """Write the files of a unit whose documents have all been added."""
        self._sign()
        signatures = np.concatenate(self._signatures)
        paths = _signature_paths(directory, unit)
        paths[0].parent.mkdir(exist_ok=True)
        with create_file(paths[0]) as file:
            np.save(file, signatures)
        with create_file(paths[1]) as file:
            np.save(file, band_keys(signatures, self._threshold))

    def _sign(self) -> None:
        if self._texts:
            self._signatures.append(sign_texts(self._texts))
            self._texts, self._num_characters = [], 0


def map_signatures(directory: Path, unit: Unit) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64]]:
    """Return (signatures, keys) of a unit, mapped into memory."""
    signatures, keys = (np.load(path, mmap_mode="r") for path in _signature_paths(directory, unit))
    return signatures, keys


def remove_signatures(directory: Path) -> None:
    """Remove the files of all units."""
    shutil.rmtree(directory / _FOLDER, ignore_errors=True)


def _signature_paths(directory: Path, unit: Unit) -> tuple[Path, Path]:
    stem = directory / _FOLDER / f"{unit.index:06d}"
    return stem.with_suffix(".npy"), stem.with_suffix(".keys.npy")
