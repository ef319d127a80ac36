"""token_storage.py: ids of every storage are read alike, and views stay views."""

import numpy as np
import pytest

from disentangled.data_prep.token_storage import (
    COLUMNS,
    ShardTokens,
    TokenStorage,
    arrow_schema,
    count_pieces,
    narrowest_storage,
    split_ids,
)


def store(ids: np.ndarray, storage: TokenStorage) -> ShardTokens:
    planes = [np.empty(len(ids), dtype) for dtype in COLUMNS[storage].values()]
    split_ids(ids, planes)
    return ShardTokens(planes)


@pytest.mark.parametrize(
    ("vocab_size", "expected"),
    [(64, "uint16"), (65_535, "uint16"), (65_536, "uint24"), (250_112, "uint24"), (1 << 24, "uint32")],
)
def test_default_is_the_narrowest(vocab_size: int, expected: str):
    assert narrowest_storage(vocab_size) == expected


@pytest.mark.parametrize(("storage", "largest"), [("uint16", 65_534), ("uint24", (1 << 24) - 2), ("uint32", 1 << 30)])
def test_slices_and_indices_give_the_ids(storage: TokenStorage, largest: int):
    ids = np.random.default_rng(0).integers(0, largest + 1, 5000).astype(np.int32)
    ids[:3] = 0, largest, largest // 2
    tokens = store(ids, storage)
    assert len(tokens) == 5000
    assert tokens.dtype == (np.uint16 if storage == "uint16" else np.uint32)
    for part in (slice(0, 5000), slice(17, 17), slice(1, 4000, 3), slice(None)):
        assert tokens[part].dtype == tokens.dtype
        assert np.array_equal(tokens[part], ids[part])
    places = np.random.default_rng(1).integers(0, 5000, (8, 64))
    assert tokens[places].dtype == tokens.dtype
    assert np.array_equal(tokens[places], ids[places])


@pytest.mark.parametrize("storage", ["uint16", "uint32"])
def test_slices_of_one_column_are_views(storage: TokenStorage):
    column = np.arange(10).astype(COLUMNS[storage]["tokens"])
    assert np.shares_memory(ShardTokens([column])[2:5], column)


def test_pieces_are_counted_over_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("disentangled.data_prep.token_storage._BLOCK_TOKENS", 7)
    ids = np.random.default_rng(0).integers(0, 100_000, 50)
    counts = count_pieces(store(ids, "uint24"), 100_000)
    assert np.array_equal(counts, np.bincount(ids, minlength=100_000))


def test_schema_has_the_storages_columns_and_the_place():
    assert arrow_schema("uint24").names == ["lo", "hi", "doc"]
    assert arrow_schema("uint16").names == arrow_schema("uint32").names == ["tokens", "doc"]
    assert not any(field.nullable for field in arrow_schema("uint24"))
