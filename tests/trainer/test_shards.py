import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from disentangled.data_prep.shard_schema import Manifest, load_manifest, open_shard
from disentangled.trainer.packing import plan_windows
from disentangled.trainer.shards import WindowStore

SEQUENCE_LENGTH, MINIMUM = 64, 8


@pytest.fixture
def manifest(shards: Path) -> Manifest:
    return load_manifest(shards)


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def test_pieces_are_those_of_every_shards_plan_in_shard_order(shards: Path, manifest: Manifest) -> None:
    store = WindowStore(shards, manifest, "train", SEQUENCE_LENGTH, MINIMUM)
    records = manifest.splits["train"]
    assert len(records) == 3
    window = 0
    for record in records:
        shard = open_shard(shards, record)
        plan = plan_windows(shard.offsets, SEQUENCE_LENGTH, MINIMUM)
        for local in range(plan.num_windows):
            expected = range(plan.first_piece[local], plan.first_piece[local + 1])
            pieces = list(store.pieces(window))
            assert len(pieces) == len(expected)
            for piece, number in zip(pieces, expected, strict=True):
                start = plan.start[number]
                assert np.array_equal(piece, shard.tokens[start : start + plan.length[number]])
            window += 1
    assert window == store.num_windows


def test_pieces_are_views_into_the_mapped_file(shards: Path, manifest: Manifest) -> None:
    store = WindowStore(shards, manifest, "train", SEQUENCE_LENGTH, MINIMUM)
    piece = next(store.pieces(0))
    assert piece.base is not None and not piece.flags.owndata and not piece.flags.writeable


def test_windows_of_the_splits_are_apart(shards: Path, manifest: Manifest) -> None:
    held_out = WindowStore(shards, manifest, "validation", SEQUENCE_LENGTH, MINIMUM)
    num_tokens = sum(len(piece) for window in range(held_out.num_windows) for piece in held_out.pieces(window))
    lost = manifest.counts["validation"].num_tokens - num_tokens
    assert 0 <= lost < MINIMUM * manifest.counts["validation"].num_documents
    assert lost < 0.05 * num_tokens


def test_flipped_byte_is_refused_by_name(damaged: Path, manifest: Manifest) -> None:
    path = damaged / manifest.splits["train"][1].path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(path.name)}.*xxh3_128"):
        WindowStore(damaged, manifest, "train", SEQUENCE_LENGTH, MINIMUM)


def test_missing_shard_is_refused_by_name(damaged: Path, manifest: Manifest) -> None:
    path = damaged / manifest.splits["train"][2].path
    path.unlink()
    with pytest.raises(ValueError, match=f"{re.escape(path.name)}.*missing"):
        WindowStore(damaged, manifest, "train", SEQUENCE_LENGTH, MINIMUM)


def test_split_without_shards_is_refused(shards: Path, manifest: Manifest) -> None:
    empty = manifest.splits | {"validation": ()}
    object.__setattr__(manifest, "splits", empty)
    with pytest.raises(ValueError, match="'validation' holds no tokens"):
        WindowStore(shards, manifest, "validation", SEQUENCE_LENGTH, MINIMUM)
