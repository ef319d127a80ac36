"""Reads documents from .txt and .jsonl files, each also as .gz and .zst, as a stream of bounded memory.

A document is
- in .txt: the lines between blank lines (a line of spaces, tabs or nothing at all),
- in .jsonl: the text field of the JSON object on one line.
In both, a byte-order mark and the white space around a document are dropped, and CRLF becomes LF, so that the same
documents come out of every container. Documents without any text are dropped.

Bytes are split into documents before they are decoded: both separators are ASCII, so neither a block border nor a
damaged character can move a document. Memory is one block plus one document, and a document has a largest size.

Used by: build_corpus.py. Tested by: tests/data_prep/test_read_text.py.
Not here: cleaning, deduplication, Parquet, the splitting of one file among processes.
"""

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

CONTAINERS = (".txt", ".jsonl")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
KNOWN_NAMES = ".txt or .jsonl, plain, .gz or .zst"

# 1 MiB: larger blocks read no faster (zstd gives about 1 GB/s, SentencePiece takes about 25 MB/s)
BLOCK_BYTES = 1 << 20
# 64 MiB: longer than any book, and short enough to hold in memory several times over
MAX_DOCUMENT_BYTES = 1 << 26

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WHITE_SPACE = b" \t\r\n"
_SEPARATORS = {".txt": re.compile(rb"\n[ \t\r]*\n"), ".jsonl": re.compile(rb"\n")}


@dataclass(frozen=True)
class TextFile:
    """An input file. name is its path below the common folder of all inputs, so it does not depend on where that is."""

    path: Path
    name: str
    container: str
    compression: str | None
    size_bytes: int


@dataclass(frozen=True)
class Document:
    """A document's text and its first byte in the decompressed file (of its line, in .jsonl)."""

    text: str
    start_byte: int


@dataclass
class BadText:
    """What to do with a document that cannot be read: stop at the first, or drop and count it."""

    skip: bool = False
    num_documents: int = 0
    first_fault: str = ""

    def meet(self, fault: str) -> None:
        """Raise ValueError for the fault, or note it where bad text is skipped."""
        if not self.skip:
            raise ValueError(f"{fault}: correct it, or pass --on-bad-text skip")
        self.num_documents += 1
        self.first_fault = self.first_fault or fault


def find_text_files(paths: Sequence[str | Path]) -> list[TextFile]:
    """Return the files among paths and all known ones in the folders among them, sorted by name.

    Raises ValueError for a path that does not exist, a file of unknown kind, a folder without a known file and a file
    named twice. Files of other kinds inside a folder, and hidden ones, are passed over.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
            known = [file for file in inside if _kind_of(file) and not _is_hidden(file.relative_to(path))]
            if not known:
                raise ValueError(f"{path}: no text file in this folder: inputs are {KNOWN_NAMES}")
            found += known
        elif not path.exists():
            raise ValueError(f"{path}: no such file or folder: check --input")
        elif not _kind_of(path):
            raise ValueError(f"{path}: unknown kind of file: inputs are {KNOWN_NAMES}")
        else:
            found.append(path)
    absolute = sorted(Path(os.path.abspath(path)) for path in found)
    for first, second in itertools.pairwise(absolute):
        if first == second:
            raise ValueError(f"{first}: named twice among the inputs: name it once")
    common = Path(os.path.commonpath([path.parent for path in absolute]))
    return [_describe_file(path, path.relative_to(common).as_posix()) for path in absolute]


def read_documents(
    file: TextFile,
    text_field: str = "text",
    bad_text: BadText | None = None,
    on_progress: Callable[[int], object] = lambda stored_bytes: None,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Document]:
    """Yield the documents of a file in order; a document that cannot be read goes to bad_text.

    on_progress is told how many bytes of the file, as stored, have been read. Raises ValueError for text that is not
    UTF-8 (with the byte offset, in the decompressed stream), not JSON, without the text field, for a document past
    MAX_DOCUMENT_BYTES, and for a damaged or truncated compressed file.
    """
    bad_text = bad_text or BadText()
    blocks = _read_blocks(file, block_bytes, on_progress)
    for start_byte, record in _split_records(blocks, _SEPARATORS[file.container], file.path):
        try:
            text = _decode_utf8(record, start_byte)
            text = _take_json_field(text, text_field, start_byte) if file.container == ".jsonl" else text
        except ValueError as error:
            bad_text.meet(f"{file.path}: {error}")
            continue
        yield Document(text, start_byte)


def _kind_of(path: Path) -> tuple[str, str | None] | None:
    """Return (container, compression) as the name tells, None for a file of another kind."""
    container, last = Path(path.stem).suffix.lower(), path.suffix.lower()
    if last in COMPRESSIONS and container in CONTAINERS:
        return container, COMPRESSIONS[last]
    return (last, None) if last in CONTAINERS else None


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _describe_file(path: Path, name: str) -> TextFile:
    kind = _kind_of(path)
    assert kind is not None, "only files of known kind are described"
    return TextFile(path, name, kind[0], kind[1], path.stat().st_size)


def _read_blocks(file: TextFile, block_bytes: int, on_progress: Callable[[int], object]) -> Iterator[bytes]:
    """Yield the decompressed content of a file, at most block_bytes at a time."""
    with pa.OSFile(str(file.path)) as stored:
        stream = pa.CompressedInputStream(stored, file.compression) if file.compression else stored
        while True:
            try:
                block = stream.read(block_bytes)
            except OSError as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"{file.path}: cannot be read to its end ({reason}): replace the file") from None
            on_progress(stored.tell())
            if not block:
                return
            yield block


def _split_records(blocks: Iterator[bytes], separator: re.Pattern[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (first byte, content) of what lies between separators, without the white space around it.

    A separator that a block border cuts is found with the next block: it can only begin at the buffer's last newline,
    and from there the search goes on.
    """
    buffer, buffer_start, search_from = b"", 0, 0
    for block in blocks:
        buffer += block
        record_start = 0
        for match in separator.finditer(buffer, search_from):
            yield from _strip_record(buffer[record_start : match.start()], buffer_start + record_start)
            record_start = match.end()
        buffer, buffer_start = buffer[record_start:], buffer_start + record_start
        search_from = max(buffer.rfind(b"\n"), 0)
        if len(buffer) > MAX_DOCUMENT_BYTES:
            rule = f"a document of more than {MAX_DOCUMENT_BYTES >> 20} MiB starts at byte {buffer_start}"
            raise ValueError(f"{path}: {rule}: part documents by blank lines (.txt) or by lines (.jsonl)")
    yield from _strip_record(buffer, buffer_start)


def _strip_record(record: bytes, start_byte: int) -> Iterator[tuple[int, bytes]]:
    """Yield the record without byte-order mark and surrounding white space, or nothing if nothing is left."""
    content = record.removeprefix(_BYTE_ORDER_MARK) if start_byte == 0 else record
    content = content.lstrip(_WHITE_SPACE)
    start_byte += len(record) - len(content)
    content = content.rstrip(_WHITE_SPACE)
    if content:
        yield start_byte, content


def _decode_utf8(record: bytes, start_byte: int) -> str:
    """Return the record as text with LF line ends; ValueError with the byte offset where it is not UTF-8."""
    try:
        return record.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        offset = start_byte + error.start
        raise ValueError(f"byte {offset} (0x{record[error.start]:02x}) is not UTF-8") from None


def _take_json_field(line: str, text_field: str, start_byte: int) -> str:
    """Return the stripped text of a JSON line; ValueError for anything but a Unicode string in the field."""
    where = f"the line at byte {start_byte}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where} is not a JSON object")
    text = row.get(text_field)
    if not isinstance(text, str):
        fault = f"has no field {text_field!r}" if text_field not in row else f"holds no text in {text_field!r}"
        raise ValueError(f"{where} {fault}, its fields are {', '.join(map(repr, row))[:200]} (--text-field)")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds half a surrogate pair at character {error.start}") from None
    return text.strip(_WHITE_SPACE.decode()).replace("\r\n", "\n")
