"""How a shard stores ids: its columns, and the class through which ids are read from any of them.

    uint16   a column tokens: list<uint16>                     vocabularies of up to 65,535
    uint24   two columns, lo: list<uint16> and hi: list<uint8>, of the same offsets: id = hi * 65,536 + lo
    uint32   a column tokens: list<uint32>

The default is the narrowest that holds the vocabulary. Above 65,535 that is uint24: a quarter less disk and page cache
than uint32, of which training on a large corpus is short, for a shift and an or where ids are gathered.

Used by: open_shard.py, write_shards.py, encode_unit.py. Tested by: tests/data_prep/test_token_storage.py.
Not here: files (write_shards.py, open_shard.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

TokenStorage = Literal["uint16", "uint24", "uint32"]
# the columns of each, lowest bits first
COLUMNS: dict[TokenStorage, dict[str, np.dtype[Any]]] = {
    "uint16": {"tokens": np.dtype(np.uint16)},
    "uint24": {"lo": np.dtype(np.uint16), "hi": np.dtype(np.uint8)},
    "uint32": {"tokens": np.dtype(np.uint32)},
}
# 65,535 and not 65,536: so the largest uint16 is never an id, as one past the vocabulary must not be
LARGEST_VOCAB: dict[TokenStorage, int] = {"uint16": (1 << 16) - 1, "uint24": (1 << 24) - 1, "uint32": (1 << 32) - 1}
_LOW_BITS = 16
# 1 Mi tokens: 8 MiB as int64
_BLOCK_TOKENS = 1 << 20


def narrowest_storage(vocab_size: int) -> TokenStorage:
    """Return the storage that takes least room for ids below vocab_size."""
    return next(storage for storage, largest in LARGEST_VOCAB.items() if vocab_size <= largest)


def arrow_schema(storage: TokenStorage, metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """Return the schema of every shard that stores ids so."""
    lists = {
        name: pa.list_(pa.field("item", pa.from_numpy_dtype(dtype), nullable=False))
        for name, dtype in COLUMNS[storage].items()
    }
    fields = [pa.field(name, kind, nullable=False) for name, kind in (lists | {"doc": pa.uint64()}).items()]
    return pa.schema(fields, metadata=metadata)


def split_ids(ids: npt.NDArray[Any], planes: Sequence[npt.NDArray[Any]]) -> None:
    """Write ids [num_tokens] into a storage's columns, each of the same length."""
    for plane, shift in zip(planes, (0, _LOW_BITS), strict=False):
        # each column keeps the bits that it has room for
        plane[:] = (ids >> shift if shift else ids).astype(plane.dtype)


class ShardTokens:
    """Ids [num_tokens] that are indexed as an array: tokens[start:stop] and tokens[indices] both give an ndarray.

    Of one column, slices are views without a copy; of two, the ids are put together when they are asked for.
    """

    def __init__(self, planes: Sequence[npt.NDArray[Any]]) -> None:
        self._low = planes[0]
        self._high = planes[1] if len(planes) == 2 else None
        self.dtype: np.dtype[Any] = self._low.dtype if self._high is None else np.dtype(np.uint32)

    def __len__(self) -> int:
        return len(self._low)

    def __getitem__(self, places: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        low = self._low[places]
        if self._high is None:
            return low
        ids = self._high[places].astype(np.uint32)
        ids <<= _LOW_BITS
        ids |= low
        return ids


def count_pieces(tokens: ShardTokens, num_pieces: int) -> npt.NDArray[np.int64]:
    """Return how often each piece occurs; block by block, as bincount makes int64 of its whole argument."""
    counts = np.zeros(num_pieces, dtype=np.int64)
    for start in range(0, len(tokens), _BLOCK_TOKENS):
        counts += np.bincount(tokens[start : start + _BLOCK_TOKENS], minlength=num_pieces)
    return counts
