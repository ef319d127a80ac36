"""The command that turns text into a dataset of tokenized Arrow shards.

    python -m disentangled.data_prep.build_corpus --input TEXT... --output DIR --train-tokenizer --vocab-size 8000

One pass over the text, or two when the tokenizer is trained here: the first samples lines of the training split, the
second goes   read_text -> split -> encode_text -> write_shards   document by document, in the order of the sorted
inputs. Memory does not grow with the corpus. The same inputs and options give the same bytes again.

Used by: the command line, tests. Tested by: tests/data_prep/test_build_corpus.py, test_build_corpus_command.py.
Not here: several sources, cleaning, deduplication, Parquet, several processes.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import sentencepiece as spm
import xxhash
from rich.console import Console
from rich.progress import Progress

from disentangled.data_prep.build_options import BuildOptions, parse_options
from disentangled.data_prep.command_line import run_command
from disentangled.data_prep.dataset_folder import DatasetFolder
from disentangled.data_prep.describe_dataset import describe_dataset
from disentangled.data_prep.encode_text import CHUNKING, encode_documents
from disentangled.data_prep.read_text import BadText, Document, TextFile, find_text_files, read_documents
from disentangled.data_prep.sample_text import TextSample
from disentangled.data_prep.shard_schema import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    SPLITS,
    TOKENIZER_NAME,
    DatasetIdentity,
    InputRecord,
    Manifest,
    ShardRecord,
    compute_dataset_id,
    encode_json,
    sum_records,
)
from disentangled.data_prep.split import assign_to_validation
from disentangled.data_prep.tokenizer import Tokenizer, load_tokenizer, parse_tokenizer
from disentangled.data_prep.train_tokenizer import train_model_in_child
from disentangled.data_prep.unigram_entropy import unigram_cross_entropy_nats, unigram_entropy_nats
from disentangled.data_prep.write_shards import EncodedDocuments, ShardWriter

SOURCE = "text"
# enough text for SentencePiece to run at full speed, small enough to keep memory flat
BATCH_CHARACTERS = 1 << 20
_HEAD_BYTES = 1 << 20


def build_corpus(options: BuildOptions, bad_text: BadText, progress: Progress) -> Manifest:
    """Build the dataset in options.output and return its manifest; on any exception nothing is left there.

    bad_text collects what was skipped. Raises ValueError for a user's mistake and OSError for what the disk refuses.
    """
    files = find_text_files(options.inputs)
    with DatasetFolder(options.output) as folder:
        if options.tokenizer is not None:
            tokenizer = load_tokenizer(options.tokenizer)
        else:
            tokenizer = _train_tokenizer(files, options, progress)
        folder.write_file(TOKENIZER_NAME, tokenizer.model)
        identity = DatasetIdentity(
            schema_version=SCHEMA_VERSION,
            tokenizer_sha256=tokenizer.sha256,
            sentencepiece_version=spm.__version__,
            normalizer=tokenizer.normalizer,
            chunking=CHUNKING,
            vocab_size=tokenizer.vocab_size,
            num_pieces=tokenizer.num_pieces,
            special_ids=tokenizer.special_ids,
            sources=(SOURCE,),
            seed=options.seed,
            validation_fraction=options.validation_fraction,
        )
        writers = {
            split: ShardWriter(folder, identity, split, SOURCE, options.shard_tokens, tokenizer.byte_ids)
            for split in SPLITS
        }
        num_empty = _encode_files(files, options, tokenizer, writers, bad_text, progress)
        for writer in writers.values():
            writer.close()
        splits = {split: tuple(writer.records) for split, writer in writers.items()}
        _refuse_empty_splits(splits, options, bad_text)
        training_counts = writers["train"].piece_counts
        manifest = Manifest(
            **{field.name: getattr(identity, field.name) for field in dataclasses.fields(identity)},
            dataset_id=compute_dataset_id(identity, splits),
            training_unigram_entropy_nats=unigram_entropy_nats(training_counts),
            validation_unigram_cross_entropy_nats=unigram_cross_entropy_nats(
                writers["validation"].piece_counts, training_counts
            ),
            num_bad_documents=bad_text.num_documents,
            num_empty_documents=num_empty,
            inputs=tuple(_describe_input(file) for file in files),
            totals=sum_records(tuple(record for records in splits.values() for record in records)),
            counts={split: sum_records(records) for split, records in splits.items()},
            splits=splits,
        )
        folder.write_file(MANIFEST_NAME, encode_json(manifest))
    return manifest


def _read_files(
    files: list[TextFile], options: BuildOptions, bad_text: BadText, progress: Progress, title: str
) -> Iterator[tuple[TextFile, Iterator[Document]]]:
    """Yield each file with its documents, and move a progress bar by the bytes read."""
    task = progress.add_task(title, total=sum(file.size_bytes for file in files))
    bytes_before = 0
    for file in files:

        def advance(stored_bytes: int, start: int = bytes_before) -> None:
            progress.update(task, completed=start + stored_bytes)

        yield file, read_documents(file, options.text_field, bad_text, advance)
        bytes_before += file.size_bytes


def _train_tokenizer(files: list[TextFile], options: BuildOptions, progress: Progress) -> Tokenizer:
    """Train on a sample of the training split; validation text is not seen."""
    assert options.vocab_size is not None
    sample = TextSample(options.tokenizer_sample_bytes, options.seed)
    for _, documents in _read_files(files, options, BadText(options.skip_bad_text), progress, "sampling text"):
        for document in documents:
            if not assign_to_validation(document.text.encode(), options.seed, options.validation_fraction):
                sample.offer(document.text)
    task = progress.add_task(f"training {options.vocab_size:,} pieces", total=None)
    model = train_model_in_child(sample.lines(), options.vocab_size)
    progress.update(task, total=1, completed=1)
    return parse_tokenizer(model, TOKENIZER_NAME)


def _encode_files(
    files: list[TextFile],
    options: BuildOptions,
    tokenizer: Tokenizer,
    writers: dict[str, ShardWriter],
    bad_text: BadText,
    progress: Progress,
) -> int:
    """Send every document to its split's writer; return how many documents had no token."""
    num_empty = 0
    for file, documents in _read_files(files, options, bad_text, progress, "encoding"):
        for batch in _batch_documents(documents):
            utf8 = [document.text.encode() for document in batch]
            tokens, lengths = encode_documents(tokenizer.processor, [document.text for document in batch])
            encoded = EncodedDocuments(
                file=file.name,
                tokens=tokens,
                lengths=lengths,
                start_bytes=np.array([document.start_byte for document in batch], dtype=np.int64),
                text_bytes=np.array([len(text) for text in utf8], dtype=np.int64),
            )
            fraction = options.validation_fraction
            validation = np.array([assign_to_validation(text, options.seed, fraction) for text in utf8])
            writers["train"].append(encoded.select(~validation & (lengths > 0)))
            writers["validation"].append(encoded.select(validation & (lengths > 0)))
            num_empty += int(np.count_nonzero(lengths == 0))
    return num_empty


def _batch_documents(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Yield lists of about BATCH_CHARACTERS characters."""
    batch: list[Document] = []
    num_characters = 0
    for document in documents:
        batch.append(document)
        # one for the document itself: a flood of empty ones must not pile up either
        num_characters += len(document.text) + 1
        if num_characters >= BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _refuse_empty_splits(splits: dict[str, tuple[ShardRecord, ...]], options: BuildOptions, bad_text: BadText) -> None:
    """Refuse a corpus without documents and a division that leaves one split without any."""
    num_documents = sum(record.num_documents for records in splits.values() for record in records)
    if not num_documents:
        skipped = f" ({bad_text.num_documents} bad ones skipped, first: {bad_text.first_fault})"
        raise ValueError(f"the inputs hold no documents{skipped if bad_text.num_documents else ''}: check --input")
    if num_documents == 1:
        raise ValueError("the inputs hold one document, two splits need more: part documents by blank lines (.txt)")
    for split in SPLITS:
        if not splits[split]:
            rule = f"leaves no {split} documents of the {num_documents}, each is drawn by the hash of its text"
            change = "raise" if split == "validation" else "lower"
            raise ValueError(f"--validation-fraction {options.validation_fraction}: {rule}: {change} it or add text")


def _describe_input(file: TextFile) -> InputRecord:
    with file.path.open("rb") as stored:
        return InputRecord(file.name, file.size_bytes, xxhash.xxh3_128_hexdigest(stored.read(_HEAD_BYTES)))


def _run(arguments: Sequence[str] | None) -> None:
    options = parse_options(arguments)
    bad_text = BadText(options.skip_bad_text)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        manifest = build_corpus(options, bad_text, progress)
    print("wrote", describe_dataset(options.output, manifest))
    if bad_text.num_documents:
        print(f"skipped    bad documents: {bad_text.num_documents:,}, first: {bad_text.first_fault}")
    if manifest.num_empty_documents:
        print(f"skipped    documents without text: {manifest.num_empty_documents:,}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (command_line.py lists them)."""
    return run_command(lambda: _run(arguments), "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
