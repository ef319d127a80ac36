"""Writes files that are there whole or not at all.

A file is written under a temporary name (`.tmp`, with host and process, so that no two writers share one), flushed to
the disk and renamed, and the rename itself is flushed: a name that exists is a whole file even after a power cut.

Used by: write_shards.py, encode_unit.py, build_folder.py and others. Tested by: tests/data_prep/test_whole_file.py.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def create_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write into, which takes its name when the block ends well; OSErrors name it."""
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file."""
    with create_file(path) as file:
        file.write(content)


def _sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, which makes a rename in it last."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
