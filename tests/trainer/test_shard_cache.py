"""Datasets in remote stores: a folder behind file://, and S3 where moto, a server of it, is installed."""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from disentangled.data_prep.shard_schema import load_manifest
from disentangled.trainer import shard_cache
from disentangled.trainer.dataset import LocalDataset, open_dataset
from disentangled.trainer.shard_cache import ShardCache
from disentangled.trainer.shards import WindowStore

LENGTH, MINIMUM = 64, 8


@pytest.fixture
def remote(shards: Path, tmp_path: Path) -> Path:
    """A dataset with its plan, as one uploads it."""
    folder = Path(shutil.copytree(shards, tmp_path / "remote", ignore=shutil.ignore_patterns("plans")))
    WindowStore(LocalDataset(folder), "train", LENGTH, MINIMUM)
    return folder


@pytest.fixture
def s3_url(remote: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = pytest.importorskip("moto.server")
    started = server.ThreadedMotoServer(port=0)
    started.start()
    host, port = started.get_host_and_port()
    for name, value in (("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_EC2_METADATA_DISABLED", "1")):
        monkeypatch.setenv(name, value)
    query = f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    store, bucket = fs.FileSystem.from_uri(f"s3://corpus{query}")
    store.create_dir(bucket)
    fs.copy_files(str(remote), "corpus/english", destination_filesystem=store)
    yield f"s3://corpus/english{query}"
    started.stop()


def read_all(store: WindowStore) -> list[int]:
    pieces = store.pieces(np.arange(store.num_windows))
    out = np.empty(int(pieces.length.sum()), dtype=np.int64)
    store.copy_tokens(pieces, out, np.cumsum(pieces.length) - pieces.length)
    return list(out)


def cached(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*/train/*.arrow"))


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are fetched from now on."""
    fetched: list[str] = []
    copy = ShardCache._copy

    def record(self: ShardCache, name: str, path: Path, expected: str = "") -> str:
        fetched.append(name)
        return copy(self, name, path, expected)

    monkeypatch.setattr(ShardCache, "_copy", record)
    return fetched


def test_remote_dataset_reads_as_the_local_one(remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = counting(monkeypatch)
    dataset = open_dataset(f"file://{remote}", str(tmp_path / "cache"))
    store = WindowStore(dataset, "train", LENGTH, MINIMUM)
    assert fetched == ["plans/train-best_fit-64-8.arrow"], "no shard is fetched before one is read"
    assert read_all(store) == read_all(WindowStore(LocalDataset(remote), "train", LENGTH, MINIMUM))
    shards = [record.path for record in dataset.manifest.splits["train"]]
    assert fetched[1:] == shards
    again = WindowStore(open_dataset(f"file://{remote}", str(tmp_path / "cache")), "train", LENGTH, MINIMUM)
    assert read_all(again) == read_all(store) and fetched[1:] == shards


def test_s3_dataset_reads_as_the_local_one(remote: Path, s3_url: str, tmp_path: Path) -> None:
    store = WindowStore(open_dataset(s3_url, str(tmp_path / "cache")), "train", LENGTH, MINIMUM)
    assert read_all(store) == read_all(WindowStore(LocalDataset(remote), "train", LENGTH, MINIMUM))
    with pytest.raises(ValueError, match=r"no manifest\.json here"):
        open_dataset(s3_url.replace("english", "french"), str(tmp_path / "cache"))


def test_plan_that_the_store_lacks_is_computed(remote: Path, tmp_path: Path) -> None:
    local = read_all(WindowStore(LocalDataset(remote), "train", LENGTH, MINIMUM))
    shutil.rmtree(remote / "plans")
    dataset = open_dataset(f"file://{remote}", str(tmp_path / "cache"))
    assert read_all(WindowStore(dataset, "train", LENGTH, MINIMUM)) == local
    assert not (remote / "plans").exists()


def test_one_process_fetches_while_others_wait(remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = counting(monkeypatch)
    record = load_manifest(remote).splits["train"][0]
    with ThreadPoolExecutor(4) as pool:
        datasets = [ShardCache(f"file://{remote}", tmp_path / "cache") for _ in range(4)]
        shards = list(pool.map(lambda dataset: dataset.open(record).tokens[:].tolist(), datasets))
    assert fetched == [record.path]
    assert all(tokens == shards[0] for tokens in shards)


def test_limit_keeps_the_shards_opened_last(remote: Path, tmp_path: Path) -> None:
    records = load_manifest(remote).splits["train"]
    assert len(records) == 3
    sizes = [record.size_bytes for record in records]
    dataset = ShardCache(f"file://{remote}", tmp_path / "cache", sum(sizes) - min(sizes))  # room for any two
    assert dataset.max_open_shards == 1
    first = dataset.open(records[0])
    tokens = first.tokens[:].tolist()
    dataset.open(records[1])
    dataset.open(records[2])
    names = [Path(record.path).name for record in records]
    assert cached(tmp_path / "cache") == names[1:]
    assert first.tokens[:].tolist() == tokens, "what is mapped stays readable"
    dataset.open(records[1])
    dataset.open(records[0])
    assert cached(tmp_path / "cache") == names[:2]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("harm", "message"), [(cut, "bytes, its record says"), (Path.unlink, "missing shard: upload it again")]
)
def test_store_without_a_whole_shard_is_refused(
    remote: Path, tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    record = load_manifest(remote).splits["train"][1]
    harm(remote / record.path)
    with pytest.raises(ValueError, match=f"{record.path}.*{message}"):
        open_dataset(f"file://{remote}", str(tmp_path / "cache"))


def test_damage_in_the_store_is_found_on_the_way_and_nothing_is_kept(remote: Path, tmp_path: Path) -> None:
    record = load_manifest(remote).splits["train"][1]
    flip(remote / record.path)
    dataset = open_dataset(f"file://{remote}", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=f"{record.path}: xxh3_128 differs.*in the store or was on the way"):
        dataset.open(record)
    assert cached(tmp_path / "cache") == [] and not list((tmp_path / "cache").rglob("*.tmp"))


def test_damage_in_the_cache_is_found_when_it_is_read(remote: Path, tmp_path: Path) -> None:
    record = load_manifest(remote).splits["train"][1]
    dataset = open_dataset(f"file://{remote}", str(tmp_path / "cache"))
    dataset.open(record)
    flip(dataset.directory / record.path)
    with pytest.raises(ValueError, match=f"{record.path}: xxh3_128 differs"):
        dataset.open(record)


def test_fetch_that_breaks_off_leaves_nothing(remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = load_manifest(remote).splits["train"][0]
    dataset = open_dataset(f"file://{remote}", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_cache, "COPY_BYTES", 100)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        dataset.open(record)
    monkeypatch.undo()
    assert cached(tmp_path / "cache") == []
    assert dataset.open(record).record == record


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://bucket/path", "nosuch://bucket/path: no store that pyarrow can reach"),
        ("file:///nowhere/at/all", r"no manifest\.json here"),
    ],
)
def test_store_that_is_not_there_is_one_line(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        open_dataset(url, str(tmp_path))
    assert "\n" not in str(raised.value)


def test_password_and_options_of_a_url_are_never_shown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nosuch://bucket/path: no store") as raised:
        open_dataset("nosuch://me:secret@bucket/path?token=secret", str(tmp_path))
    assert "secret" not in str(raised.value)
