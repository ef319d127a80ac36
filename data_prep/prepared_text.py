"""What the first pass over the text has found out, and the file that keeps it.

Used by: prepare_text.py, gather_scans.py, build_corpus.py. Tested by: tests/data_prep/test_prepare_text.py.
Not here: how it is found out (gather_scans.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from disentangled.data_prep.read_unit import DUPLICATE, NEAR_DUPLICATE, Repeat
from disentangled.data_prep.sample_text import DocumentPlace
from disentangled.data_prep.whole_file import create_file
from disentangled.data_prep.work_units import Unit

KINDS = (DUPLICATE, NEAR_DUPLICATE)
# columns of `copies`: unit, index into KINDS, then twice a place: file, byte or row, piece
COLUMNS = 2 + 3 + 3


@dataclass(frozen=True)
class PreparedText:
    """thresholds: split hashes below a source's are for validation. copies [num_copies, COLUMNS] int64, in the order
    of the inputs: each document to leave out and the one that it repeats."""

    thresholds: dict[str, int]
    copies: npt.NDArray[np.int64]

    def copies_in(self, unit: Unit, file_names: Mapping[int, str]) -> Mapping[DocumentPlace, Repeat]:
        """Return a unit's documents to leave out, with what they repeat; file_names go by file_index."""
        first, last = np.searchsorted(self.copies[:, 0], [unit.index, unit.index + 1])
        return {
            (file, start, piece): Repeat(KINDS[kind], file_names[of_file], of_start, of_piece)
            for _, kind, file, start, piece, of_file, of_start, of_piece in self.copies[first:last].tolist()
        }

    def places(self) -> set[DocumentPlace]:
        """Return the places of all documents to leave out."""
        return {(file, start, piece) for file, start, piece in self.copies[:, 2:5].tolist()}


def without_copies(thresholds: dict[str, int]) -> PreparedText:
    """Return what is known where no document is to be left out."""
    return PreparedText(thresholds, np.empty((0, COLUMNS), dtype=np.int64))


def save_prepared(path: Path, names: Sequence[str], prepared: PreparedText) -> None:
    """Write a file; names are the sources', in order."""
    thresholds = np.array([prepared.thresholds[name] for name in names], dtype=np.uint64)
    with create_file(path) as file:
        np.savez(file, thresholds=thresholds, copies=prepared.copies)


def load_prepared(path: Path, names: Sequence[str]) -> PreparedText:
    """Read the file that save_prepared has written."""
    with np.load(path) as saved:
        return PreparedText(dict(zip(names, saved["thresholds"].tolist(), strict=True)), saved["copies"])
