"""input_store.py and find_inputs.py: one dataset from a local folder, file://, memory:// and S3; clear refusals."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from disentangled.data_prep import build_corpus
from disentangled.data_prep.find_inputs import find_grouped_files, find_text_files
from disentangled.data_prep.input_store import RemotePath, list_files, parse_url, stamp_file
from disentangled.data_prep.read_text import read_documents
from disentangled.data_prep.sources import load_sources
from tests.data_prep.test_read_table import write_table
from tests.data_prep.tiny_corpus import make_documents, read_tree, write_jsonl, write_txt

ROOT = Path(__file__).parents[2]
MPIRUN = Path(sys.executable).parent / "mpirun"
NOBODY = "endpoint_override=127.0.0.1:9&scheme=http&region=r"
COMMON = ["--tokenizer", "spm.model", "--validation-fraction", "0.2", "--shard-tokens", "600"]


@pytest.fixture
def folder(tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with inputs of every kind of reading, the tokenizer, and `local`, built of them."""
    write_txt(tmp_path / "in" / "a.txt", make_documents(60, 0))
    write_txt(tmp_path / "in" / "deep" / "b.txt.zst", make_documents(20, 1))
    write_jsonl(tmp_path / "in" / "c.jsonl.xz", make_documents(20, 2))
    write_table(tmp_path / "in" / "d.parquet", make_documents(30, 3), rows=10)
    write_table(tmp_path / "in" / "e.arrow", make_documents(20, 4))
    (tmp_path / "in" / "notes.md").write_text("x")
    (tmp_path / "in" / ".hidden.txt").write_text("x")
    shutil.copy(model_path, tmp_path / "spm.model")
    monkeypatch.chdir(tmp_path)
    assert build_corpus.main(["--input", "in", "--output", "local", *COMMON]) == 0
    return tmp_path


@pytest.fixture
def memory(folder: Path) -> Iterator[Any]:
    """fsspec's file system in memory, with the inputs in its folder `in`."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    for path in (folder / "in").rglob("*"):
        if path.is_file():
            system.pipe(f"/{path.relative_to(folder).as_posix()}", path.read_bytes())
    yield system
    system.store.clear()


@pytest.mark.parametrize("url", ["memory://in", "memory://in/", "file://{folder}/in"])
def test_url_of_a_folder_gives_the_bytes_of_the_local_folder(folder: Path, memory: Any, url: str):
    assert build_corpus.main(["--input", url.format(folder=folder), "--output", "remote", *COMMON]) == 0
    assert read_tree(Path("remote")) == read_tree(Path("local"))


def test_urls_match_files_and_name_them_below_their_common_folder(memory: Any):
    def names(*inputs: str) -> list[str]:
        return [file.name for file in find_text_files(inputs)]

    assert names("memory://in/*.txt") == ["a.txt"]
    assert names("memory://in/**/*.txt*") == ["a.txt", "deep/b.txt.zst"]
    assert names("memory://in/deep/b.txt.zst") == ["b.txt.zst"]
    assert names("memory://in/a.txt", "memory://in/deep") == ["a.txt", "deep/b.txt.zst"]


def test_files_of_several_stores_are_named_by_url_but_for_local_ones(folder: Path, memory: Any):
    groups = find_grouped_files([["memory://in/a.txt"], ["in/a.txt", "in/deep"]])
    names = [[file.name for file in group] for group in groups]
    assert names == [["memory://in/a.txt"], ["a.txt", "deep/b.txt.zst"]]


def test_sources_may_be_urls(folder: Path, memory: Any):
    Path("sources.toml").write_text('[[source]]\nname = "a"\ninput = ["memory://in/a.txt", "in/deep"]\n')
    assert load_sources("sources.toml")[0].inputs == ("memory://in/a.txt", "in/deep")


def test_ranges_of_a_remote_file_are_read_from_where_they_begin(memory: Any):
    [file] = find_text_files(["memory://in/a.txt"])
    whole = [document.start_byte for document in read_documents(file)]
    assert [document.start_byte for document in read_documents(file, start=5000)] == [at for at in whole if at > 5000]


def test_remote_file_that_changes_or_goes_is_named(
    folder: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def read_and(change: Any) -> Any:
        def read(file: Any, *arguments: Any) -> Any:
            yield from read_documents(file, *arguments)
            change()

        return read

    same_size = bytes(len(memory.cat("/in/a.txt")))
    for change, fault in (
        (lambda: memory.pipe("/in/a.txt", same_size), "changed since the build began"),
        (lambda: memory.rm("/in/a.txt"), "gone since the build began"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("disentangled.data_prep.read_part.read_documents", read_and(change))
            assert build_corpus.main(["--input", "memory://in/a.txt", "--output", "out", *COMMON]) == 2
        assert f"error: memory://in/a.txt: {fault}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("wxyz://bucket/a.txt", "wxyz://bucket: this store cannot be opened (Protocol not known: wxyz): check"),
        ("memory://absent/", "memory://absent/: no such file or folder: check --input (folders end at a slash"),
        ("memory://in/*.csv", "memory://in/*.csv: no such file or folder"),
        ("memory://in/notes.md", "memory://in/notes.md: no text file there: inputs are .txt"),
        # Arrow tries again for some seconds
        pytest.param(
            f"s3://user:secret@bucket/x?{NOBODY}", "s3://bucket/x: cannot be listed", marks=pytest.mark.slow
        ),
    ],
)  # fmt: skip
def test_url_that_leads_nowhere_is_told_in_one_line(
    folder: Path, memory: Any, capsys: pytest.CaptureFixture[str], url: str, fault: str
):
    assert build_corpus.main(["--input", url, "--output", "out", *COMMON]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {fault}")
    assert message.count("\n") == 1
    assert "secret" not in message
    assert not Path("out").exists()


def test_scheme_whose_package_is_absent_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "paramiko", None)
    with pytest.raises(
        ValueError, match=r'sftp://host: .*requires "paramiko" to be installed\): check its name, install'
    ):
        list_files(RemotePath("sftp", "host", "/x"))


def test_urls_are_told_from_paths():
    assert parse_url("folder/a.txt") is None
    assert parse_url("a:b/c.txt") is None
    assert parse_url("file:///a%20b/c.txt") == Path("/a b/c.txt")
    assert parse_url("S3://u:p@bucket/a//b?x=1&y=2") == RemotePath("s3", "u:p@bucket", "/a/b", "x=1&y=2")
    assert str(parse_url("s3://u:p@bucket/a/b?x=1")) == "s3://bucket/a/b"


@pytest.fixture
def bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a bucket in a stand-in for S3, with the inputs in it."""
    server_module = pytest.importorskip(
        "moto.server", reason="pip install 'disentangled[test-s3]' brings a stand-in for S3"
    )
    boto3 = pytest.importorskip("boto3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = server_module.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="texts")
    for path in (folder / "in").rglob("*"):
        if path.is_file():
            client.put_object(Bucket="texts", Key=path.relative_to(folder).as_posix(), Body=path.read_bytes())
    yield f"s3://texts/{{}}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    server.stop()


@pytest.mark.parametrize("num_ranks", [0, 3])
def test_object_store_gives_the_bytes_of_the_local_folder(folder: Path, bucket: str, num_ranks: int):
    launcher = [str(MPIRUN), "--allow-run-as-root", "--oversubscribe", "-n", str(num_ranks)] if num_ranks else []
    if num_ranks and not MPIRUN.exists():
        pytest.skip("no mpirun beside this Python")
    build = [sys.executable, "-m", "disentangled.data_prep.build_corpus", "--input", bucket.format("in/")]
    command = [*launcher, *build, "--output", str(folder / "remote"), *COMMON]
    command[command.index("spm.model")] = str(folder / "spm.model")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert read_tree(Path("remote")) == read_tree(Path("local"))


def test_objects_tag_is_in_the_plan(folder: Path, bucket: str, capsys: pytest.CaptureFixture[str]):
    [file] = find_text_files([bucket.format("in/a.txt")])
    assert file.stamp.tag.strip('"')
    assert stamp_file(file.path) == file.stamp
    (folder / "bad.txt").write_bytes(b"\xff\n\nx")
    assert build_corpus.main(["--input", bucket.format("in/"), "bad.txt", "--output", "out", *COMMON]) == 2
    plan = json.loads(Path("out/unfinished/plan.json").read_bytes())
    assert plan["inputs"][0]["name"] == "bad.txt"
    assert sum(bool(row["tag"]) for row in plan["inputs"]) == 5
    assert "127.0.0.1" not in json.dumps(plan)
