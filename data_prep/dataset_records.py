"""The records that describe a dataset and its shards, their sums, and the JSON files that hold them.

Used by: every file of data_prep, through shard_schema.py. Tested by: tests/data_prep/test_shard_schema.py.
Not here: whether they are true of what lies on disk (load_manifest.py, open_shard.py). Fields: docs/data_format.md.
"""

import dataclasses
import functools
import hashlib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from disentangled.data_prep.token_storage import TokenStorage

SCHEMA_VERSION = 2
SPLITS = ("train", "validation")
MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "spm.model"


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
    token_storage: TokenStorage
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
    token_storage: TokenStorage
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


def shard_path(split: str, source: str, task: int, part: int = 0) -> str:
    """Return a shard's path below the dataset directory; its sidecar ends in .json instead."""
    return f"{split}/shard-{source}-{task:06d}{f'-{part}' if part else ''}.arrow"


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


@functools.cache
def _field_types(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields; cached, as a manifest holds thousands of records of one class."""
    return typing.get_type_hints(kind)


def decode_fields(kind: Any, value: Any, path: str, name: str) -> Any:
    """Return a JSON value as `kind`: a frozen dataclass, a tuple or dict of one type, a Literal or a plain type."""
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
    if (isinstance(kind, type) and type(value) is kind) or (origin is Literal and value in arguments):
        return value
    raise ValueError(f"{path}: {name} is {value!r:.40}, which has the wrong type: build the dataset again")
