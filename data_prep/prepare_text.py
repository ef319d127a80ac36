"""What must be known of the whole text before a document is encoded: the sources' thresholds, copies, the tokenizer.

The scans of all units (scan_unit.py) are put together here, in one process; none of it depends on their order. Where
no scan is needed, the text is read once only. What was found is kept, so that a build that is stopped later does not
scan again. A sample may end up smaller than asked for: what turns out to be a copy is taken out of it afterwards.

Used by: build_corpus.py. Tested by: tests/data_prep/test_prepare_text.py, test_build_corpus.py.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

from disentangled.data_prep.build_folder import PREPARED_NAME
from disentangled.data_prep.build_options import BuildOptions
from disentangled.data_prep.find_duplicates import find_duplicates
from disentangled.data_prep.run_units import refuse_failures, run_units
from disentangled.data_prep.sample_text import DocumentPlace, TextSample
from disentangled.data_prep.scan_unit import ScanJob, UnitScan, smallest_distinct
from disentangled.data_prep.shard_schema import TOKENIZER_NAME
from disentangled.data_prep.share_sample import share_bytes
from disentangled.data_prep.sources import Source
from disentangled.data_prep.split import raise_to_floor, validation_threshold
from disentangled.data_prep.task_pool import TaskPool
from disentangled.data_prep.tokenizer import Tokenizer, load_tokenizer, parse_tokenizer
from disentangled.data_prep.train_tokenizer import train_model_in_child
from disentangled.data_prep.whole_file import create_file, write_file
from disentangled.data_prep.work_units import Unit


@dataclass(frozen=True)
class PreparedText:
    """thresholds: split hashes below a source's are for validation. copies [num_copies, 3] int64, sorted: the unit,
    file and byte of each document to leave out."""

    thresholds: dict[str, int]
    copies: npt.NDArray[np.int64]

    def copies_in(self, unit: Unit) -> frozenset[DocumentPlace]:
        """Return the places of a unit's documents to leave out."""
        first, last = np.searchsorted(self.copies[:, 0], [unit.index, unit.index + 1])
        return frozenset((int(file), int(start)) for _, file, start in self.copies[first:last])


class _Findings:
    """The scans put together so far."""

    def __init__(self, sources: Sequence[Source], options: BuildOptions) -> None:
        self.text_bytes = {source.name: 0 for source in sources}
        self.samples = {source.name: TextSample(options.tokenizer_sample_bytes, options.seed) for source in sources}
        self._floor = options.validation_floor
        self._scans: dict[int, UnitScan] = {}

    def add(self, scan: UnitScan) -> None:
        name = scan.unit.source
        self.text_bytes[name] += scan.text_bytes
        self.samples[name].absorb(scan.sample)
        # the sample has gone into its source's
        self._scans[scan.unit.index] = dataclasses.replace(scan, sample=TextSample(0, 0))

    def conclude(self, base: int) -> PreparedText:
        """Return what follows from all scans; base is the threshold without a floor."""
        scans = [self._scans[index] for index in sorted(self._scans)]
        hashes: dict[str, list[npt.NDArray[np.uint64]]] = {name: [np.empty(0, np.uint64)] for name in self.text_bytes}
        copies = [np.empty((0, 3), dtype=np.int64)]
        rows = find_duplicates(np.concatenate([np.empty((0, 2), np.uint64), *(scan.keys for scan in scans)]))
        first = 0
        for scan in scans:
            own = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + len(scan.keys))] - first
            first += len(scan.keys)
            copies.append(np.column_stack((np.full(len(own), scan.unit.index), scan.places[own].astype(np.int64))))
            # copies will not be there: they do not fill the floor
            hashes[scan.unit.source].append(np.delete(scan.hashes, own) if self._floor else scan.hashes)
        thresholds = {
            name: raise_to_floor(base, self._floor, smallest_distinct(found, self._floor))
            for name, found in hashes.items()
        }
        return PreparedText(thresholds, np.concatenate(copies))


def prepare_text(
    pool: TaskPool,
    units: Sequence[Unit],
    sources: Sequence[Source],
    options: BuildOptions,
    directory: Path,
    progress: Progress,
) -> tuple[PreparedText, Tokenizer]:
    """Scan the units as far as the options ask for it; leave the tokenizer in directory and return both."""
    if (directory / PREPARED_NAME).exists():
        return _load(directory, sources)
    base = validation_threshold(options.validation_fraction)
    prepared = PreparedText({source.name: base for source in sources}, np.empty((0, 3), dtype=np.int64))
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    if tokenizer is None or options.validation_floor or options.cleaning.drop_duplicates:
        findings = _scan(pool, units, sources, options, base, progress)
        prepared = findings.conclude(base)
        if tokenizer is None:
            lines = _choose_lines(findings, prepared, sources, options)
            task = progress.add_task(f"training {options.vocab_size:,} pieces", total=None)
            model = train_model_in_child(lines, options.training)
            progress.update(task, total=1, completed=1)
            tokenizer = parse_tokenizer(model, TOKENIZER_NAME)
        write_file(directory / TOKENIZER_NAME, tokenizer.model)
        _save(directory, sources, prepared)
    else:
        write_file(directory / TOKENIZER_NAME, tokenizer.model)
    return prepared, tokenizer


def _scan(
    pool: TaskPool,
    units: Sequence[Unit],
    sources: Sequence[Source],
    options: BuildOptions,
    threshold: int,
    progress: Progress,
) -> _Findings:
    """Scan every unit; ValueError for the first one that cannot be read."""
    job = ScanJob(
        text_field=options.text_field,
        skip_bad_text=options.skip_bad_text,
        rules=options.cleaning,
        seed=options.seed,
        threshold=threshold,
        floor=options.validation_floor,
        sample_bytes=options.tokenizer_sample_bytes if options.vocab_size else 0,
    )
    findings = _Findings(sources, options)
    refuse_failures(run_units(pool, job, units, units, findings.add, progress, "scanning text"), "")
    return findings


def _choose_lines(
    findings: _Findings, prepared: PreparedText, sources: Sequence[Source], options: BuildOptions
) -> list[str]:
    """Return the lines to train on: of the training split, without copies, shared out among the sources."""
    copies = {(int(file), int(start)) for _, file, start in prepared.copies}
    samples = [findings.samples[source.name] for source in sources]
    for source, sample in zip(sources, samples, strict=True):
        threshold = prepared.thresholds[source.name]
        sample.remove(lambda place, drawn, threshold=threshold: drawn < threshold or place in copies)  # type: ignore[misc]
    shares = share_bytes(
        options.tokenizer_sample_bytes,
        [findings.text_bytes[source.name] for source in sources],
        [sample.num_bytes for sample in samples],
        [source.weight for source in sources],
        options.tokenizer_alpha,
    )
    for sample, share in zip(samples, shares, strict=True):
        sample.shrink(share)
    return [line for sample in samples for line in sample.lines()]


def _save(directory: Path, sources: Sequence[Source], prepared: PreparedText) -> None:
    thresholds = np.array([prepared.thresholds[source.name] for source in sources], dtype=np.uint64)
    with create_file(directory / PREPARED_NAME) as file:
        np.savez(file, thresholds=thresholds, copies=prepared.copies)


def _load(directory: Path, sources: Sequence[Source]) -> tuple[PreparedText, Tokenizer]:
    with np.load(directory / PREPARED_NAME) as saved:
        names = [source.name for source in sources]
        thresholds = dict(zip(names, saved["thresholds"].tolist(), strict=True))
        return PreparedText(thresholds, saved["copies"]), load_tokenizer(directory / TOKENIZER_NAME)
