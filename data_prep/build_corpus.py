"""The command that turns text into a dataset of tokenized Arrow shards, in one process or on all ranks of an MPI job.

    python -m disentangled.data_prep.build_corpus --input TEXT... --output DIR --train-tokenizer --vocab-size 8000
    mpirun -n 9 python -m disentangled.data_prep.build_corpus ...

The inputs are cut into units of work (work_units.py). Each is encoded and committed by itself (encode_unit.py), by
whichever process is free (task_pool.py); where more must be known of the whole text, every unit is scanned before
(prepare_text.py). The same inputs and options give the same bytes, on any number of ranks, and also when the build was
killed and started again: then it goes on from the units that are committed. Memory does not grow with the corpus.

Used by: the command line, tests. Tested by: tests/data_prep/test_build_corpus.py, test_build_corpus_command.py,
test_build_ranks.py. Not here: writing to object stores.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece as spm
import xxhash
from rich.console import Console
from rich.progress import Progress

from disentangled.data_prep.build_folder import BuildFolder
from disentangled.data_prep.build_options import BuildOptions, parse_options
from disentangled.data_prep.command_line import EXIT_MISTAKE, run_command
from disentangled.data_prep.describe_dataset import describe_dataset
from disentangled.data_prep.encode_text import CHUNKING
from disentangled.data_prep.encode_unit import EncodedUnit, EncodeJob, UnitRecord, reload_unit
from disentangled.data_prep.find_inputs import TextFile, find_grouped_files
from disentangled.data_prep.input_store import open_file
from disentangled.data_prep.prepare_text import prepare_text
from disentangled.data_prep.prepared_text import PreparedText
from disentangled.data_prep.read_unit import BAD_TEXT, EMPTY
from disentangled.data_prep.run_report import REJECTS_NAME, REPORT_NAME, collect_rejects, first_reject, write_report
from disentangled.data_prep.run_units import refuse_failures, run_units
from disentangled.data_prep.shard_schema import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    SPLITS,
    DatasetIdentity,
    InputRecord,
    Manifest,
    compute_dataset_id,
    encode_json,
    sum_records,
)
from disentangled.data_prep.sources import DEFAULT_NAME, Source, load_sources
from disentangled.data_prep.task_pool import MpiPool, SerialPool, TaskPool, join_mpi, serve_tasks
from disentangled.data_prep.token_storage import LARGEST_VOCAB, TokenStorage, narrowest_storage
from disentangled.data_prep.tokenizer import Tokenizer, load_tokenizer
from disentangled.data_prep.unigram_entropy import unigram_cross_entropy_nats, unigram_entropy_nats
from disentangled.data_prep.whole_file import write_file
from disentangled.data_prep.work_units import Unit, plan_units

CONSEQUENCE = "what is committed stays, the same command goes on from there"
_HEAD_BYTES = 1 << 20
# options that name places or are spelled out in the plan otherwise; skip_bad_text may change: see reload_unit
_NOT_IN_PLAN = ("inputs", "output", "sources", "tokenizer", "skip_bad_text")


class _Encoded:
    """What has come of the units so far; nothing in it depends on their order."""

    def __init__(self, num_pieces: int) -> None:
        self.records: dict[int, UnitRecord] = {}
        self.piece_counts = np.zeros((len(SPLITS), num_pieces), dtype=np.int64)

    def add(self, unit: EncodedUnit) -> None:
        self.records[unit.record.unit] = unit.record
        self.piece_counts += unit.piece_counts

    def in_order(self) -> list[UnitRecord]:
        return [self.records[index] for index in sorted(self.records)]


def build_corpus(options: BuildOptions, pool: TaskPool, progress: Progress) -> Manifest:
    """Build the dataset in options.output, or finish it, and return its manifest.

    Raises ValueError for a user's mistake and OSError for what the disk refuses; what is committed by then stays.
    """
    sources = load_sources(options.sources) if options.sources else (Source(DEFAULT_NAME, 1.0, options.inputs),)
    files = find_grouped_files([source.inputs for source in sources])
    units = plan_units(
        [(source.name, group) for source, group in zip(sources, files, strict=True)], options.range_bytes
    )
    inputs = tuple(_describe_input(file) for group in files for file in group)
    given = load_tokenizer(options.tokenizer) if options.tokenizer else None
    plan = _describe_plan(options, sources, files, inputs, given)
    with BuildFolder(options.output, plan) as folder:
        prepared, tokenizer = prepare_text(pool, units, sources, options, given, folder.path, progress)
        identity = _identify(options, sources, tokenizer)
        encoded = _encode_units(pool, units, options, prepared, tokenizer, identity, folder.path, progress)
        try:
            manifest = _summarize(encoded, identity, inputs, folder.path)
        except ValueError:
            # the same command cannot do better: there is nothing to go on with
            folder.discard()
            raise
        collect_rejects(folder.path, encoded.in_order())
        write_report(folder.path, manifest, encoded.in_order())
        write_file(folder.path / MANIFEST_NAME, encode_json(manifest))
        folder.finish()
    return manifest


def _encode_units(
    pool: TaskPool,
    units: Sequence[Unit],
    options: BuildOptions,
    prepared: PreparedText,
    tokenizer: Tokenizer,
    identity: DatasetIdentity,
    directory: Path,
    progress: Progress,
) -> _Encoded:
    """Encode the units that are not committed yet; on any failure the others are, and the first is raised."""
    encoded = _Encoded(tokenizer.num_pieces)
    missing = []
    for unit in units:
        committed = reload_unit(directory, unit, tokenizer.num_pieces, options.skip_bad_text)
        if committed:
            encoded.add(committed)
        else:
            missing.append(unit)
    file_names = {part.file_index: part.file.name for unit in units for part in unit.parts}
    job = EncodeJob(
        directory=directory,
        identity=identity,
        tokenizer_model=tokenizer.model,
        thresholds=prepared.thresholds,
        text_field=options.text_field,
        skip_bad_text=options.skip_bad_text,
        rules=options.cleaning,
        shard_tokens=options.shard_tokens,
    )
    tasks = [(unit, prepared.copies_in(unit, file_names)) for unit in missing]
    failures = run_units(pool, job, missing, tasks, encoded.add, progress, "encoding")
    progress_made = f"{len(encoded.records)} of {len(units)} units are committed"
    kept = f"; {progress_made}, with the same inputs the command goes on from there"
    refuse_failures(failures, kept if encoded.records else "")
    return encoded


def _identify(options: BuildOptions, sources: Sequence[Source], tokenizer: Tokenizer) -> DatasetIdentity:
    return DatasetIdentity(
        schema_version=SCHEMA_VERSION,
        tokenizer_sha256=tokenizer.sha256,
        sentencepiece_version=spm.__version__,
        normalizer=tokenizer.normalizer,
        chunking=CHUNKING,
        cleaning=options.cleaning.describe(),
        vocab_size=tokenizer.vocab_size,
        token_storage=_choose_storage(options.token_storage, tokenizer.vocab_size),
        num_pieces=tokenizer.num_pieces,
        special_ids=tokenizer.special_ids,
        sources=tuple(source.name for source in sources),
        source_weights=tuple(source.weight for source in sources),
        seed=options.seed,
        validation_fraction=options.validation_fraction,
        validation_floor=options.validation_floor,
    )


def _choose_storage(asked: TokenStorage | None, vocab_size: int) -> TokenStorage:
    """Return how ids are stored; ValueError where the vocabulary does not fit."""
    if asked and vocab_size > LARGEST_VOCAB[asked]:
        rule = f"holds vocabularies of up to {LARGEST_VOCAB[asked]}, this one has {vocab_size}"
        raise ValueError(f"--token-storage {asked}: {rule}: leave it out for {narrowest_storage(vocab_size)}")
    return asked or narrowest_storage(vocab_size)


def _summarize(
    encoded: _Encoded, identity: DatasetIdentity, inputs: tuple[InputRecord, ...], directory: Path
) -> Manifest:
    """Return the manifest; ValueError if a split, or a source's training split, has no documents."""
    records = encoded.in_order()
    shards = [shard for record in records for shard in record.shards]
    splits = {split: tuple(shard for shard in shards if shard.split == split) for split in SPLITS}
    _refuse_empty_splits(splits, identity, records, directory)
    training_counts, validation_counts = encoded.piece_counts
    return Manifest(
        **{field.name: getattr(identity, field.name) for field in dataclasses.fields(identity)},
        dataset_id=compute_dataset_id(identity, splits),
        training_unigram_entropy_nats=unigram_entropy_nats(training_counts),
        validation_unigram_cross_entropy_nats=unigram_cross_entropy_nats(validation_counts, training_counts),
        num_bad_documents=sum(record.rejects.get(BAD_TEXT, 0) for record in records),
        num_empty_documents=sum(record.rejects.get(EMPTY, 0) for record in records),
        inputs=inputs,
        totals=sum_records(tuple(shards)),
        counts={split: sum_records(splits[split]) for split in SPLITS},
        splits=splits,
    )


def _refuse_empty_splits(
    splits: dict[str, tuple[Any, ...]], identity: DatasetIdentity, records: Sequence[UnitRecord], directory: Path
) -> None:
    """Refuse a source without documents and a division that leaves one split without any."""
    num_documents = {name: 0 for name in identity.sources}
    for shard in (shard for split in SPLITS for shard in splits[split]):
        num_documents[shard.source] += shard.num_documents
    total = sum(num_documents.values())
    for name, number in num_documents.items():
        if not number:
            skipped = sum(sum(record.rejects.values()) for record in records if record.source == name)
            left_out = f" ({skipped} left out, first: {first_reject(directory, records, name)})" if skipped else ""
            inputs = "the inputs" if len(num_documents) == 1 else f"the inputs of source {name!r}"
            raise ValueError(f"{inputs} hold no documents{left_out}: check --input and the rules of cleaning")
    if total == 1:
        raise ValueError("the inputs hold one document, two splits need more: part documents by blank lines (.txt)")
    for split in SPLITS:
        if not splits[split]:
            rule = f"leaves no {split} documents of the {total}, each is drawn by the hash of its text"
            change = "raise" if split == "validation" else "lower"
            raise ValueError(f"--validation-fraction {identity.validation_fraction}: {rule}: {change} it or add text")
    for name in sorted(set(identity.sources) - {shard.source for shard in splits["train"]}):
        rule = f"leaves no train documents of the {num_documents[name]} of source {name!r}"
        option = f"--validation-fraction {identity.validation_fraction}, floor {identity.validation_floor}"
        raise ValueError(f"{option}: {rule}: lower it, add text or cut long documents with --split-documents")


def _describe_input(file: TextFile) -> InputRecord:
    with open_file(file.path) as stored:
        return InputRecord(file.name, file.size_bytes, xxhash.xxh3_128_hexdigest(stored.read(_HEAD_BYTES)))


def _describe_plan(
    options: BuildOptions,
    sources: Sequence[Source],
    files: Sequence[Sequence[TextFile]],
    inputs: Sequence[InputRecord],
    tokenizer: Tokenizer | None,
) -> dict[str, Any]:
    """Return what must be the same for a build to go on: all that decides its bytes."""
    flat = [file for group in files for file in group]
    return {
        "sources": [{"name": source.name, "weight": source.weight} for source in sources],
        "inputs": [
            {**dataclasses.asdict(record), "modified_ns": file.stamp.modified_ns, "tag": file.stamp.tag}
            for record, file in zip(inputs, flat, strict=True)
        ],
        "files": [[file.name for file in group] for group in files],
        **{name: value for name, value in dataclasses.asdict(options).items() if name not in _NOT_IN_PLAN},
        "cleaning": options.cleaning.describe(),
        "tokenizer": tokenizer.sha256 if tokenizer else "trained",
        "sentencepiece": spm.__version__,
        "schema_version": SCHEMA_VERSION,
    }


def _run(arguments: Sequence[str] | None, pool: TaskPool) -> None:
    options = parse_options(arguments)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        manifest = build_corpus(options, pool, progress)
    print("wrote", describe_dataset(options.output, manifest))
    if manifest.num_bad_documents:
        print(f"skipped    bad documents: {manifest.num_bad_documents:,}, see {REJECTS_NAME}")
    if manifest.num_empty_documents:
        print(f"skipped    documents without text: {manifest.num_empty_documents:,}")
    print(f"report     {Path(options.output) / REPORT_NAME}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (command_line.py lists them); under MPI, what this rank has to do."""
    try:
        communicator = join_mpi()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    if communicator is None:
        return run_command(lambda: _run(arguments, SerialPool()), CONSEQUENCE)
    if communicator.Get_rank():
        serve_tasks(communicator)
        return 0
    pool = MpiPool(communicator)
    code = EXIT_MISTAKE
    try:
        code = run_command(lambda: _run(arguments, pool), CONSEQUENCE)
    finally:
        pool.close(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
