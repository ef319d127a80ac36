"""A dataset as the trainer reads it: a folder of this machine, or one in a remote store behind a cache.

What: `open_dataset` takes a path, or a URL that pyarrow.fs knows (s3://, gs://, hdfs://, file://). Both kinds have a
manifest, a local folder for small files (tokenizer, plans) and `open`, which maps a shard into memory.
Used by: trainer/shards.py, window_plan.py, train.py, plan.py. Tested by: tests/trainer/test_dataset.py.
Not here: how a remote shard comes to this machine (shard_cache.py).
"""

import os
from pathlib import Path
from typing import Protocol

from disentangled.data_prep.shard_schema import (
    TOKENIZER_NAME,
    Manifest,
    OpenShard,
    ShardRecord,
    Verification,
    load_manifest,
    open_shard,
)
from disentangled.trainer.shard_cache import ShardCache


class Dataset(Protocol):
    """What the trainer asks of a dataset.

    Attributes:
        name: as the user wrote it.
        directory: where its small files lie on this machine.
        max_open_shards: mapped at a time by one process.
    """

    name: str
    directory: Path
    manifest: Manifest
    max_open_shards: int

    def open(self, record: ShardRecord, verify: Verification = "checksum") -> OpenShard:
        """Map a shard; ValueError or OSError, in a line that names it, where it is damaged or cannot be had."""

    def fetch_plan(self, name: str) -> Path:
        """Where a plan of this name lies, if it does."""


class LocalDataset:
    """A dataset in a folder, all of whose shards are there in their sizes."""

    max_open_shards = 4096  # far from the 65,530 mappings that Linux allows a process

    def __init__(self, directory: str | Path) -> None:
        self.name = str(directory)
        self.directory = Path(directory)
        self.manifest = load_manifest(directory)

    def open(self, record: ShardRecord, verify: Verification = "checksum") -> OpenShard:
        """Map a shard."""
        return open_shard(self.directory, record, verify)

    def fetch_plan(self, name: str) -> Path:
        """Where a plan of this name would lie."""
        return self.directory / "plans" / name


def open_dataset(shards: str, cache: str = "", cache_bytes: int = 0) -> Dataset:
    """The dataset at a path or URL.

    Args:
        cache: folder for what comes from a remote store; default_cache() where empty.
        cache_bytes: the shards there take no more than about this; 0: no limit.

    Raises:
        ValueError: no dataset, a damaged one, an unknown store; one line.
    """
    if "://" not in shards:
        return LocalDataset(shards)
    return ShardCache(shards, Path(cache) if cache else default_cache(), cache_bytes)


def default_cache() -> Path:
    """$XDG_CACHE_HOME/disentangled, which is ~/.cache/disentangled where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "disentangled"


def tokenizer_path(dataset: Dataset) -> Path:
    """Its SentencePiece model."""
    return dataset.directory / TOKENIZER_NAME
