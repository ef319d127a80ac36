"""The contract between data_prep, which writes a dataset, and the trainer, which reads it.

A dataset is a directory:

    manifest.json                              written last: a directory without it is no dataset
    spm.model                                  the tokenizer, as SentencePiece wrote it
    train/shard-<source>-<task>.arrow          one Arrow IPC file, uncompressed, exactly one record batch
    train/shard-<source>-<task>-<part>.arrow   the second and later shards of a task too large for one
    train/shard-<source>-<task>.json           the shard's ShardRecord, written after it
    validation/...                             the same

A shard's row is a document: tokens list<uint16> (uint32 above a vocabulary of 65,535) without special ids, and doc
uint64, the document's first byte in its decompressed input (its row, in a table). No sequence length is baked in.
What is verified, and when: `load_manifest` reads the manifest, the tokenizer and the sizes of all shards; `open_shard`
opens one shard at a chosen level, see `Verification`. Every fault is a ValueError of one line.

Used by: every file of data_prep, trainer/shards.py. Tested by: tests/data_prep/test_shard_schema.py.
Not here: writing (write_shards.py), the order of samples and their packing (trainer). Fields: docs/data_format.md.
"""

import dataclasses
import functools
import hashlib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

SCHEMA_VERSION = 1
SPLITS = ("train", "validation")
MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "spm.model"

Verification = Literal["quick", "checksum", "full"]
"""quick: size, footer, schema, counts, tokenizer. checksum: also xxh3_128 of the file, at memory speed.
full: also sha256, every id below the vocabulary size and offsets that never fall."""


@dataclass(frozen=True)
class SpecialIds:
    """DeBERTa's special ids. The mask lies one past the last SentencePiece piece, so no text can produce it."""

    pad: int
    cls: int
    sep: int
    unk: int
    mask: int


@dataclass(frozen=True)
class TextRange:
    """Consecutive rows of a shard that come from one input file, in row order."""

    file: str
    num_documents: int
    first_document_byte: int
    last_document_byte: int


@dataclass(frozen=True)
class ShardRecord:
    """What is known of one shard: the content of its sidecar and its entry in the manifest."""

    split: str
    source: str
    task: int
    part: int
    num_documents: int
    num_tokens: int
    text_bytes: int
    num_unknown_tokens: int
    num_byte_tokens: int
    min_id: int
    max_id: int
    vocab_size: int
    tokenizer_sha256: str
    size_bytes: int
    xxh3_128: str
    sha256: str
    ranges: tuple[TextRange, ...]

    @property
    def path(self) -> str:
        """The shard's path below the dataset directory."""
        return shard_path(self.split, self.source, self.task, self.part)


@dataclass(frozen=True)
class SplitCounts:
    """Sums over the shards of a split. num_byte_tokens counts pieces of byte fallback, such as <0xE2>."""

    num_shards: int
    num_documents: int
    num_tokens: int
    text_bytes: int
    num_unknown_tokens: int
    num_byte_tokens: int
    unknown_rate: float
    bytes_per_token: float


@dataclass(frozen=True)
class InputRecord:
    """One input file: its path below the inputs' common folder, its size, a hash of its first MiB as stored."""

    name: str
    size_bytes: int
    head_xxh3_128: str


@dataclass(frozen=True)
class DatasetIdentity:
    """All that decides a dataset's content besides its text; hashed into dataset_id."""

    schema_version: int
    tokenizer_sha256: str
    sentencepiece_version: str
    normalizer: str
    chunking: str
    cleaning: str
    vocab_size: int
    num_pieces: int
    special_ids: SpecialIds
    sources: tuple[str, ...]
    source_weights: tuple[float, ...]
    seed: int
    validation_fraction: float
    validation_floor: int


@dataclass(frozen=True)
class Manifest(DatasetIdentity):
    """manifest.json. splits and counts hold one entry for each of SPLITS; records are in the order of
    sources, tasks and parts."""

    dataset_id: str
    training_unigram_entropy_nats: float
    validation_unigram_cross_entropy_nats: float
    num_bad_documents: int
    num_empty_documents: int
    inputs: tuple[InputRecord, ...]
    totals: SplitCounts
    counts: dict[str, SplitCounts]
    splits: dict[str, tuple[ShardRecord, ...]]


@dataclass(frozen=True)
class OpenShard:
    """Read-only views into a memory-mapped shard: document i is tokens[offsets[i] : offsets[i + 1]].

    tokens [num_tokens] uint16 or uint32, offsets [num_documents + 1] int64, start_bytes [num_documents] uint64.
    """

    record: ShardRecord
    tokens: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    start_bytes: npt.NDArray[np.uint64]
    metadata: dict[str, str]


def shard_path(split: str, source: str, task: int, part: int = 0) -> str:
    """Return a shard's path below the dataset directory; its sidecar ends in .json instead."""
    return f"{split}/shard-{source}-{task:06d}{f'-{part}' if part else ''}.arrow"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the narrowest type that the format allows for ids below vocab_size."""
    return np.dtype(np.uint16 if vocab_size <= 65_535 else np.uint32)


def arrow_schema(vocab_size: int, metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """Return the schema of every shard of a vocabulary of this size."""
    item = pa.field("item", pa.from_numpy_dtype(token_dtype(vocab_size)), nullable=False)
    fields = [pa.field("tokens", pa.list_(item), nullable=False), pa.field("doc", pa.uint64(), nullable=False)]
    return pa.schema(fields, metadata=metadata)


def sum_records(records: tuple[ShardRecord, ...]) -> SplitCounts:
    """Return the sums over records; the rates of no tokens are 0."""
    num_tokens = sum(record.num_tokens for record in records)
    text_bytes = sum(record.text_bytes for record in records)
    num_unknown_tokens = sum(record.num_unknown_tokens for record in records)
    return SplitCounts(
        num_shards=len(records),
        num_documents=sum(record.num_documents for record in records),
        num_tokens=num_tokens,
        text_bytes=text_bytes,
        num_unknown_tokens=num_unknown_tokens,
        num_byte_tokens=sum(record.num_byte_tokens for record in records),
        unknown_rate=num_unknown_tokens / max(num_tokens, 1),
        bytes_per_token=text_bytes / max(num_tokens, 1),
    )


def compute_dataset_id(identity: DatasetIdentity, splits: Mapping[str, tuple[ShardRecord, ...]]) -> str:
    """Return sha256 over the identity's fields and the ordered sha256 of all shards."""
    fields = {field.name: getattr(identity, field.name) for field in dataclasses.fields(DatasetIdentity)}
    fields["special_ids"] = dataclasses.asdict(identity.special_ids)
    shards = [[split, record.sha256] for split in SPLITS for record in splits[split]]
    canonical = json.dumps({"identity": fields, "shards": shards}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def encode_json(record: ShardRecord | Manifest) -> bytes:
    """Return the record as the JSON file that holds it; equal records give equal bytes."""
    return (json.dumps(dataclasses.asdict(record), indent=1) + "\n").encode()


def hash_file(path: Path, algorithm: Literal["xxh3_128", "sha256"]) -> str:
    """Return the hex digest of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128 if algorithm == "xxh3_128" else hashlib.sha256).hexdigest()


def load_manifest(directory: str | Path) -> Manifest:
    """Read and check a dataset's manifest, its tokenizer file and the presence and size of every shard.

    Raises ValueError (one line) for a missing directory, manifest, tokenizer or shard, another schema version, a
    manifest that was edited or is not valid, a tokenizer that was exchanged and a shard of another size or tokenizer.
    """
    path = Path(directory) / MANIFEST_NAME
    if not path.is_file():
        raise ValueError(f"{directory}: no {MANIFEST_NAME} here, so this is no finished dataset: run build_corpus")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}): build the dataset again") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema version {version}, this code reads {SCHEMA_VERSION}: build the dataset again")
    manifest: Manifest = decode_fields(Manifest, content, str(path), "manifest")
    for name in SPLITS:
        if manifest.counts.get(name) != sum_records(manifest.splits.get(name, ())):
            raise ValueError(f"{path}: the counts of split {name!r} are not those of its shards: build it again")
    if compute_dataset_id(manifest, manifest.splits) != manifest.dataset_id:
        raise ValueError(f"{path}: dataset_id does not match the content, it was edited: build the dataset again")
    tokenizer = Path(directory) / TOKENIZER_NAME
    if not tokenizer.is_file():
        raise ValueError(f"{tokenizer}: missing: restore it or build the dataset again")
    if hash_file(tokenizer, "sha256") != manifest.tokenizer_sha256:
        raise ValueError(f"{tokenizer}: not the tokenizer of this dataset (sha256 differs): restore the original")
    for record in (record for name in SPLITS for record in manifest.splits[name]):
        _check_record(Path(directory) / record.path, record, manifest)
    return manifest


def open_shard(directory: str | Path, record: ShardRecord, verify: Verification = "quick") -> OpenShard:
    """Map a shard of the dataset in directory into memory, verified against its record.

    Raises ValueError (one line, naming the file) for every difference that the level of verification can see.
    """
    path = Path(directory) / record.path
    _check_size(path, record)
    if verify != "quick" and hash_file(path, "xxh3_128") != record.xxh3_128:
        raise ValueError(f"{path}: xxh3_128 differs from its record, the file is damaged: restore or rebuild it")
    if verify == "full" and hash_file(path, "sha256") != record.sha256:
        raise ValueError(f"{path}: sha256 differs from its record, the file is damaged: restore or rebuild it")
    try:
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            if not reader.schema.equals(arrow_schema(record.vocab_size)):
                raise ValueError(f"{path}: its columns are not those of schema version {SCHEMA_VERSION}: rebuild it")
            if reader.num_record_batches != 1:
                raise ValueError(f"{path}: {reader.num_record_batches} record batches, a shard has one: rebuild it")
            metadata = _decode_metadata(reader.schema.metadata or {})
            _check_metadata(path, record, metadata)
            batch = reader.get_batch(0)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a whole Arrow file ({reason}): restore or rebuild it") from None
    rows = batch.column("tokens")
    shard = OpenShard(
        record=record,
        tokens=rows.values.to_numpy(zero_copy_only=True),
        offsets=rows.offsets.to_numpy(zero_copy_only=True).astype(np.int64),
        start_bytes=batch.column("doc").to_numpy(zero_copy_only=True),
        metadata=metadata,
    )
    _check_rows(path, shard, full=verify == "full")
    return shard


def _check_size(path: Path, record: ShardRecord) -> None:
    """Refuse a shard that is absent or has another size than its record says."""
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        raise ValueError(f"{path}: missing shard: restore it or build the dataset again") from None
    if size_bytes != record.size_bytes:
        raise ValueError(f"{path}: {size_bytes} bytes, its record says {record.size_bytes}: restore or rebuild it")


def _check_record(path: Path, record: ShardRecord, manifest: Manifest) -> None:
    """Refuse a record that is not of this manifest's tokenizer, and a shard that is not there in full."""
    if (record.tokenizer_sha256, record.vocab_size) != (manifest.tokenizer_sha256, manifest.vocab_size):
        raise ValueError(f"{path}: written with another tokenizer than {TOKENIZER_NAME}: build the dataset again")
    _check_size(path, record)


def _check_metadata(path: Path, record: ShardRecord, metadata: dict[str, str]) -> None:
    """Refuse a whole and valid shard that is not the one the record speaks of."""
    expected = {"schema_version": SCHEMA_VERSION, "tokenizer_sha256": record.tokenizer_sha256}
    expected |= {name: getattr(record, name) for name in ("vocab_size", "split", "source", "task", "part")}
    for name, value in expected.items():
        found = metadata.get(name)
        if found != str(value):
            raise ValueError(f"{path}: {name} is {found}, expected {value}: this shard is of another dataset")


def _decode_metadata(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return an Arrow schema's metadata as text."""
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in metadata.items()}


def _check_rows(path: Path, shard: OpenShard, full: bool) -> None:
    """Refuse counts and offsets that do not fit together, and, in full, ids that the vocabulary does not hold."""
    record, offsets = shard.record, shard.offsets
    if (len(offsets) - 1, len(shard.tokens)) != (record.num_documents, record.num_tokens):
        found = f"{len(offsets) - 1} documents with {len(shard.tokens)} tokens"
        expected = f"{record.num_documents} with {record.num_tokens}"
        raise ValueError(f"{path}: {found}, its record says {expected}: restore or rebuild it")
    if offsets[0] != 0 or offsets[-1] != record.num_tokens or (full and np.any(np.diff(offsets) < 0)):
        raise ValueError(f"{path}: the offsets of its documents are damaged: restore or rebuild it")
    if full and len(shard.tokens) and int(shard.tokens.max()) >= record.vocab_size:
        raise ValueError(f"{path}: holds an id past the vocabulary of {record.vocab_size}: restore or rebuild it")


@functools.cache
def _field_types(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields; cached, as a manifest holds thousands of records of one class."""
    return typing.get_type_hints(kind)


def decode_fields(kind: Any, value: Any, path: str, name: str) -> Any:
    """Return a JSON value as `kind`: a frozen dataclass, a tuple or dict of one type, or a plain type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = _field_types(kind)
        absent = [field.name for field in dataclasses.fields(kind) if field.name not in value]
        if absent:
            raise ValueError(f"{path}: {name} lacks {absent[0]!r}: build the dataset again")
        fields = dataclasses.fields(kind)
        return kind(**{f.name: decode_fields(hints[f.name], value[f.name], path, f"{name}.{f.name}") for f in fields})
    if origin is tuple and isinstance(value, list):
        return tuple(decode_fields(arguments[0], item, path, f"{name}[{index}]") for index, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: decode_fields(arguments[1], item, path, f"{name}.{key}") for key, item in value.items()}
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f"{path}: {name} is {value!r:.40}, which has the wrong type: build the dataset again")
