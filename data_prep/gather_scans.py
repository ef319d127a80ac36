"""Puts the scans of all units together, in one process: thresholds, what repeats what, and the tokenizer's sample.

None of it depends on the order in which the scans arrive. Memory: the samples, and about 150 bytes a document where
copies or near-duplicates are looked for.

Used by: prepare_text.py. Tested by: tests/data_prep/test_prepare_text.py.
Not here: the scan of one unit (scan_unit.py).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from disentangled.data_prep.build_options import BuildOptions
from disentangled.data_prep.find_duplicates import find_duplicates
from disentangled.data_prep.near_duplicates import NONE, find_near_duplicates, take_rows
from disentangled.data_prep.prepared_text import COLUMNS, PreparedText
from disentangled.data_prep.sample_text import TextSample
from disentangled.data_prep.scan_unit import UnitScan, smallest_distinct
from disentangled.data_prep.share_sample import share_bytes
from disentangled.data_prep.sources import Source
from disentangled.data_prep.split import raise_to_floor
from disentangled.data_prep.unit_signatures import map_signatures


class GatheredScans:
    """The scans put together so far; directory is the build's."""

    def __init__(self, sources: Sequence[Source], options: BuildOptions, directory: Path) -> None:
        self._sources = sources
        self._options = options
        self._directory = directory
        self._text_bytes = {source.name: 0 for source in sources}
        self._samples = {source.name: TextSample(options.tokenizer_sample_bytes, options.seed) for source in sources}
        self._scans: dict[int, UnitScan] = {}

    def add(self, scan: UnitScan) -> None:
        """Take in a unit's scan."""
        name = scan.unit.source
        self._text_bytes[name] += scan.text_bytes
        self._samples[name].absorb(scan.sample)
        # the sample has gone into its source's
        self._scans[scan.unit.index] = dataclasses.replace(scan, sample=TextSample(0, 0))

    def conclude(self, base: int) -> PreparedText:
        """Return what follows from all scans; base is the threshold without a floor.

        Raises ValueError where a floor leaves a source no text to train on.
        """
        scans = [self._scans[index] for index in sorted(self._scans)]
        first_rows = np.cumsum([0, *(len(scan.places) for scan in scans)])
        kinds, originals = self._find_copies(scans, int(first_rows[-1]))
        hashes: dict[str, list[npt.NDArray[np.uint64]]] = {name: [np.empty(0, np.uint64)] for name in self._text_bytes}
        for scan, first, last in zip(scans, first_rows, first_rows[1:], strict=False):
            # copies will not be there: they do not fill the floor
            kept = kinds[first:last] == NONE
            hashes[scan.unit.source].append(scan.hashes[kept] if len(kept) == len(scan.hashes) else scan.hashes)
        floor = self._options.validation_floor
        # one more than the floor: to see whether anything is left beside it
        smallest = {name: smallest_distinct(found, floor + 1) for name, found in hashes.items()}
        for name, found in smallest.items() if floor else ():
            self._refuse_nothing_left(name, len(found))
        thresholds = {name: raise_to_floor(base, floor, found) for name, found in smallest.items()}
        return PreparedText(thresholds, _list_copies(scans, first_rows, kinds, originals))

    def choose_lines(self, prepared: PreparedText) -> list[str]:
        """Return the lines to train a tokenizer on: of the training split, without copies, shared out by source."""
        copies = prepared.places()
        samples = [self._samples[source.name] for source in self._sources]
        for source, sample in zip(self._sources, samples, strict=True):
            threshold = prepared.thresholds[source.name]
            sample.remove(lambda place, drawn, threshold=threshold: drawn < threshold or place in copies)  # type: ignore[misc]
        shares = share_bytes(
            self._options.tokenizer_sample_bytes,
            [self._text_bytes[source.name] for source in self._sources],
            [sample.num_bytes for sample in samples],
            [source.weight for source in self._sources],
            self._options.tokenizer_alpha,
        )
        for sample, share in zip(samples, shares, strict=True):
            sample.shrink(share)
        return [line for sample in samples for line in sample.lines()]

    def _find_copies(
        self, scans: Sequence[UnitScan], num_documents: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return for each document (index into KINDS or NONE, the document that it repeats or NONE)."""
        rules = self._options.cleaning
        kinds, originals = np.full((2, num_documents), NONE, dtype=np.int64)
        if rules.drop_duplicates:
            rows, firsts = find_duplicates(np.concatenate([np.empty((0, 2), np.uint64), *(s.keys for s in scans)]))
            kinds[rows], originals[rows] = 0, firsts
        if rules.drop_near_duplicates:
            mapped = [map_signatures(self._directory, scan.unit) for scan in scans if len(scan.places)]
            signatures, keys = zip(*mapped, strict=True) if mapped else ((), ())
            repeats = find_near_duplicates(signatures, keys, kinds != NONE, rules.drop_near_duplicates)
            rows = np.flatnonzero(repeats != NONE)
            kinds[rows], originals[rows] = 1, repeats[rows]
        return kinds, originals

    def _refuse_nothing_left(self, name: str, num_different: int) -> None:
        """Refuse a floor that takes all the documents a source has."""
        floor = self._options.validation_floor
        if 0 < num_different <= floor:
            documents = "document" if num_different == 1 else "documents"
            rule = f"leaves no train documents, source {name!r} has {num_different} different {documents} in all"
            remedy = "lower it, add text or cut long documents with --split-documents"
            raise ValueError(f"--validation-floor {floor}: {rule}: {remedy}")


def _list_copies(
    scans: Sequence[UnitScan],
    first_rows: npt.NDArray[np.int64],
    kinds: npt.NDArray[np.int64],
    originals: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Return the table of PreparedText.copies."""
    rows = np.flatnonzero(kinds != NONE)
    if not len(rows):
        return np.empty((0, COLUMNS), dtype=np.int64)
    units = np.array([scan.unit.index for scan in scans], dtype=np.int64)
    table = np.empty((len(rows), COLUMNS), dtype=np.int64)
    table[:, 0] = units[np.searchsorted(first_rows, rows, side="right") - 1]
    table[:, 1] = kinds[rows]
    places = [scan.places for scan in scans]
    table[:, 2:5] = take_rows(places, first_rows, rows)
    table[:, 5:8] = take_rows(places, first_rows, originals[rows])
    return table
