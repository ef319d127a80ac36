"""The verify command: every fault of every shard is named, and a whole dataset gives one line."""

import json
import shutil
from pathlib import Path

import pytest

from disentangled.data_prep import verify
from disentangled.data_prep.shard_schema import load_manifest


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


def run(*arguments: str) -> int:
    try:
        return verify.main(arguments)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("level", ["--quick", "", "--full"])
def test_whole_dataset_gives_one_line(dataset: Path, capsys: pytest.CaptureFixture[str], level: str):
    assert run(str(dataset), *level.split()) == 0
    totals = load_manifest(dataset).totals
    printed = capsys.readouterr()
    [line] = printed.out.splitlines()
    assert line.startswith(f"{dataset}: OK ({level.removeprefix('--') or 'checksum'}): {totals.num_shards} shards, 60 ")
    assert printed.err == ""


def test_every_fault_of_every_shard_is_named(copy: Path, capsys: pytest.CaptureFixture[str]):
    manifest = load_manifest(copy)
    paths = [copy / record.path for split in ("train", "validation") for record in manifest.splits[split]]
    flip(paths[0], paths[0].stat().st_size // 2)
    paths[1].write_bytes(paths[1].read_bytes()[:-8])
    paths[2].unlink()
    paths[2].with_suffix(".json").unlink()
    flip(paths[-1], paths[-1].stat().st_size // 2)
    flip(copy / "spm.model", -1)
    shutil.copy(paths[-1], copy / "train" / "shard-text-000099.arrow")
    assert run(str(copy)) == 1
    lines = capsys.readouterr().out.splitlines()
    expected = [
        f"fault: {copy / 'spm.model'}: not the tokenizer of this dataset",
        f"fault: {paths[0]}: xxh3_128 differs from its record",
        f"fault: {paths[1]}: {paths[1].stat().st_size} bytes, its record says",
        f"fault: {paths[2]}: missing shard",
        f"fault: {paths[2].with_suffix('.json')}: missing or not what the manifest says",
        f"fault: {paths[-1]}: xxh3_128 differs from its record",
        f"fault: {copy / 'train' / 'shard-text-000099.arrow'}: a shard that the manifest does not list",
        f"{copy}: 7 faults (checksum)",
    ]
    assert len(lines) == len(expected), "\n".join(lines)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True)), "\n".join(lines)


def test_levels_differ_in_what_they_read(copy: Path, capsys: pytest.CaptureFixture[str]):
    path = copy / load_manifest(copy).splits["train"][0].path
    flip(path, path.stat().st_size // 2)
    assert run(str(copy), "--quick") == 0
    assert run(str(copy)) == 1
    assert run(str(copy), "--full") == 1
    assert capsys.readouterr().out.count("differs from its record") == 2


def test_edited_manifest_hides_no_fault_of_a_shard(copy: Path, capsys: pytest.CaptureFixture[str]):
    path = copy / load_manifest(copy).splits["train"][0].path
    flip(path, path.stat().st_size // 2)
    content = json.loads((copy / "manifest.json").read_bytes())
    content["seed"] = 2
    (copy / "manifest.json").write_text(json.dumps(content))
    assert run(str(copy)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "dataset_id does not match the content" in lines[0]
    assert "xxh3_128 differs" in lines[1]


def test_folder_without_a_dataset_is_a_fault_and_no_folder_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(str(tmp_path)) == 1
    assert "no manifest.json here, so this is no finished dataset" in capsys.readouterr().out
    assert run(str(tmp_path / "absent")) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/absent: no such folder: name a dataset's\n"
    assert run(str(tmp_path), "--quick", "--full") == 2
