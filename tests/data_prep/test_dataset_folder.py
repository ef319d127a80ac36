"""dataset_folder.py: whole files or none, and a failed build leaves the disk as it found it."""

import errno
import os
from pathlib import Path

import pytest

from disentangled.data_prep.dataset_folder import DatasetFolder
from tests.data_prep.tiny_corpus import read_tree


def test_finished_build_keeps_its_files_without_temporary_ones(tmp_path: Path):
    with DatasetFolder(tmp_path / "deep" / "out") as folder:
        folder.write_file("train/a", b"1")
        folder.write_file("manifest.json", b"2")
    assert read_tree(tmp_path) == {"deep/out/train/a": b"1", "deep/out/manifest.json": b"2"}


@pytest.mark.parametrize("stop", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_failed_build_leaves_nothing(tmp_path: Path, stop: type[BaseException]):
    with pytest.raises(stop), DatasetFolder(tmp_path / "deep" / "out") as folder:
        folder.write_file("train/a", b"1")
        folder.write_file("manifest.json", b"2")
        raise stop
    assert list(tmp_path.iterdir()) == []


def test_failed_build_keeps_the_users_own_folder(tmp_path: Path):
    output = tmp_path / "out"
    output.mkdir()
    with pytest.raises(KeyboardInterrupt), DatasetFolder(output) as folder:
        folder.write_file("train/a", b"1")
        raise KeyboardInterrupt
    assert list(output.iterdir()) == []


def test_file_is_there_only_when_it_is_whole(tmp_path: Path):
    with DatasetFolder(tmp_path / "out") as folder:
        with folder.create_file("train/a") as file:
            file.write(b"1")
            file.flush()
            assert not (folder.path / "train" / "a").exists()
        assert (folder.path / "train" / "a").read_bytes() == b"1"


def test_full_disk_names_the_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError) as caught, DatasetFolder(tmp_path / "out") as folder:
        folder.write_file("train/a", b"1")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "out" / "train" / "a"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("manifest.json", r"out: holds a finished dataset: name another --output or remove it"),
        ("notes.txt", r"out: not empty: name a new or empty folder"),
        (None, r"out: exists and is no folder"),
    ],
)
def test_place_that_is_taken_is_refused_and_left_alone(tmp_path: Path, name: str | None, fault: str):
    taken = tmp_path / "out" if name is None else tmp_path / "out" / name
    taken.parent.mkdir(exist_ok=True)
    taken.write_bytes(b"mine")
    with pytest.raises(ValueError, match=fault), DatasetFolder(tmp_path / "out"):
        pytest.fail("the folder was claimed")
    assert taken.read_bytes() == b"mine"
