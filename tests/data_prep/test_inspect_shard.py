"""The inspect_shard command: header, rows as text, an 80-column terminal, and damage."""

import shutil
from pathlib import Path

import pytest

from disentangled.data_prep import inspect_shard
from disentangled.data_prep.shard_schema import load_manifest
from tests.data_prep.tiny_corpus import make_documents


def run(*arguments: object) -> int:
    try:
        return inspect_shard.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


def test_dataset_is_described_with_its_first_training_rows(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(dataset.parent)
    assert run(dataset.name, "--rows", 2) == 0
    printed = capsys.readouterr().out
    manifest = load_manifest(dataset)
    for expected in (manifest.dataset_id[:12], manifest.tokenizer_sha256[:12], "400 pieces, vocabulary 448, uint16"):
        assert expected in printed
    assert [line.split(":")[0] for line in printed.splitlines() if line.startswith("row ")] == ["row 0", "row 1"]
    first_line = make_documents()[0].split("\n")[0]
    assert first_line[:40] in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_shard_is_described_by_its_path(dataset: Path, capsys: pytest.CaptureFixture[str]):
    record = load_manifest(dataset).splits["validation"][1]
    for path in (dataset / record.path, (dataset / record.path).with_suffix(".json")):
        assert run(path, "--rows", 1) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(str(dataset / record.path) + "\n")
        assert f"{record.num_documents:,} documents, {record.num_tokens:,} tokens" in printed
        assert f"xxh3_128 {record.xxh3_128} verified" in printed


def test_rows_past_the_end_are_not_asked_for(dataset: Path, capsys: pytest.CaptureFixture[str]):
    record = load_manifest(dataset).splits["train"][0]
    assert run(dataset / record.path, "--rows", 10_000) == 0
    assert capsys.readouterr().out.count("\nrow ") == record.num_documents


def test_control_characters_do_not_reach_the_terminal():
    lines = inspect_shard._fold_text("a\x1b[2Jb\u202ec" + "東" * 500, 3)
    assert "\x1b" not in "".join(lines)
    assert "\u202e" not in "".join(lines)
    assert len(lines) == 3
    # a wide character takes two cells
    assert all(len(line) <= 2 + 38 + 3 for line in lines[1:])
    assert lines[-1].endswith("...")


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("absent", "absent: no such shard or dataset: give"),
        (".", "no manifest.json here, so this is no finished dataset"),
        ("copy/spm.model", "no manifest.json here"),
        ("copy/train/notes.txt", "not a shard of the dataset in"),
    ],
)
def test_path_that_is_no_shard_is_refused(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    path: str,
    fault: str,
):
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    (copy / "train" / "notes.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert run(path) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert fault in printed.err


def test_damaged_shard_is_refused(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    shard = copy / load_manifest(copy).splits["train"][0].path
    content = shard.read_bytes()
    middle = len(content) // 2
    shard.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert run(shard) == 2
    assert capsys.readouterr().err.endswith(
        "xxh3_128 differs from its record, the file is damaged: restore or rebuild it\n"
    )


def test_number_of_rows_must_be_a_number(dataset: Path, capsys: pytest.CaptureFixture[str]):
    assert run(dataset, "--rows", "some") == 2
    assert capsys.readouterr().err == "error: argument --rows: 'some' is not a number of rows: see --help\n"
