import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from disentangled.data_prep.shard_schema import (
    Manifest,
    OpenShard,
    ShardRecord,
    Verification,
    load_manifest,
    open_shard,
)
from disentangled.trainer.dataset import LocalDataset
from disentangled.trainer.packing import pack_windows
from disentangled.trainer.shards import WindowStore

SEQUENCE_LENGTH, MINIMUM = 64, 8


@pytest.fixture
def manifest(shards: Path) -> Manifest:
    return load_manifest(shards)


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def open_store(directory: Path, split: str = "train") -> WindowStore:
    return WindowStore(LocalDataset(directory), split, SEQUENCE_LENGTH, MINIMUM)


def read_windows(store: WindowStore, windows: NDArray[np.int64]) -> list[list[list[int]]]:
    """The tokens of each piece of each window."""
    pieces = store.pieces(windows)
    places = np.cumsum(pieces.length) - pieces.length
    out = np.full(int(pieces.length.sum()), -1, dtype=np.int64)
    store.copy_tokens(pieces, out, places)
    read: list[list[list[int]]] = [[] for _ in windows]
    for row, place, length in zip(pieces.row.tolist(), places.tolist(), pieces.length.tolist(), strict=True):
        read[row].append(out[place : place + length].tolist())
    return read


def test_windows_are_those_of_every_shards_plan_in_shard_order(shards: Path, manifest: Manifest) -> None:
    store = open_store(shards)
    assert len(manifest.splits["train"]) == 3
    expected = []
    for record in manifest.splits["train"]:
        shard = open_shard(shards, record)
        packed = pack_windows(shard.offsets, SEQUENCE_LENGTH, MINIMUM)
        for first, stop in zip(packed.first_piece[:-1], packed.first_piece[1:], strict=True):
            starts, lengths = packed.start[first:stop], packed.length[first:stop]
            expected.append([shard.tokens[a : a + n].tolist() for a, n in zip(starts, lengths, strict=True)])
    assert read_windows(store, np.arange(store.num_windows)) == expected
    chosen = np.array([len(expected) - 1, 0, 5, 5, len(expected) // 2])
    assert read_windows(store, chosen) == [expected[window] for window in chosen]


def test_no_windows_have_no_pieces(shards: Path, manifest: Manifest) -> None:
    store = open_store(shards)
    pieces = store.pieces(np.empty(0, dtype=np.int64))
    assert pieces.length.size == 0
    store.copy_tokens(pieces, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


def test_windows_of_the_splits_are_apart(shards: Path, manifest: Manifest) -> None:
    held_out = open_store(shards, "validation")
    lost = manifest.counts["validation"].num_tokens - held_out.num_tokens
    assert 0 <= lost < MINIMUM * manifest.counts["validation"].num_documents
    assert lost < 0.05 * held_out.num_tokens


def test_sources_are_those_of_the_manifest(shards: Path, manifest: Manifest) -> None:
    store = open_store(shards)
    ((size, windows),) = store.sources()
    assert (size.name, size.weight, size.num_windows) == ("text", 1.0, store.num_windows)
    assert size.num_tokens == manifest.counts["train"].num_tokens
    assert windows.size == 3 and windows.sum() == store.num_windows


def test_flipped_byte_is_refused_by_name_on_first_touch(damaged: Path, manifest: Manifest) -> None:
    record = manifest.splits["train"][1]
    path = damaged / record.path
    tokens = open_shard(damaged, record).tokens[:].tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(tokens[:64]) + 33] ^= 1
    path.write_bytes(content)
    store = open_store(damaged)
    windows = store.sources()[0][1]
    untouched = read_windows(store, np.arange(windows[0]))
    assert untouched == read_windows(open_store(damaged), np.arange(windows[0]))
    for _ in range(2):  # not only the first time
        with pytest.raises(ValueError, match=f"{re.escape(path.name)}.*xxh3_128"):
            read_windows(store, np.array([windows[0]]))


def test_missing_shard_is_refused_by_name(damaged: Path, manifest: Manifest) -> None:
    store = open_store(damaged)
    path = damaged / manifest.splits["train"][2].path
    path.unlink()
    with pytest.raises(ValueError, match=f"{re.escape(path.name)}.*missing"):
        read_windows(store, np.array([store.num_windows - 1]))
    shutil.rmtree(damaged / "plans")
    with pytest.raises(ValueError, match=f"{re.escape(path.name)}.*missing"):
        open_store(damaged)


def test_split_without_shards_is_refused(shards: Path) -> None:
    dataset = LocalDataset(shards)
    splits = dataset.manifest.splits | {"validation": ()}
    dataset.manifest = replace(dataset.manifest, splits=splits, dataset_id="another")
    with pytest.raises(ValueError, match="'validation' holds no tokens"):
        WindowStore(dataset, "validation", SEQUENCE_LENGTH, MINIMUM)


def test_shards_read_longest_ago_are_closed(shards: Path) -> None:
    dataset = LocalDataset(shards)
    dataset.max_open_shards = 2
    opened: list[str] = []
    open_shard = dataset.open

    def record(shard: ShardRecord, verify: Verification = "checksum") -> OpenShard:
        opened.append(shard.path)
        return open_shard(shard, verify)

    dataset.open = record  # type: ignore[method-assign]
    store = WindowStore(dataset, "train", SEQUENCE_LENGTH, MINIMUM)
    opened.clear()
    ends = np.cumsum(store.sources()[0][1]) - 1
    for window in ends[[0, 1, 0, 2, 0, 1]]:
        read_windows(store, np.array([window]))
    paths = [shard.path for shard in dataset.manifest.splits["train"]]
    assert opened == [paths[0], paths[1], paths[2], paths[1]]
