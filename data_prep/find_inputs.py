"""Which files the inputs mean: files, folders and globs, of the kinds whose documents can be read.

    .txt .jsonl      plain, .gz, .zst or .xz       read_text.py
    .parquet .arrow  as they are                   read_table.py

A file's name is its path below the common folder of all inputs, so a dataset does not depend on where that lies.

Used by: build_corpus.py, sources.py. Tested by: tests/data_prep/test_find_inputs.py.
Not here: sources and their weights (sources.py), remote files.
"""

import glob
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TEXT_CONTAINERS = (".txt", ".jsonl")
TABLE_CONTAINERS = (".parquet", ".arrow")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".xz": "xz"}
KNOWN_NAMES = ".txt or .jsonl, plain, .gz, .zst or .xz; .parquet; .arrow"


@dataclass(frozen=True)
class TextFile:
    """An input file, and what tells that it is still the same one: its size and time of change."""

    path: Path
    name: str
    container: str
    compression: str | None
    size_bytes: int
    modified_ns: int


def find_text_files(paths: Sequence[str | Path]) -> list[TextFile]:
    """Return the files among paths and all known ones in the folders and globs among them, sorted by name.

    Raises ValueError for a path that does not exist, a file of unknown kind, a folder or glob without a known file
    and a file named twice. Files of other kinds inside a folder or glob, and hidden ones, are passed over.
    """
    return find_grouped_files([paths])[0]


def find_grouped_files(groups: Sequence[Sequence[str | Path]]) -> list[list[TextFile]]:
    """Do what find_text_files does for several groups of paths, which share one common folder and no file."""
    found = [sorted(Path(os.path.abspath(file)) for path in group for file in _expand(path)) for group in groups]
    everything = sorted(itertools.chain(*found))
    for first, second in itertools.pairwise(everything):
        if first == second:
            raise ValueError(f"{first}: named twice among the inputs: name it once")
    common = Path(os.path.commonpath([path.parent for path in everything]))
    return [[_describe_file(path, path.relative_to(common).as_posix()) for path in group] for group in found]


def _expand(path: str | Path) -> list[Path]:
    """Return the files that one input means."""
    if not os.path.lexists(path) and glob.has_magic(str(path)):
        matched = [Path(match) for match in glob.glob(str(path), recursive=True)]
        known = [file for match in matched for file in (_walk(match) if match.is_dir() else [match]) if _kind_of(file)]
        if not known:
            raise ValueError(f"{path}: matches no text file: inputs are {KNOWN_NAMES}")
        # a recursive glob finds a folder and what lies in it
        return sorted(set(known))
    path = Path(path)
    if path.is_dir():
        inside = _walk(path)
        if not inside:
            raise ValueError(f"{path}: no text file in this folder: inputs are {KNOWN_NAMES}")
        return inside
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder: check --input")
    if not _kind_of(path):
        raise ValueError(f"{path}: unknown kind of file: inputs are {KNOWN_NAMES}")
    return [path]


def _walk(folder: Path) -> list[Path]:
    """Return the known files below a folder, hidden ones left out."""
    inside = [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]
    return [file for file in inside if _kind_of(file) and not _is_hidden(file.relative_to(folder))]


def _kind_of(path: Path) -> tuple[str, str | None] | None:
    """Return (container, compression) as the name tells, None for a file of another kind."""
    container, last = Path(path.stem).suffix.lower(), path.suffix.lower()
    if last in COMPRESSIONS and container in TEXT_CONTAINERS:
        return container, COMPRESSIONS[last]
    return (last, None) if last in TEXT_CONTAINERS + TABLE_CONTAINERS else None


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _describe_file(path: Path, name: str) -> TextFile:
    kind = _kind_of(path)
    assert kind is not None, "only files of known kind are described"
    status = path.stat()
    return TextFile(path, name, kind[0], kind[1], status.st_size, status.st_mtime_ns)
