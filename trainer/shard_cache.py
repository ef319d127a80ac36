"""Shards of a remote store, fetched when they are first needed and kept on this machine.

What: CACHE/<dataset id>/ holds the manifest, the tokenizer, plans and the shards fetched so far, under the names they
have in the store. A shard is fetched by one process of a node, while the others wait at its lock; its checksum is
taken on the way and compared before the file gets its name, so what has a name is whole. Above the limit the shards
that were opened longest ago are removed; processes that have them mapped are not disturbed.
Used by: trainer/dataset.py. Tested by: tests/trainer/test_shard_cache.py.
Not here: the order of samples; with a limit it must keep to few shards at a time (data.shuffle_block_shards).
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import xxhash
from pyarrow import fs

from disentangled.data_prep.input_store import parse_url
from disentangled.data_prep.shard_schema import (
    MANIFEST_NAME,
    SPLITS,
    TOKENIZER_NAME,
    Manifest,
    OpenShard,
    ShardRecord,
    Verification,
    examine_manifest,
    examine_record,
    open_shard,
    read_manifest,
    refuse,
)
from disentangled.data_prep.whole_file import create_file

COPY_BYTES = 8 << 20


class ShardCache:
    """A dataset at a URL; see trainer/dataset.py."""

    def __init__(self, url: str, cache: Path, limit_bytes: int = 0) -> None:
        self.name = str(parse_url(url)).rstrip("/")  # without password and options
        self._limit_bytes = limit_bytes
        try:
            self._store, self._root = fs.FileSystem.from_uri(url.rstrip("/"))
        except (pa.ArrowException, OSError):
            raise ValueError(
                f"{self.name}: no store that pyarrow can reach: give a folder, or a URL of s3, gs or hdfs"
            ) from None
        content = self._read_small(MANIFEST_NAME, "so this is no finished dataset: run build_corpus and upload it")
        self.directory = cache / self._dataset_id(content)[:32]
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write_small(MANIFEST_NAME, content)
        self._write_small(TOKENIZER_NAME, self._read_small(TOKENIZER_NAME, "upload it again"))
        self.manifest: Manifest = read_manifest(self.directory)
        examine_manifest(self.directory, self.manifest, refuse)
        records = [record for split in SPLITS for record in self.manifest.splits[split]]
        self._check_shards(records)
        largest = max((record.size_bytes for record in records), default=1)
        # What is mapped keeps its room on the disk after it was removed: half of the limit for that.
        self.max_open_shards = max(1, limit_bytes // (2 * largest)) if limit_bytes else 4096

    def open(self, record: ShardRecord, verify: Verification = "checksum") -> OpenShard:
        """Map a shard, fetched first if need be."""
        path = self.directory / record.path
        with self._locked(path):
            if not path.exists() or path.stat().st_size != record.size_bytes:
                self._fetch(record, path)
            os.utime(path)
            shard = open_shard(self.directory, record, verify)
        if self._limit_bytes:
            self._make_room(path)
        return shard

    def fetch_plan(self, name: str) -> Path:
        """Where a plan of this name lies on this machine, fetched if the store has it."""
        path = self.directory / "plans" / name
        with contextlib.suppress(OSError), self._locked(path):
            if not path.exists():
                self._copy(f"plans/{name}", path)
        return path

    def _fetch(self, record: ShardRecord, path: Path) -> None:
        checksum = self._copy(record.path, path, record.xxh3_128)
        if checksum != record.xxh3_128:
            raise ValueError(
                f"{self.name}/{record.path}: xxh3_128 differs from its record, the file is damaged in the store or "
                "was on the way: try again, then upload it anew"
            )

    def _copy(self, name: str, path: Path, expected: str = "") -> str:
        """Copy a file of the store here, whole or not at all, unless its checksum is not the expected one."""
        hasher = xxhash.xxh3_128()
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            self._store.open_input_stream(f"{self._root}/{name}") as stream,
            contextlib.suppress(_NotExpected),
            create_file(path) as file,
        ):
            while block := stream.read(COPY_BYTES):
                hasher.update(block)
                file.write(block)
            if expected and hasher.hexdigest() != expected:
                raise _NotExpected
        return hasher.hexdigest()

    def _make_room(self, newest: Path) -> None:
        """Remove the shards that were opened longest ago, until the rest keep to the limit; never the newest."""
        with self._locked(self.directory / "room"):
            shards = []
            for path in self.directory.glob("*/shard-*.arrow"):
                with contextlib.suppress(FileNotFoundError):
                    shards.append((path.stat().st_mtime_ns, path.stat().st_size, path))
            total = sum(size for _, size, _ in shards)
            for _, size, path in sorted(shards):
                if total <= self._limit_bytes:
                    break
                if path != newest:
                    path.unlink(missing_ok=True)
                    total -= size

    def _check_shards(self, records: list[ShardRecord]) -> None:
        """Refuse a manifest whose shards are not all in the store, in their sizes."""
        found: dict[str, int] = {}
        for split in {record.split for record in records}:
            selector = fs.FileSelector(f"{self._root}/{split}", allow_not_found=True)
            found |= {f"{split}/{info.base_name}": info.size for info in self._store.get_file_info(selector)}
        for record in records:
            examine_record(self.name, record, self.manifest, refuse)
            size = found.get(record.path)
            if size != record.size_bytes:
                what = "missing shard" if size is None else f"{size} bytes, its record says {record.size_bytes}"
                raise ValueError(f"{self.name}/{record.path}: {what}: upload it again")

    def _read_small(self, name: str, remedy: str) -> bytes:
        try:
            with self._store.open_input_stream(f"{self._root}/{name}") as stream:
                content: bytes = stream.read()
        except FileNotFoundError:
            raise ValueError(f"{self.name}: no {name} here, {remedy}") from None
        except OSError as error:
            raise ValueError(f"{self.name}: the store cannot be read ({' '.join(str(error).split())})") from None
        return content

    def _write_small(self, name: str, content: bytes) -> None:
        path = self.directory / name
        if not path.exists() or path.read_bytes() != content:
            with create_file(path) as file:
                file.write(content)

    def _dataset_id(self, content: bytes) -> str:
        try:
            return str(json.loads(content)["dataset_id"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self.name}/{MANIFEST_NAME}: not a manifest: upload the dataset again") from None

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """One process of this node at a time for what lies at path."""
        lock = self.directory / "locks" / path.name
        lock.parent.mkdir(exist_ok=True)
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class _NotExpected(Exception):
    """What came is not what was expected: nothing is kept."""
