"""Reads a dataset's manifest and compares it with its tokenizer and the sizes of its shards.

`load_manifest` raises the first fault; `examine_manifest` tells them all to whoever wants the whole list.

Used by: verify.py and, through shard_schema.py, every reader. Tested by: tests/data_prep/test_shard_schema.py,
test_verify.py. Not here: what the shards hold (open_shard.py).
"""

import json
from pathlib import Path

from disentangled.data_prep.dataset_records import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    SPLITS,
    TOKENIZER_NAME,
    Manifest,
    ShardRecord,
    compute_dataset_id,
    decode_fields,
    sum_records,
)
from disentangled.data_prep.hash_file import hash_file
from disentangled.data_prep.open_shard import Report, examine_size, refuse


def load_manifest(directory: str | Path) -> Manifest:
    """Read and check a dataset's manifest, its tokenizer file and the presence and size of every shard.

    Raises ValueError (one line) for a missing directory, manifest, tokenizer or shard, another schema version, a
    manifest that was edited or is not valid, a tokenizer that was exchanged and a shard of another size or tokenizer.
    """
    manifest = read_manifest(directory)
    examine_manifest(directory, manifest, refuse)
    for record in (record for name in SPLITS for record in manifest.splits[name]):
        examine_record(directory, record, manifest, refuse)
        examine_size(Path(directory) / record.path, record, refuse)
    return manifest


def read_manifest(directory: str | Path) -> Manifest:
    """Return the manifest as it is written; ValueError where there is none that can be read."""
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
    return manifest


def examine_manifest(directory: str | Path, manifest: Manifest, report: Report) -> None:
    """Report a manifest that contradicts itself and a tokenizer that is not the dataset's."""
    path = Path(directory) / MANIFEST_NAME
    for name in SPLITS:
        if manifest.counts.get(name) != sum_records(manifest.splits.get(name, ())):
            report(f"{path}: the counts of split {name!r} are not those of its shards: build it again")
    splits = {name: manifest.splits.get(name, ()) for name in SPLITS}
    if compute_dataset_id(manifest, splits) != manifest.dataset_id:
        report(f"{path}: dataset_id does not match the content, it was edited: build the dataset again")
    tokenizer = Path(directory) / TOKENIZER_NAME
    if not tokenizer.is_file():
        report(f"{tokenizer}: missing: restore it or build the dataset again")
    elif hash_file(tokenizer, "sha256") != manifest.tokenizer_sha256:
        report(f"{tokenizer}: not the tokenizer of this dataset (sha256 differs): restore the original")


def examine_record(directory: str | Path, record: ShardRecord, manifest: Manifest, report: Report) -> None:
    """Report a record that is not of this manifest's tokenizer."""
    names = ("tokenizer_sha256", "vocab_size", "token_storage")
    if any(getattr(record, name) != getattr(manifest, name) for name in names):
        path = Path(directory) / record.path
        report(f"{path}: written with another tokenizer than {TOKENIZER_NAME}: build the dataset again")
