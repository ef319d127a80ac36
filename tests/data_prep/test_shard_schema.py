"""shard_schema.py: a whole dataset opens, and every kind of damage is named before a token is read."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from disentangled.data_prep.hash_file import hash_file
from disentangled.data_prep.shard_schema import (
    SCHEMA_VERSION,
    SPLITS,
    Manifest,
    ShardRecord,
    compute_dataset_id,
    encode_json,
    load_manifest,
    open_shard,
)
from disentangled.data_prep.token_storage import arrow_schema

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


def edit_manifest(directory: Path, edit: Edit) -> None:
    path = directory / "manifest.json"
    content = json.loads(path.read_bytes())
    edit(content)
    path.write_text(json.dumps(content))


def write_shard(path: Path, batch: pa.RecordBatch, num_batches: int = 1) -> None:
    with pa.ipc.new_file(str(path), batch.schema) as writer:
        for _ in range(num_batches):
            writer.write_batch(batch)


def read_batch(path: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(str(path)).get_batch(0)


def refresh_record(directory: Path, record: ShardRecord, **changes: Any) -> ShardRecord:
    """Return the record with size and hashes of the file that is there now: damage that no checksum sees."""
    path = directory / record.path
    hashes = {"xxh3_128": hash_file(path, "xxh3_128"), "sha256": hash_file(path, "sha256")}
    return dataclasses.replace(record, size_bytes=path.stat().st_size, **hashes, **changes)


def first_record(directory: Path) -> ShardRecord:
    return load_manifest(directory).splits["train"][0]


def test_manifest_comes_back_as_it_was_written(dataset: Path):
    manifest = load_manifest(dataset)
    assert encode_json(manifest) == (dataset / "manifest.json").read_bytes()
    assert manifest.schema_version == SCHEMA_VERSION
    assert manifest.dataset_id == compute_dataset_id(manifest, manifest.splits)
    assert set(manifest.splits) == set(manifest.counts) == set(SPLITS)
    assert min(len(manifest.splits[split]) for split in SPLITS) > 1


def test_sidecar_is_the_manifests_record(dataset: Path):
    manifest = load_manifest(dataset)
    for record in (record for split in SPLITS for record in manifest.splits[split]):
        assert (dataset / record.path).with_suffix(".json").read_bytes() == encode_json(record)


@pytest.mark.parametrize("verify", ["quick", "checksum", "full"])
def test_shard_opens_as_views_of_its_rows(dataset: Path, verify: Any):
    for record in load_manifest(dataset).splits["train"]:
        shard = open_shard(dataset, record, verify)
        rows = read_batch(dataset / record.path).to_pylist()
        assert shard.tokens.dtype == np.uint16
        assert shard.offsets.dtype == np.int64
        assert not shard.tokens[:].flags.writeable
        assert [shard.tokens[a:b].tolist() for a, b in zip(shard.offsets, shard.offsets[1:], strict=False)] == [
            row["tokens"] for row in rows
        ]
        assert shard.start_bytes.tolist() == [row["doc"] for row in rows]


def test_shard_tells_what_it_is(dataset: Path):
    manifest = load_manifest(dataset)
    record = manifest.splits["validation"][1]
    metadata = open_shard(dataset, record).metadata
    assert metadata["split"] == "validation"
    assert (metadata["task"], metadata["part"]) == (str(record.task), str(record.part))
    assert metadata["tokenizer_sha256"] == manifest.tokenizer_sha256
    assert metadata["chunking"] == manifest.chunking
    assert json.loads(metadata["special_ids"]) == dataclasses.asdict(manifest.special_ids)


def set_first_record(content: dict[str, Any], name: str, value: Any) -> None:
    content["splits"]["train"][0][name] = value


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda content: content.update(schema_version=1), r"schema version 1, this code reads 2: build"),
        (lambda content: content.pop("schema_version"), r"schema version None, this code reads 2"),
        (lambda content: content.pop("num_pieces"), r"manifest lacks 'num_pieces'"),
        (lambda content: content.update(vocab_size="448"), r"manifest\.vocab_size is '448', which has the wrong type"),
        (
            lambda content: content.update(token_storage="int8"),
            r"manifest\.token_storage is 'int8', which has the wrong",
        ),
        (lambda content: set_first_record(content, "token_storage", "uint32"), r"000000\.arrow: .*another tokenizer"),
        (lambda content: content["special_ids"].pop("mask"), r"manifest\.special_ids lacks 'mask'"),
        (lambda content: content.update(seed=2), r"dataset_id does not match the content"),
        (lambda content: set_first_record(content, "sha256", "0" * 64), r"dataset_id does not match the content"),
        (lambda content: set_first_record(content, "num_tokens", 5), r"the counts of split 'train' are not those"),
        (lambda content: content["splits"]["validation"].pop(), r"the counts of split 'validation' are not those"),
        (lambda content: content["splits"].pop("validation"), r"the counts of split 'validation' are not those"),
        (
            lambda content: set_first_record(content, "tokenizer_sha256", "0" * 64),
            r"000000\.arrow: .*another tokenizer",
        ),
        (lambda content: set_first_record(content, "vocab_size", 512), r"000000\.arrow: .*another tokenizer"),
        (lambda content: set_first_record(content, "size_bytes", 5), r"000000\.arrow: \d+ bytes, its record says 5"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(copy: Path, edit: Edit, fault: str):
    edit_manifest(copy, edit)
    with pytest.raises(ValueError, match=fault) as caught:
        load_manifest(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_file_that_is_no_manifest_is_refused(copy: Path, content: bytes):
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json: (not valid JSON|schema version None)"):
        load_manifest(copy)


def test_directory_without_manifest_is_refused(copy: Path, tmp_path: Path):
    (copy / "manifest.json").unlink()
    for directory in (copy, tmp_path / "absent"):
        with pytest.raises(ValueError, match=r"no manifest\.json here, so this is no finished dataset: run"):
            load_manifest(directory)


def test_exchanged_tokenizer_is_refused(copy: Path):
    content = (copy / "spm.model").read_bytes()
    (copy / "spm.model").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"spm\.model: not the tokenizer of this dataset"):
        load_manifest(copy)
    (copy / "spm.model").unlink()
    with pytest.raises(ValueError, match=r"spm\.model: missing"):
        load_manifest(copy)


def test_missing_shard_is_refused(copy: Path):
    record = load_manifest(copy).splits["validation"][1]
    (copy / record.path).unlink()
    with pytest.raises(ValueError, match=f"{record.path}: missing shard"):
        load_manifest(copy)
    with pytest.raises(ValueError, match=f"{record.path}: missing shard"):
        open_shard(copy, record)


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_truncated_shard_is_refused(copy: Path, kept: int):
    record = first_record(copy)
    path = copy / record.path
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"000000\.arrow: \d+ bytes, its record says \d+"):
        load_manifest(copy)
    with pytest.raises(ValueError, match=r"000000\.arrow: \d+ bytes, its record says \d+"):
        open_shard(copy, record)
    with pytest.raises(ValueError, match=r"000000\.arrow: not a whole Arrow file"):
        open_shard(copy, refresh_record(copy, record))


def test_flipped_bits_are_found_by_the_checksum(copy: Path):
    record = first_record(copy)
    path = copy / record.path
    whole = path.read_bytes()
    for place in (8, len(whole) // 3, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        for verify in ("checksum", "full"):
            with pytest.raises(ValueError, match=r"000000\.arrow: xxh3_128 differs from its record"):
                open_shard(copy, record, verify)
    other = dataclasses.replace(refresh_record(copy, record), sha256=record.sha256)
    with pytest.raises(ValueError, match=r"000000\.arrow: sha256 differs from its record"):
        open_shard(copy, other, "full")


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("tokenizer_sha256", "0" * 64, "tokenizer_sha256 is 0000.*: this shard is of another dataset"),
        ("schema_version", "1", "schema_version is 1, expected 2"),
        ("vocab_size", "512", "vocab_size is 512, expected 448"),
        ("token_storage", "uint32", "token_storage is uint32, expected uint16"),
        ("split", "validation", "split is validation, expected train"),
        ("task", "7", "task is 7, expected 0"),
        ("source", None, "source is None, expected text"),
    ],
)
def test_shard_of_another_dataset_is_refused(copy: Path, name: str, value: str | None, fault: str):
    record = first_record(copy)
    batch = read_batch(copy / record.path)
    metadata = {key.decode(): text.decode() for key, text in batch.schema.metadata.items()} | {name: value}
    metadata = {key: text for key, text in metadata.items() if text is not None}
    write_shard(copy / record.path, batch.replace_schema_metadata(metadata))
    with pytest.raises(ValueError, match=fault):
        open_shard(copy, refresh_record(copy, record))


def test_shard_of_other_columns_is_refused(copy: Path):
    record = first_record(copy)
    batch = read_batch(copy / record.path)
    wide = [pa.array(batch.column("tokens").to_pylist(), pa.list_(pa.uint32())), batch.column("doc")]
    for other in (batch.select(["tokens"]), pa.record_batch(wide, names=["tokens", "doc"])):
        write_shard(copy / record.path, other)
        with pytest.raises(ValueError, match="its columns are not those of schema version 2"):
            open_shard(copy, refresh_record(copy, record))


@pytest.mark.parametrize("num_batches", [0, 2])
def test_shard_of_other_than_one_batch_is_refused(copy: Path, num_batches: int):
    record = first_record(copy)
    write_shard(copy / record.path, read_batch(copy / record.path), num_batches)
    with pytest.raises(ValueError, match=f"{num_batches} record batches, a shard has one"):
        open_shard(copy, refresh_record(copy, record))


def test_shard_of_other_counts_is_refused(copy: Path):
    record = first_record(copy)
    with pytest.raises(ValueError, match=rf"its record says {record.num_documents + 1} with {record.num_tokens}"):
        open_shard(copy, refresh_record(copy, record, num_documents=record.num_documents + 1))


def rewrite_rows(directory: Path, record: ShardRecord, tokens: list[int], offsets: list[int]) -> ShardRecord:
    path = directory / record.path
    schema = arrow_schema(record.token_storage, read_batch(path).schema.metadata)
    kind = schema.field("tokens").type
    rows = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(tokens, pa.uint16()), type=kind)
    write_shard(path, pa.record_batch([rows, pa.array(range(len(offsets) - 1), pa.uint64())], schema=schema))
    return refresh_record(directory, record, num_tokens=len(tokens), num_documents=len(offsets) - 1)


def test_full_verification_reads_ids_and_offsets(copy: Path):
    record = first_record(copy)
    open_shard(copy, rewrite_rows(copy, record, [5, 447, 7], [0, 1, 3]), "full")
    foreign_id = rewrite_rows(copy, record, [5, 448, 7], [0, 1, 3])
    open_shard(copy, foreign_id, "checksum")
    with pytest.raises(ValueError, match="holds an id past the vocabulary of 448"):
        open_shard(copy, foreign_id, "full")
    falling = rewrite_rows(copy, record, [5, 6, 7], [0, 2, 1, 3])
    with pytest.raises(ValueError, match="the offsets of its documents are damaged"):
        open_shard(copy, falling, "full")


def test_columns_of_different_offsets_are_refused(copy: Path):
    record = dataclasses.replace(first_record(copy), token_storage="uint24", num_tokens=3, num_documents=2)
    metadata = read_batch(copy / record.path).schema.metadata | {b"token_storage": b"uint24"}
    schema = arrow_schema("uint24", metadata)
    rows = [
        pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array([4, 5, 6], field.type.value_type), field.type)
        for offsets, field in zip([[0, 1, 3], [0, 2, 3]], schema, strict=False)
    ]
    write_shard(copy / record.path, pa.record_batch([*rows, pa.array([0, 1], pa.uint64())], schema=schema))
    with pytest.raises(ValueError, match="the columns of its ids have different offsets"):
        open_shard(copy, refresh_record(copy, record))


def test_dataset_id_depends_on_content_and_order(dataset: Path):
    manifest = load_manifest(dataset)
    train = manifest.splits["train"]
    swapped = {**manifest.splits, "train": (train[1], train[0], *train[2:])}
    other: Manifest = dataclasses.replace(manifest, seed=manifest.seed + 1)
    ids = [manifest.dataset_id, compute_dataset_id(manifest, swapped), compute_dataset_id(other, other.splits)]
    assert len(set(ids)) == 3
