"""The contract between data_prep, which writes a dataset, and the trainer, which reads it.

A dataset is a directory:

    manifest.json                              written last: a directory without it is no dataset
    spm.model                                  the tokenizer, as SentencePiece wrote it
    train/shard-<source>-<task>.arrow          one Arrow IPC file, uncompressed, exactly one record batch
    train/shard-<source>-<task>-<part>.arrow   the second and later shards of a task too large for one
    train/shard-<source>-<task>.json           the shard's ShardRecord, written after it
    validation/...                             the same

A shard's row is a document: its ids, without special ones, in one or two columns (token_storage.py), and doc uint64,
the document's first byte in its decompressed input (its row, in a table). No sequence length is baked in.
What is verified, and when: `load_manifest` reads the manifest, the tokenizer and the sizes of all shards; `open_shard`
opens one shard at a chosen level, see `Verification`. Every fault is a ValueError of one line.

This file is the face of the contract; what it names is defined in the four files it imports from.
Used by: every file of data_prep, trainer/. Tested by: tests/data_prep/test_shard_schema.py.
Not here: writing (write_shards.py), the order of samples and their packing (trainer). Fields: docs/data_format.md.
"""

from disentangled.data_prep.dataset_records import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    SPLITS,
    TOKENIZER_NAME,
    DatasetIdentity,
    InputRecord,
    Manifest,
    ShardRecord,
    SpecialIds,
    SplitCounts,
    TextRange,
    compute_dataset_id,
    decode_fields,
    encode_json,
    shard_path,
    sum_records,
)
from disentangled.data_prep.load_manifest import examine_manifest, examine_record, load_manifest, read_manifest
from disentangled.data_prep.open_shard import OpenShard, Verification, open_shard, refuse
from disentangled.data_prep.token_storage import ShardTokens, TokenStorage

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "SPLITS",
    "TOKENIZER_NAME",
    "DatasetIdentity",
    "InputRecord",
    "Manifest",
    "OpenShard",
    "ShardRecord",
    "ShardTokens",
    "SpecialIds",
    "SplitCounts",
    "TextRange",
    "TokenStorage",
    "Verification",
    "compute_dataset_id",
    "decode_fields",
    "encode_json",
    "examine_manifest",
    "examine_record",
    "load_manifest",
    "open_shard",
    "read_manifest",
    "refuse",
    "shard_path",
    "sum_records",
]
