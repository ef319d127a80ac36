"""The second pass over a unit's text: documents to ids to shards, and the unit's record, which commits them.

    read_unit -> split -> encode_text -> write_shards

Used by: build_corpus.py. Tested by: tests/data_prep/test_build_corpus.py, test_build_failures.py.
Not here: what must be known of the whole text before (prepare_text.py), the manifest (build_corpus.py).
"""

import functools
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from disentangled.data_prep.build_folder import unit_record_path
from disentangled.data_prep.clean import CleaningRules
from disentangled.data_prep.encode_text import encode_documents
from disentangled.data_prep.read_unit import BAD_TEXT, EMPTY, PlacedDocument, Rejects, Repeat, read_unit
from disentangled.data_prep.sample_text import DocumentPlace
from disentangled.data_prep.shard_schema import (
    SPLITS,
    DatasetIdentity,
    ShardRecord,
    decode_fields,
    open_shard,
)
from disentangled.data_prep.split import split_hash
from disentangled.data_prep.token_storage import count_pieces
from disentangled.data_prep.tokenizer import Tokenizer, parse_tokenizer
from disentangled.data_prep.whole_file import write_file
from disentangled.data_prep.work_units import Unit
from disentangled.data_prep.write_shards import EncodedDocuments, ShardWriter

# enough text for SentencePiece to run at full speed, small enough to keep memory flat
BATCH_CHARACTERS = 1 << 20
NUM_LONGEST = 5
# lengths are counted in half octaves: class k holds 2**(k/2) <= tokens < 2**((k+1)/2)
LENGTH_CLASSES = 64


@dataclass(frozen=True)
class LongDocument:
    """One of the longest documents."""

    num_tokens: int
    file: str
    start_byte: int


@dataclass(frozen=True)
class UnitRecord:
    """What came of a unit: its shards in the order of splits and parts, and what the report tells."""

    unit: int
    source: str
    shards: tuple[ShardRecord, ...]
    rejects: dict[str, int]
    changes: dict[str, int]
    longest: tuple[LongDocument, ...]
    length_counts: tuple[int, ...]


@dataclass(frozen=True)
class EncodedUnit:
    """A record, and how often each piece occurs: piece_counts [2, num_pieces] int64, a row for each of SPLITS."""

    record: UnitRecord
    piece_counts: npt.NDArray[np.int64]


@dataclass(frozen=True)
class EncodeJob:
    """Encodes a unit when called with it and its documents to leave out; the same in every process."""

    directory: Path
    identity: DatasetIdentity
    tokenizer_model: bytes
    thresholds: Mapping[str, int]
    text_field: str
    skip_bad_text: bool
    rules: CleaningRules
    shard_tokens: int

    def __call__(self, task: tuple[Unit, Mapping[DocumentPlace, Repeat]]) -> EncodedUnit:
        """Write the unit's shards, sidecars, rejects and record; ValueError where the unit cannot be read."""
        unit, copies = task
        tokenizer = load_model_once(self.tokenizer_model)
        writers = [
            ShardWriter(
                self.directory, self.identity, split, unit.source, self.shard_tokens, tokenizer.byte_ids, unit.task
            )
            for split in SPLITS
        ]
        rejects = Rejects(unit.source)
        documents = read_unit(unit, self.text_field, self.skip_bad_text, self.rules, copies, rejects)
        longest: list[tuple[int, int, int, str]] = []
        length_counts = np.zeros(LENGTH_CLASSES, dtype=np.int64)
        for batch in _batch_documents(documents):
            encoded = _encode_batch(batch, tokenizer)
            hashes = np.array([split_hash(document.utf8, self.identity.seed) for document in batch], dtype=np.uint64)
            is_validation = hashes < np.uint64(self.thresholds[unit.source])
            writers[0].append(encoded.select(~is_validation & (encoded.lengths > 0)))
            writers[1].append(encoded.select(is_validation & (encoded.lengths > 0)))
            for index in np.flatnonzero(encoded.lengths == 0):
                empty = batch[index]
                rejects.add(empty.part, empty.start_byte, empty.piece, EMPTY, empty.text)
            length_counts += count_lengths(encoded.lengths)
            found = [
                (int(length), -document.part.file_index, -document.start_byte, document.part.file.name)
                for length, document in zip(encoded.lengths, batch, strict=True)
            ]
            longest = heapq.nlargest(NUM_LONGEST, longest + found)
        for writer in writers:
            writer.close()
        record = UnitRecord(
            unit=unit.index,
            source=unit.source,
            shards=tuple(shard for writer in writers for shard in writer.records),
            rejects=_sorted_counts(rejects.reasons),
            changes=_sorted_counts(rejects.changes),
            longest=tuple(LongDocument(tokens, name, -start) for tokens, _, start, name in longest if tokens),
            length_counts=tuple(length_counts.tolist()),
        )
        path = unit_record_path(self.directory, unit.index)
        if rejects.rows:
            write_file(path.with_suffix(".jsonl"), rejects.encode())
        write_file(path, (json.dumps(asdict(record)) + "\n").encode())
        return EncodedUnit(record, np.stack([writer.piece_counts for writer in writers]))


def reload_unit(directory: Path, unit: Unit, num_pieces: int, skip_bad_text: bool) -> EncodedUnit | None:
    """Return what an earlier run has committed of a unit; None where that is nothing, is not whole any more, or has
    skipped bad text that is not to be skipped now."""
    path = unit_record_path(directory, unit.index)
    if not path.exists():
        return None
    record: UnitRecord = decode_fields(UnitRecord, json.loads(path.read_bytes()), str(path), "record")
    if BAD_TEXT in record.rejects and not skip_bad_text:
        return None
    counts = np.zeros((len(SPLITS), num_pieces), dtype=np.int64)
    for shard in record.shards:
        try:
            # all of it is read here anyway: a checksum on the way costs little
            tokens = open_shard(directory, shard, "checksum").tokens
        except ValueError:
            return None
        counts[SPLITS.index(shard.split)] += count_pieces(tokens, num_pieces)
    return EncodedUnit(record, counts)


@functools.lru_cache(maxsize=1)
def load_model_once(model: bytes) -> Tokenizer:
    """Return the tokenizer; a process that encodes many units loads it once."""
    return parse_tokenizer(model, "the tokenizer")


def count_lengths(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how many of the lengths above 0 fall into each of LENGTH_CLASSES."""
    classes = np.floor(2 * np.log2(lengths[lengths > 0])).astype(np.int64)
    return np.bincount(np.minimum(classes, LENGTH_CLASSES - 1), minlength=LENGTH_CLASSES)


def _encode_batch(batch: list[PlacedDocument], tokenizer: Tokenizer) -> EncodedDocuments:
    tokens, lengths = encode_documents(tokenizer.processor, [document.text for document in batch])
    return EncodedDocuments(
        file=batch[0].part.file.name,
        tokens=tokens,
        lengths=lengths,
        start_bytes=np.array([document.start_byte for document in batch], dtype=np.int64),
        text_bytes=np.array([len(document.utf8) for document in batch], dtype=np.int64),
    )


def _batch_documents(documents: Iterator[PlacedDocument]) -> Iterator[list[PlacedDocument]]:
    """Yield lists of about BATCH_CHARACTERS characters, each of documents of one file."""
    batch: list[PlacedDocument] = []
    num_characters = 0
    for document in documents:
        if batch and (num_characters >= BATCH_CHARACTERS or batch[-1].part.file is not document.part.file):
            yield batch
            batch, num_characters = [], 0
        batch.append(document)
        # one for the document itself: a flood of empty ones must not pile up either
        num_characters += len(document.text) + 1
    if batch:
        yield batch


def _sorted_counts(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in sorted(counts)}
