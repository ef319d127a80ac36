"""The output directory of a build: whole files only, and nothing at all unless the build finishes.

Every file is written under a temporary name, flushed to the disk and renamed, and the rename itself is flushed, so a
name that exists is a whole file even after a power cut. A build that fails removes what it made, folders included. A
build that is killed outright leaves whole shards but no manifest, which no reader takes for a dataset.

Used by: build_corpus.py, write_shards.py. Tested by: tests/data_prep/test_dataset_folder.py.
Not here: continuing a killed build.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from disentangled.data_prep.shard_schema import MANIFEST_NAME, SPLITS


class DatasetFolder:
    """A context: enter to claim an absent or empty directory, leave by an exception to undo everything in it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._files: list[Path] = []
        self._folders: list[Path] = []

    def __enter__(self) -> "DatasetFolder":
        self._refuse_unless_empty()
        try:
            for split in SPLITS:
                self._make_folder(self.path / split)
        except BaseException:
            self._remove_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Undo everything when an exception ends the build."""
        if kind is not None:
            self._remove_all()

    @contextlib.contextmanager
    def create_file(self, relative: str) -> Iterator[BinaryIO]:
        """Give a file to write into, which takes its name when the block ends well; OSErrors name it."""
        path = self.path / relative
        temporary = path.with_name(path.name + ".tmp")
        self._files += [temporary, path]
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
            _sync_folder(path.parent)
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error

    def write_file(self, relative: str, content: bytes) -> None:
        """Write a whole file."""
        with self.create_file(relative) as file:
            file.write(content)

    def _refuse_unless_empty(self) -> None:
        if self.path.is_dir():
            if (self.path / MANIFEST_NAME).exists():
                raise ValueError(f"{self.path}: holds a finished dataset: name another --output or remove it first")
            if any(self.path.iterdir()):
                raise ValueError(f"{self.path}: not empty: name a new or empty folder as --output")
        elif self.path.exists():
            raise ValueError(f"{self.path}: exists and is no folder: name a new or empty folder as --output")

    def _make_folder(self, path: Path) -> None:
        """Make a folder and its absent parents, and remember them, outermost first."""
        absent = [folder for folder in [path, *path.parents] if not folder.exists()]
        for folder in reversed(absent):
            folder.mkdir()
            self._folders.append(folder)

    def _remove_all(self) -> None:
        """Remove what was made here, as far as it can be; a folder that others have put something in stays."""
        for file in self._files:
            with contextlib.suppress(OSError):
                file.unlink()
        for folder in reversed(self._folders):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, which makes a rename in it last."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
