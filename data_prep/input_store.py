"""Inputs by URL: object stores and file systems other than this machine's, read through Apache Arrow or fsspec.

    s3://bucket/prefix/   gs://...   abfss://...   hdfs://host/folder   Arrow's own, with the credentials there are
    memory://, http://, sftp://, ...                                    fsspec's, if the package it asks for is there
    file:///folder                                                      a local path

A store's options follow the URL as a query (`s3://bucket/text/?endpoint_override=host:9000&scheme=http`); they and a
password are never shown. The files of a URL are those below it, as of a folder, or those that match, if it has a `*`.
What tells that a file is still the same one is its size, and its entity tag where the store has one, else its time.

Used by: find_inputs.py, read_text.py, read_table.py, read_part.py, build_corpus.py.
Tested by: tests/data_prep/test_input_store.py. Not here: which files are text (find_inputs.py), writing.
"""

import functools
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec.core
import fsspec.utils
import pyarrow as pa
import pyarrow.fs

_ARROW_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
# 8 MiB: a request takes as long as some MiB of transfer
_REQUEST_BYTES = 1 << 23


@dataclass(frozen=True, order=True)
class RemotePath:
    """A file or folder of a store: scheme, what stands between // and the path, the path, the query's options."""

    scheme: str
    host: str
    path: str
    options: str = ""

    def __str__(self) -> str:
        return f"{self.store}{self.path}"

    @property
    def store(self) -> str:
        """The URL up to the path, without a password."""
        return f"{self.scheme}://{self.host.rpartition('@')[2]}"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name

    def with_path(self, path: str) -> "RemotePath":
        """Return another place of the same store."""
        return RemotePath(self.scheme, self.host, path, self.options)


InputPath = Path | RemotePath


@dataclass(frozen=True)
class Stamp:
    """What tells that a file is still the same one; tag is "" where the store has none."""

    size_bytes: int
    modified_ns: int
    tag: str = ""


def parse_url(text: str) -> InputPath | None:
    """Return the place that a URL names; None for what is no URL but a path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if not match:
        return None
    # by hand: a bucket's name may hold what urlsplit takes for a port or refuses
    rest, _, options = text[match.end() :].partition("?")
    host, _, path = rest.partition("/")
    scheme = match[1].lower()
    if scheme == "file":
        return Path(urllib.parse.unquote(f"/{path}"))
    return RemotePath(scheme, host, re.sub("/+", "/", f"/{path}"), options)


def list_files(place: RemotePath) -> list[RemotePath]:
    """Return the file itself, all files below a folder or all that match, sorted; ValueError where there is nothing."""
    root = place.path.partition("*")[0].rpartition("/")[0] if "*" in place.path else place.path.rstrip("/")
    system, prefix = _open_store(place)
    try:
        if "*" not in place.path and system.get_file_info(prefix + place.path.rstrip("/")).type == pa.fs.FileType.File:
            return [place]
        selector = pa.fs.FileSelector(prefix + root, recursive=True, allow_not_found=True)
        infos = system.get_file_info(selector)
    except (OSError, ValueError) as error:
        raise ValueError(f"{place}: cannot be listed ({_one_line(error)}): check the URL and the credentials") from None
    found = [place.with_path(info.path.removeprefix(prefix)) for info in infos if info.type == pa.fs.FileType.File]
    if "*" in place.path:
        pattern = re.compile(fsspec.utils.glob_translate(place.path))
        found = [file for file in found if pattern.fullmatch(file.path)]
    if not found:
        raise ValueError(f"{place}: no such file or folder: check --input (folders end at a slash, a * matches)")
    return sorted(found)


def stamp_file(path: InputPath) -> Stamp:
    """Return a file's size, time and tag; FileNotFoundError where it is gone."""
    if isinstance(path, Path):
        status = path.stat()
        return Stamp(status.st_size, status.st_mtime_ns)
    system, prefix = _open_store(path)
    info = system.get_file_info(prefix + path.path)
    if info.type != pa.fs.FileType.File:
        raise FileNotFoundError(2, "no such file", str(path))
    tag = ""
    if isinstance(system, pa.fs.S3FileSystem):
        with system.open_input_stream(prefix + path.path, buffer_size=0) as stream:
            tag = (stream.metadata() or {}).get("ETag", b"").decode()
    elif isinstance(system, pa.fs.PyFileSystem):
        known = system.handler.fs.info(prefix + path.path)
        tag = str(next((known[name] for name in ("ETag", "etag", "mtime", "created") if known.get(name)), ""))
    return Stamp(info.size, info.mtime_ns or 0, tag)


def open_file(path: InputPath) -> Any:
    """Return the file as one of Arrow's, which can be read from anywhere."""
    if isinstance(path, Path):
        return pa.OSFile(str(path))
    system, prefix = _open_store(path)
    return system.open_input_file(prefix + path.path)


def open_stream(path: InputPath, begin: int) -> Any:
    """Return the file as one of Arrow's, to be read from byte `begin` on in order."""
    stored = open_file(path)
    stored.seek(begin)
    return stored if isinstance(path, Path) else pa.BufferedInputStream(stored, _REQUEST_BYTES)


def _open_store(place: RemotePath) -> tuple[Any, str]:
    """Return (file system, what goes before a path in it); ValueError where there is no way to it."""
    try:
        return _open_store_once(place.scheme, place.host, place.options)
    except (ImportError, OSError, ValueError, pa.ArrowException) as error:
        remedy = "check its name, install the package that it asks for, or copy the files here"
        raise ValueError(f"{place.store}: this store cannot be opened ({_one_line(error)}): {remedy}") from None


@functools.cache
def _open_store_once(scheme: str, host: str, options: str) -> tuple[Any, str]:
    """Do what _open_store does; a process opens a store once."""
    if scheme in _ARROW_SCHEMES:
        query = f"?{options}" if options else ""
        system, path = pa.fs.FileSystem.from_uri(f"{scheme}://{host}/{query}")
        return system, path.rstrip("/")
    # the path says where the store's paths begin: below the host (memory), at it (http), or past it (sftp)
    system, path = fsspec.core.url_to_fs(f"{scheme}://{host}/x", **dict(urllib.parse.parse_qsl(options)))
    return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(system)), path.removesuffix("/x")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
