"""write_shards.py: where shards are cut, what a record says, and ids that do not belong."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from disentangled.data_prep.hash_file import hash_file
from disentangled.data_prep.shard_schema import (
    SCHEMA_VERSION,
    DatasetIdentity,
    SpecialIds,
    TextRange,
    TokenStorage,
    open_shard,
)
from disentangled.data_prep.write_shards import EncodedDocuments, ShardWriter

BYTE_IDS = np.arange(4, 8)


def make_identity(num_pieces: int, vocab_size: int, token_storage: TokenStorage = "uint16") -> DatasetIdentity:
    return DatasetIdentity(
        schema_version=SCHEMA_VERSION,
        tokenizer_sha256="ab" * 32,
        sentencepiece_version="0.2.3",
        normalizer="nmt_nfkc",
        chunking="none",
        cleaning="none",
        vocab_size=vocab_size,
        token_storage=token_storage,
        num_pieces=num_pieces,
        special_ids=SpecialIds(pad=0, cls=1, sep=2, unk=3, mask=num_pieces),
        sources=("text",),
        source_weights=(1.0,),
        seed=1,
        validation_fraction=0.1,
        validation_floor=0,
    )


SMALL = make_identity(100, 128)


def make_documents(rows: list[list[int]], file: str = "a.txt", start: int = 0) -> EncodedDocuments:
    return EncodedDocuments(
        file=file,
        tokens=np.array([index for row in rows for index in row], dtype=np.int32),
        lengths=np.array([len(row) for row in rows], dtype=np.int64),
        start_bytes=np.arange(start, start + len(rows), dtype=np.int64),
        text_bytes=np.array([3 * len(row) for row in rows], dtype=np.int64),
    )


def write_all(
    directory: Path, batches: list[EncodedDocuments], shard_tokens: int, identity: DatasetIdentity = SMALL
) -> ShardWriter:
    (directory / "train").mkdir(parents=True)
    writer = ShardWriter(directory, identity, "train", "text", shard_tokens, BYTE_IDS, task=7)
    for batch in batches:
        writer.append(batch)
    writer.close()
    return writer


def read_rows(directory: Path, writer: ShardWriter) -> list[list[list[int]]]:
    shards = [open_shard(directory, record, "full") for record in writer.records]
    return [[row.tolist() for row in np.split(shard.tokens[:], shard.offsets[1:-1])] for shard in shards]


ROWS = [[4], [5, 6], [7, 8, 9], [10] * 4, [11], [12] * 9, [13, 14], [15]]


def test_shard_is_cut_before_the_document_that_would_overfill_it(tmp_path: Path):
    writer = write_all(tmp_path / "out", [make_documents(ROWS)], shard_tokens=6)
    assert read_rows(tmp_path / "out", writer) == [ROWS[:3], ROWS[3:5], [ROWS[5]], ROWS[6:]]
    assert [(record.task, record.part) for record in writer.records] == [(7, 0), (7, 1), (7, 2), (7, 3)]
    assert [record.path for record in writer.records[:2]] == [
        "train/shard-text-000007.arrow",
        "train/shard-text-000007-1.arrow",
    ]


@pytest.mark.parametrize("shard_tokens", [1, 2, 3, 6, 9, 10, 23, 1000])
def test_cuts_do_not_depend_on_the_batches(tmp_path: Path, shard_tokens: int):
    whole = write_all(tmp_path / "whole", [make_documents(ROWS)], shard_tokens)
    for size in (1, 2, 5):
        batches = [make_documents(ROWS[at : at + size], start=at) for at in range(0, len(ROWS), size)]
        assert write_all(tmp_path / f"by{size}", batches, shard_tokens).records == whole.records
    assert [row for rows in read_rows(tmp_path / "whole", whole) for row in rows] == ROWS
    assert all(record.num_tokens <= shard_tokens or record.num_documents == 1 for record in whole.records)


def test_record_counts_what_the_shard_holds(tmp_path: Path):
    batches = [
        make_documents([[3, 99, 4], [7]], start=10),
        make_documents([[50]], start=20),
        make_documents([[3]], file="b.txt"),
    ]
    writer = write_all(tmp_path / "out", batches, shard_tokens=100)
    [record] = writer.records
    path = tmp_path / "out" / record.path
    assert record.path == "train/shard-text-000007.arrow"
    assert (record.num_documents, record.num_tokens, record.text_bytes) == (4, 6, 18)
    assert (record.num_unknown_tokens, record.num_byte_tokens, record.min_id, record.max_id) == (2, 2, 3, 99)
    assert record.ranges == (TextRange("a.txt", 3, 10, 20), TextRange("b.txt", 1, 0, 0))
    assert (record.size_bytes, record.sha256) == (path.stat().st_size, hash_file(path, "sha256"))
    assert writer.piece_counts.tolist() == np.bincount([3, 99, 4, 7, 50, 3], minlength=100).tolist()


def test_shard_is_one_uncompressed_batch_without_nulls(tmp_path: Path):
    [record] = write_all(tmp_path / "out", [make_documents(ROWS)], shard_tokens=100).records
    reader = pa.ipc.open_file(str(tmp_path / "out" / record.path))
    assert reader.num_record_batches == 1
    batch = reader.get_batch(0)
    assert str(batch.schema.field("tokens").type) == "list<item: uint16 not null>"
    assert not batch.schema.field("tokens").nullable
    assert str(batch.schema.field("doc")) == "pyarrow.Field<doc: uint64 not null>"
    assert batch.column("tokens").null_count == 0
    content = (tmp_path / "out" / record.path).read_bytes()
    assert np.array([index for row in ROWS for index in row], dtype="<u2").tobytes() in content


@pytest.mark.parametrize("storage", ["uint24", "uint32"])
def test_large_vocabulary_comes_back_from_either_storage(tmp_path: Path, storage: TokenStorage):
    identity = make_identity(70_000, 70_016, storage)
    rows = [[69_999, 4], [65_536, 65_535, 255], list(range(60_000, 60_020))]
    writer = write_all(tmp_path / "out", [make_documents(rows)], 10, identity)
    assert read_rows(tmp_path / "out", writer) == [rows[:2], rows[2:]]
    assert open_shard(tmp_path / "out", writer.records[0]).tokens.dtype == np.uint32
    assert writer.piece_counts.tolist() == np.bincount(np.concatenate(rows), minlength=70_000).tolist()
    assert (writer.records[0].min_id, writer.records[0].max_id) == (4, 69_999)


def test_two_columns_take_three_bytes_a_token(tmp_path: Path):
    identity = make_identity(128_000, 128_064, "uint24")
    rows = [[(row * 997 + place) % 128_000 for place in range(500)] for row in range(1000)]
    [record] = write_all(tmp_path / "out", [make_documents(rows)], 1 << 20, identity).records
    assert record.size_bytes / record.num_tokens <= 3.05
    batch = pa.ipc.open_file(str(tmp_path / "out" / record.path)).get_batch(0)
    assert [str(field.type) for field in batch.schema] == [
        "list<item: uint16 not null>",
        "list<item: uint8 not null>",
        "uint64",
    ]
    assert batch.schema.names == ["lo", "hi", "doc"]


@pytest.mark.parametrize("foreign", [-1, 100, 65_540])
def test_id_outside_the_model_is_refused(tmp_path: Path, foreign: int):
    with pytest.raises(ValueError, match=r"a\.txt: an id lies outside the 100 pieces"):
        write_all(tmp_path / "out", [make_documents([[5], [foreign]])], shard_tokens=100)
    assert not list((tmp_path / "out" / "train").iterdir())


def test_select_takes_the_chosen_documents():
    chosen = make_documents([[1, 2], [3], [4, 5, 6]]).select(np.array([True, False, True]))
    expected = dataclasses.asdict(make_documents([[1, 2], [4, 5, 6]]))
    assert {name: np.asarray(value).tolist() for name, value in dataclasses.asdict(chosen).items()} == {
        **{name: np.asarray(value).tolist() for name, value in expected.items()},
        "start_bytes": [0, 2],
    }


def test_writer_without_documents_writes_no_shard(tmp_path: Path):
    assert write_all(tmp_path / "out", [make_documents([])], shard_tokens=100).records == []
