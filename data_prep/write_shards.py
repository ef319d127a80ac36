"""Writes encoded documents as shards: Arrow IPC files of one record batch, each followed by its sidecar.

A unit of work gives one shard a split in the usual case. A shard is full when the next document would take it past
shard_tokens (a longer document is a shard of its own); then the unit's next part begins. So the cuts depend on the
documents alone and not on how they were batched. Memory is one shard per split.

Used by: encode_unit.py. Tested by: tests/data_prep/test_write_shards.py.
Not here: the format itself (shard_schema.py), whole files (whole_file.py).
"""

import dataclasses
import json
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from disentangled.data_prep.arrow_numpy import to_arrow
from disentangled.data_prep.hash_file import hash_file
from disentangled.data_prep.shard_schema import (
    DatasetIdentity,
    ShardRecord,
    TextRange,
    encode_json,
    shard_path,
)
from disentangled.data_prep.token_storage import COLUMNS, ShardTokens, arrow_schema, count_pieces, split_ids
from disentangled.data_prep.whole_file import create_file, write_file


@dataclass(frozen=True)
class EncodedDocuments:
    """Consecutive documents of one input file, in order.

    tokens [num_tokens] integer, lengths, start_bytes and text_bytes [num_documents] int64.
    """

    file: str
    tokens: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    start_bytes: npt.NDArray[np.int64]
    text_bytes: npt.NDArray[np.int64]

    def select(self, chosen: npt.NDArray[np.bool_]) -> "EncodedDocuments":
        """Return the documents where chosen [num_documents] is true."""
        return EncodedDocuments(
            file=self.file,
            tokens=self.tokens[np.repeat(chosen, self.lengths)],
            lengths=self.lengths[chosen],
            start_bytes=self.start_bytes[chosen],
            text_bytes=self.text_bytes[chosen],
        )


class ShardWriter:
    """Writes the shards of one split of one unit; read `records` and `piece_counts` after close()."""

    def __init__(
        self,
        directory: Path,
        identity: DatasetIdentity,
        split: str,
        source: str,
        shard_tokens: int,
        byte_ids: npt.NDArray[np.int64],
        task: int,
    ) -> None:
        self.records: list[ShardRecord] = []
        self.piece_counts = np.zeros(identity.num_pieces, dtype=np.int64)
        self._directory = directory
        self._identity = identity
        self._split = split
        self._source = source
        self._byte_ids = byte_ids
        self._task = task
        self._shard_tokens = shard_tokens
        # empty, not zeros: only the pages that are written take memory
        self._planes = [np.empty(shard_tokens, dtype) for dtype in COLUMNS[identity.token_storage].values()]
        self._num_tokens = 0
        self._text_bytes = 0
        self._lengths = array("q")
        self._start_bytes = array("Q")
        self._ranges: list[TextRange] = []

    def append(self, documents: EncodedDocuments) -> None:
        """Add documents in order; ValueError for an id that the model does not have."""
        if len(documents.tokens) and not 0 <= documents.tokens.min() <= documents.tokens.max() < len(self.piece_counts):
            num_pieces = len(self.piece_counts)
            raise ValueError(f"{documents.file}: an id lies outside the {num_pieces} pieces of the tokenizer")
        ends = np.cumsum(documents.lengths)
        first = 0
        while first < len(ends):
            start = int(ends[first - 1]) if first else 0
            room = self._shard_tokens - self._num_tokens
            last = int(np.searchsorted(ends, start + room, side="right"))
            if last <= first and self._num_tokens:
                self._write_shard()
                continue
            # a document longer than a shard has one to itself
            last = max(last, first + 1)
            self._take(documents, first, last, documents.tokens[start : int(ends[last - 1])])
            first = last

    def close(self) -> None:
        """Write what is left."""
        if len(self._lengths):
            self._write_shard()

    def _take(self, documents: EncodedDocuments, first: int, last: int, tokens: npt.NDArray[np.int32]) -> None:
        """Copy documents first ... last - 1 into the shard being filled."""
        end = self._num_tokens + len(tokens)
        if end > len(self._planes[0]):
            assert self._num_tokens == 0, "only a document that has its shard to itself may be longer than the buffer"
            self._planes = [np.empty(end, plane.dtype) for plane in self._planes]
        split_ids(tokens, [plane[self._num_tokens : end] for plane in self._planes])
        self._num_tokens = end
        self._text_bytes += int(documents.text_bytes[first:last].sum())
        self._lengths.extend(documents.lengths[first:last].tolist())
        starts = documents.start_bytes[first:last].tolist()
        self._start_bytes.extend(starts)
        if self._ranges and self._ranges[-1].file == documents.file:
            before = self._ranges.pop()
            num_documents = before.num_documents + len(starts)
            self._ranges.append(TextRange(documents.file, num_documents, before.first_document_byte, starts[-1]))
        else:
            self._ranges.append(TextRange(documents.file, len(starts), starts[0], starts[-1]))

    def _write_shard(self) -> None:
        """Write the shard, then its sidecar, and begin the next."""
        planes = [plane[: self._num_tokens] for plane in self._planes]
        counts = count_pieces(ShardTokens(planes), len(self.piece_counts))
        present = np.flatnonzero(counts)
        part = len(self.records)
        path = self._directory / shard_path(self._split, self._source, self._task, part)
        with create_file(path) as file:
            schema = arrow_schema(self._identity.token_storage, self._describe_shard(part))
            with pa.ipc.new_file(file, schema) as writer:
                writer.write_batch(self._build_batch(schema, planes))
        record = ShardRecord(
            split=self._split,
            source=self._source,
            task=self._task,
            part=part,
            num_documents=len(self._lengths),
            num_tokens=self._num_tokens,
            text_bytes=self._text_bytes,
            num_unknown_tokens=int(counts[self._identity.special_ids.unk]),
            num_byte_tokens=int(counts[self._byte_ids].sum()),
            min_id=int(present[0]),
            max_id=int(present[-1]),
            vocab_size=self._identity.vocab_size,
            token_storage=self._identity.token_storage,
            tokenizer_sha256=self._identity.tokenizer_sha256,
            size_bytes=path.stat().st_size,
            xxh3_128=hash_file(path, "xxh3_128"),
            sha256=hash_file(path, "sha256"),
            ranges=tuple(self._ranges),
        )
        write_file(path.with_suffix(".json"), encode_json(record))
        self.records.append(record)
        self.piece_counts += counts
        self._num_tokens = self._text_bytes = 0
        self._lengths, self._start_bytes, self._ranges = array("q"), array("Q"), []

    def _build_batch(self, schema: pa.Schema, planes: list[npt.NDArray[Any]]) -> pa.RecordBatch:
        """Return the rows as Arrow arrays over the buffers that already hold them."""
        offsets = np.zeros(len(self._lengths) + 1, dtype=np.int32)
        np.cumsum(np.frombuffer(self._lengths, dtype=np.int64), out=offsets[1:])
        shared = to_arrow(offsets)
        kinds = [field.type for field in schema][: len(planes)]
        rows = [pa.ListArray.from_arrays(shared, to_arrow(p), type=k) for p, k in zip(planes, kinds, strict=True)]
        start_bytes = to_arrow(np.frombuffer(self._start_bytes, dtype=np.uint64))
        return pa.record_batch([*rows, start_bytes], schema=schema)

    def _describe_shard(self, part: int) -> dict[str, str]:
        """Return the shard's own account of what it is, for Arrow's schema metadata."""
        identity = self._identity
        return {
            "schema_version": str(identity.schema_version),
            "split": self._split,
            "source": self._source,
            "task": str(self._task),
            "part": str(part),
            "tokenizer_sha256": identity.tokenizer_sha256,
            "sentencepiece_version": identity.sentencepiece_version,
            "normalizer": identity.normalizer,
            "chunking": identity.chunking,
            "cleaning": identity.cleaning,
            "vocab_size": str(identity.vocab_size),
            "token_storage": identity.token_storage,
            "num_pieces": str(identity.num_pieces),
            "special_ids": json.dumps(dataclasses.asdict(identity.special_ids)),
            "ranges": json.dumps([dataclasses.asdict(text_range) for text_range in self._ranges]),
        }
