"""Which files the inputs mean: files, folders, globs and URLs of these, of the kinds whose documents can be read.

    .txt .jsonl      plain, .gz, .zst or .xz       read_text.py
    .parquet .arrow  as they are                   read_table.py

A file's name is its path below the common folder of all inputs, so a dataset does not depend on where that lies. Where
they lie in several stores there is no such folder: then that holds of local files, and others have their URL as name.

Used by: build_corpus.py, sources.py. Tested by: tests/data_prep/test_find_inputs.py.
Not here: sources and their weights (sources.py), how a store is read (input_store.py).
"""

import glob
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from disentangled.data_prep.input_store import InputPath, RemotePath, Stamp, list_files, parse_url, stamp_file

TEXT_CONTAINERS = (".txt", ".jsonl")
TABLE_CONTAINERS = (".parquet", ".arrow")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".xz": "xz"}
KNOWN_NAMES = ".txt or .jsonl, plain, .gz, .zst or .xz; .parquet; .arrow"


@dataclass(frozen=True)
class TextFile:
    """An input file, and what tells that it is still the same one."""

    path: InputPath
    name: str
    container: str
    compression: str | None
    stamp: Stamp

    @property
    def size_bytes(self) -> int:
        """The file's size as stored."""
        return self.stamp.size_bytes


def find_text_files(paths: Sequence[str | Path]) -> list[TextFile]:
    """Return the files among paths and all known ones in the folders and globs among them, sorted by name.

    Raises ValueError for a path that does not exist, a file of unknown kind, a folder or glob without a known file
    and a file named twice. Files of other kinds inside a folder or glob, and hidden ones, are passed over.
    """
    return find_grouped_files([paths])[0]


def find_grouped_files(groups: Sequence[Sequence[str | Path]]) -> list[list[TextFile]]:
    """Do what find_text_files does for several groups of paths, which share one common folder and no file."""
    found = [[file for path in group for file in _expand(path)] for group in groups]
    everything = sorted(map(str, itertools.chain(*found)))
    for first, second in itertools.pairwise(everything):
        if first == second:
            raise ValueError(f"{first}: named twice among the inputs: name it once")
    names = _name_files(list(itertools.chain(*found)))
    described = [[_describe_file(path, names[path]) for path in group] for group in found]
    return [sorted(group, key=lambda file: PurePosixPath(file.name)) for group in described]


def _name_files(paths: Sequence[InputPath]) -> dict[InputPath, str]:
    """Return the files' names."""
    stores = {"" if isinstance(path, Path) else path.store for path in paths}
    names: dict[InputPath, str] = {}
    for store in stores:
        inside = (
            {path: path for path in paths if isinstance(path, Path)}
            if not store
            else {
                path: PurePosixPath(path.path) for path in paths if isinstance(path, RemotePath) and path.store == store
            }
        )
        common = os.path.commonpath([path.parent for path in inside.values()])
        for path, local in inside.items():
            names[path] = str(path) if store and len(stores) > 1 else local.relative_to(common).as_posix()
    return names


def _expand(path: str | Path) -> list[InputPath]:
    """Return the files that one input means; local ones as absolute paths."""
    place = parse_url(str(path))
    if isinstance(place, RemotePath):
        known = [file for file in list_files(place) if _kind_of(file.name) and not _is_hidden(file, place)]
        if not known:
            raise ValueError(f"{place}: no text file there: inputs are {KNOWN_NAMES}")
        return list(known)
    return [Path(os.path.abspath(file)) for file in _expand_local(place or path)]


def _expand_local(path: str | Path) -> list[Path]:
    """Return the files that one path or glob means."""
    if not os.path.lexists(path) and glob.has_magic(str(path)):
        matched = [Path(match) for match in glob.glob(str(path), recursive=True)]
        known = [
            file for match in matched for file in (_walk(match) if match.is_dir() else [match]) if _kind_of(file.name)
        ]
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
    if not _kind_of(path.name):
        raise ValueError(f"{path}: unknown kind of file: inputs are {KNOWN_NAMES}")
    return [path]


def _walk(folder: Path) -> list[Path]:
    """Return the known files below a folder, hidden ones left out."""
    inside = [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]
    return [file for file in inside if _kind_of(file.name) and not _has_hidden_part(file.relative_to(folder))]


def _kind_of(name: str) -> tuple[str, str | None] | None:
    """Return (container, compression) as the name tells, None for a file of another kind."""
    path = PurePosixPath(name)
    container, last = PurePosixPath(path.stem).suffix.lower(), path.suffix.lower()
    if last in COMPRESSIONS and container in TEXT_CONTAINERS:
        return container, COMPRESSIONS[last]
    return (last, None) if last in TEXT_CONTAINERS + TABLE_CONTAINERS else None


def _has_hidden_part(relative: PurePath) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _is_hidden(file: RemotePath, place: RemotePath) -> bool:
    """Return whether a file lies hidden in a folder or below what a glob begins with; one that is named is not."""
    below = place.path.partition("*")[0].rpartition("/")[0] if "*" in place.path else place.path
    return _has_hidden_part(PurePosixPath(file.path).relative_to(PurePosixPath(below or "/")))


def _describe_file(path: InputPath, name: str) -> TextFile:
    kind = _kind_of(path.name)
    assert kind is not None, "only files of known kind are described"
    return TextFile(path, name, kind[0], kind[1], stamp_file(path))
