"""Maps one shard into memory, after comparing it with its record at a chosen level.

`open_shard` raises the first fault; `examine_shard` tells them all, as far as one does not hide the next, to whoever
wants the whole list.

Used by: verify.py and, through shard_schema.py, every reader. Tested by: tests/data_prep/test_shard_schema.py,
test_verify.py. Not here: the manifest (load_manifest.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from disentangled.data_prep.arrow_numpy import to_numpy
from disentangled.data_prep.dataset_records import SCHEMA_VERSION, ShardRecord
from disentangled.data_prep.hash_file import HashAlgorithm, hash_file
from disentangled.data_prep.token_storage import COLUMNS, ShardTokens, arrow_schema

Verification = Literal["quick", "checksum", "full"]
"""quick: size, footer, schema, counts, tokenizer. checksum: also xxh3_128 of the file, at memory speed.
full: also sha256, every id below the vocabulary size and offsets that never fall."""

Report = Callable[[str], None]
"""Is told each fault, a line each; it may raise."""

_ALGORITHMS: dict[Verification, tuple[HashAlgorithm, ...]] = {
    "quick": (),
    "checksum": ("xxh3_128",),
    "full": ("xxh3_128", "sha256"),
}
# 1 Mi tokens: 4 MiB as uint32
_BLOCK_TOKENS = 1 << 20


@dataclass(frozen=True)
class OpenShard:
    """Read-only views into a memory-mapped shard: document i is tokens[offsets[i] : offsets[i + 1]].

    tokens [num_tokens] give uint16 or uint32, offsets [num_documents + 1] int64, start_bytes [num_documents] uint64.
    """

    record: ShardRecord
    tokens: ShardTokens
    offsets: npt.NDArray[np.int64]
    start_bytes: npt.NDArray[np.uint64]
    metadata: dict[str, str]


def open_shard(directory: str | Path, record: ShardRecord, verify: Verification = "quick") -> OpenShard:
    """Map a shard of the dataset in directory into memory, verified against its record.

    Raises ValueError (one line, naming the file) for every difference that the level of verification can see.
    """
    shard = examine_shard(directory, record, verify, refuse)
    assert shard is not None, "refuse raises whatever the fault is"
    return shard


def refuse(fault: str) -> NoReturn:
    """Raise the fault."""
    raise ValueError(fault)


def examine_shard(directory: str | Path, record: ShardRecord, verify: Verification, report: Report) -> OpenShard | None:
    """Do what open_shard does, but tell the faults to report; None where too much is wrong to open the shard."""
    path = Path(directory) / record.path
    if not examine_size(path, record, report):
        return None
    for algorithm in _ALGORITHMS[verify]:
        if hash_file(path, algorithm) != getattr(record, algorithm):
            # what a damaged file says of itself means nothing
            report(f"{path}: {algorithm} differs from its record, the file is damaged: restore or rebuild it")
            return None
    try:
        shard = _map_shard(path, record, report)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        report(f"{path}: not a whole Arrow file ({reason}): restore or rebuild it")
        return None
    if shard:
        _examine_rows(path, shard, verify == "full", report)
    return shard


def examine_size(path: Path, record: ShardRecord, report: Report) -> bool:
    """Return whether a shard is there in the size that its record says; report if not."""
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        report(f"{path}: missing shard: restore it or build the dataset again")
        return False
    if size_bytes != record.size_bytes:
        report(f"{path}: {size_bytes} bytes, its record says {record.size_bytes}: restore or rebuild it")
        return False
    return True


def _map_shard(path: Path, record: ShardRecord, report: Report) -> OpenShard | None:
    """Return views into the file; None where it has not the form of a shard."""
    with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
        if not reader.schema.equals(arrow_schema(record.token_storage)):
            report(f"{path}: its columns are not those of schema version {SCHEMA_VERSION}: rebuild it")
            return None
        if reader.num_record_batches != 1:
            report(f"{path}: {reader.num_record_batches} record batches, a shard has one: rebuild it")
            return None
        metadata = _decode_metadata(reader.schema.metadata or {})
        _examine_metadata(path, record, metadata, report)
        batch = reader.get_batch(0)
    columns = [batch.column(name) for name in COLUMNS[record.token_storage]]
    offsets = [to_numpy(column.offsets) for column in columns]
    if any(not np.array_equal(offsets[0], other) for other in offsets[1:]):
        report(f"{path}: the columns of its ids have different offsets: restore or rebuild it")
    return OpenShard(
        record=record,
        tokens=ShardTokens([to_numpy(column.values) for column in columns]),
        offsets=offsets[0].astype(np.int64),
        start_bytes=to_numpy(batch.column("doc")),
        metadata=metadata,
    )


def _examine_metadata(path: Path, record: ShardRecord, metadata: dict[str, str], report: Report) -> None:
    """Report a whole and valid shard that is not the one the record speaks of."""
    expected: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "tokenizer_sha256": record.tokenizer_sha256}
    names = ("vocab_size", "token_storage", "split", "source", "task", "part")
    expected |= {name: getattr(record, name) for name in names}
    for name, value in expected.items():
        found = metadata.get(name)
        if found != str(value):
            report(f"{path}: {name} is {found}, expected {value}: this shard is of another dataset")


def _decode_metadata(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return an Arrow schema's metadata as text."""
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in metadata.items()}


def _examine_rows(path: Path, shard: OpenShard, full: bool, report: Report) -> None:
    """Report counts and offsets that do not fit together, and, in full, ids that the vocabulary does not hold."""
    record, offsets, tokens = shard.record, shard.offsets, shard.tokens
    if (len(offsets) - 1, len(tokens)) != (record.num_documents, record.num_tokens):
        found = f"{len(offsets) - 1} documents with {len(tokens)} tokens"
        expected = f"{record.num_documents} with {record.num_tokens}"
        report(f"{path}: {found}, its record says {expected}: restore or rebuild it")
    if offsets[0] != 0 or offsets[-1] != record.num_tokens or (full and np.any(np.diff(offsets) < 0)):
        report(f"{path}: the offsets of its documents are damaged: restore or rebuild it")
    blocks = range(0, len(tokens), _BLOCK_TOKENS) if full else ()
    if any(int(tokens[start : start + _BLOCK_TOKENS].max()) >= record.vocab_size for start in blocks):
        report(f"{path}: holds an id past the vocabulary of {record.vocab_size}: restore or rebuild it")
