"""whole_file.py: a name that exists is a whole file."""

import errno
import os
from pathlib import Path

import pytest

from disentangled.data_prep.whole_file import create_file, write_file
from tests.data_prep.tiny_corpus import read_tree


def test_file_is_there_only_when_it_is_whole(tmp_path: Path):
    with create_file(tmp_path / "a") as file:
        file.write(b"1")
        file.flush()
        assert not (tmp_path / "a").exists()
        [temporary] = tmp_path.iterdir()
        assert temporary.name.startswith("a.") and temporary.name.endswith(f"-{os.getpid()}.tmp")
    assert read_tree(tmp_path) == {"a": b"1"}


def test_writing_again_replaces_the_file(tmp_path: Path):
    write_file(tmp_path / "a", b"1")
    write_file(tmp_path / "a", b"2")
    assert read_tree(tmp_path) == {"a": b"2"}


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_file_that_is_given_up_leaves_nothing(tmp_path: Path, stop: type[BaseException]):
    with pytest.raises(stop), create_file(tmp_path / "a") as file:
        file.write(b"1")
        raise stop
    assert list(tmp_path.iterdir()) == []


def test_full_disk_names_the_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError) as caught:
        write_file(tmp_path / "a", b"1")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []
