"""What a build does about input and machines that fail it: the rest is committed, and the same command goes on."""

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from disentangled.data_prep import build_corpus, encode_unit, read_part
from disentangled.data_prep.build_folder import BuildFolder
from disentangled.data_prep.read_text import read_documents
from disentangled.data_prep.shard_schema import load_manifest
from tests.data_prep.tiny_corpus import make_documents, read_tree, write_bytes, write_txt


@pytest.fixture
def folder(tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three files, each of which is some units, and a tokenizer."""
    for seed, name in enumerate(["a.txt", "b.txt", "c.txt"]):
        write_txt(tmp_path / "in" / name, make_documents(40, seed))
    shutil.copy(model_path, tmp_path / "spm.model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build(output: str = "out", *options: str) -> int:
    common = ["--tokenizer", "spm.model", "--validation-fraction", "0.2", "--shard-tokens", "600"]
    return build_corpus.main(["--input", "in", "--output", output, *common, *options])


def list_committed() -> list[str]:
    return sorted(path.stem for path in Path("out/unfinished/units").glob("*.json"))


def test_bad_document_fails_its_unit_alone_and_can_be_skipped_then(folder: Path, capsys: pytest.CaptureFixture[str]):
    good = Path("in/b.txt").read_bytes()
    middle = good.index(b"\n\n", 3000) + 3
    write_bytes(Path("in/b.txt"), good[:middle] + b"\xff" + good[middle + 1 :])
    assert build() == 2
    message = capsys.readouterr().err
    num_units = len(list_committed()) + 1
    assert num_units > 10
    assert message == (
        f"error: {folder}/in/b.txt: byte {middle} (0xff) is not UTF-8: correct it, or pass --on-bad-text skip; "
        f"{num_units - 1} of {num_units} units are committed, with the same inputs the command goes on from there\n"
    )
    assert build("out", "--on-bad-text", "skip") == 0
    assert load_manifest("out").num_bad_documents == 1


def test_repaired_input_starts_anew(folder: Path, capsys: pytest.CaptureFixture[str]):
    good = Path("in/b.txt").read_bytes()
    write_bytes(Path("in/b.txt"), b"\xff" + good)
    assert build() == 2
    write_bytes(Path("in/b.txt"), good)
    assert build() == 2
    assert "another inputs (b.txt has changed): take back the change, remove" in capsys.readouterr().err
    shutil.rmtree("out")
    assert build() == 0


def test_every_failing_unit_is_counted_and_the_first_is_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("c.txt", "b.txt"):
        write_bytes(Path("in") / name, b"\xff" + Path("in", name).read_bytes())
    assert build() == 2
    assert "in/b.txt: byte 0 (0xff)" in (message := capsys.readouterr().err)
    assert "(and 1 more of this kind); " in message


def test_full_disk_stops_the_build_at_once_and_it_goes_on_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert build("whole") == 0
    write_record = encode_unit.write_file
    num_written = 0

    def fill_disk(path: Path, content: bytes) -> None:
        nonlocal num_written
        num_written += 1
        if num_written > 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_record(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(encode_unit, "write_file", fill_disk)
        assert build() == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert ": no space left on device: free some space there or name another --output" in message
    assert len(list_committed()) == 4
    assert num_written == 5, "after the disk was full, other units were tried"
    assert build() == 0
    assert read_tree(Path("out")) == read_tree(Path("whole"))


@pytest.mark.parametrize("change", [b"", b"longer"])
def test_file_that_changes_while_it_is_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: bytes
):
    def read_and_change(file: Any, *arguments: Any) -> Any:
        yield from read_documents(file, *arguments)
        if file.name == "b.txt":
            write_bytes(file.path, change)

    monkeypatch.setattr(read_part, "read_documents", read_and_change)
    assert build() == 2
    message = capsys.readouterr().err
    assert "in/b.txt: changed since the build began (its size or time differs): remove the output and" in message
    assert message.count("\n") == 1


def test_damage_to_a_committed_shard_is_repaired(folder: Path):
    assert build("whole") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BuildFolder, "finish", lambda self: None)
        assert build() == 0
    [shard, *_] = sorted(Path("out/train").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1])
    Path("out/train/shard-text-000001.arrow").unlink()
    # a flipped bit that leaves the size as it is
    shard = Path("out/train/shard-text-000002.arrow")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    assert build() == 0
    assert read_tree(Path("out")) == read_tree(Path("whole"))


def test_output_that_cannot_be_written_gives_one_line(folder: Path, capsys: pytest.CaptureFixture[str]):
    # /proc takes no folders, from root either
    assert build("/proc/out") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: /proc/out: ")
    assert message.count("\n") == 1


def test_build_in_a_folder_where_another_one_works_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]):
    with BuildFolder("out", {"seed": 1}):
        assert build() == 2
        assert "error: out: another build is writing here (process " in capsys.readouterr().err
        assert Path("out/unfinished/plan.json").exists()


def test_truncated_archive_fails_its_unit_alone(folder: Path, capsys: pytest.CaptureFixture[str]):
    write_txt(Path("in/d.txt.xz"), make_documents(100, 4))
    Path("in/d.txt.xz").write_bytes(Path("in/d.txt.xz").read_bytes()[:-20])
    assert build() == 2
    message = capsys.readouterr().err
    assert "in/d.txt.xz: cannot be read to its end (" in message
    assert "units are committed" in message
    assert list_committed()


def test_sources_that_have_nothing_are_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    write_bytes(Path("in/void.txt"), b"\n")
    Path("sources.toml").write_text(
        '[[source]]\nname = "one"\ninput = ["in/a.txt"]\n[[source]]\nname = "two"\ninput = ["in/void.txt"]\n'
    )
    line = "--sources sources.toml --output out --tokenizer spm.model --validation-fraction 0.2"
    assert build_corpus.main(line.split()) == 2
    assert "the inputs of source 'two' hold no documents: check" in capsys.readouterr().err
    assert not Path("out").exists()


def test_floor_that_leaves_nothing_to_train_on_is_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    Path("sources.toml").write_text(
        '[[source]]\nname = "big"\ninput = ["in/a.txt", "in/b.txt"]\n[[source]]\nname = "low"\ninput = ["in/c.txt"]\n'
    )
    line = "--sources sources.toml --output out --tokenizer spm.model --validation-floor 40"
    assert build_corpus.main(line.split()) == 2
    message = capsys.readouterr().err
    assert "floor 40: leaves no train documents, source 'low' has 40 different documents in all: lower it" in message
    assert not Path("out").exists()
    assert build_corpus.main([*line.split()[:-1], "10"]) == 0
    manifest = load_manifest("out")
    low = [record for record in manifest.splits["validation"] if record.source == "low"]
    assert sum(record.num_documents for record in low) == 10
