"""Reads documents from .txt and .jsonl files, each also as .gz, .zst and .xz, as a stream of bounded memory.

A document is
- in .txt: the lines between blank lines (a line of spaces, tabs or nothing at all),
- in .jsonl: the text field of the JSON object on one line.
In both, a byte-order mark and the white space around a document are dropped, and CRLF becomes LF, so that the same
documents come out of every container. Documents without any text are dropped.

Bytes are split into documents before they are decoded: both separators are ASCII, so neither a block border nor a
damaged character can move a document. Memory is one block plus one document, and a document has a largest size.

A plain file can be read in byte ranges, by different processes: a document belongs to the range in which the document
before it ends (the first one to the range that starts at 0). So the ranges of any cutting give every document once,
and a range may start anywhere, also inside a character: what it starts inside belongs to a range before it.

Used by: read_part.py. Tested by: tests/data_prep/test_read_text.py, test_read_ranges.py.
Not here: which files (find_inputs.py), tables (read_table.py), cleaning (clean.py).
"""

import contextlib
import json
import lzma
import re
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from disentangled.data_prep.find_inputs import TextFile
from disentangled.data_prep.input_store import InputPath, open_stream

# 1 MiB: larger blocks read no faster (zstd gives about 1 GB/s, SentencePiece takes about 25 MB/s)
BLOCK_BYTES = 1 << 20
# 64 MiB: longer than any book, and short enough to hold in memory several times over
MAX_DOCUMENT_BYTES = 1 << 26
# past the end of every file
WHOLE = sys.maxsize

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WHITE_SPACE = b" \t\r\n"
_SEPARATORS = {".txt": re.compile(rb"\n[ \t\r]*\n"), ".jsonl": re.compile(rb"\n")}


@dataclass(frozen=True)
class Document:
    """A document's text and where it starts: its first byte in the decompressed file (of its line, in .jsonl), or
    its row in a table."""

    text: str
    start_byte: int


@dataclass
class BadText:
    """What to do with a document that cannot be read: stop at the first, or drop it and remember where and why."""

    skip: bool = False
    faults: list[tuple[int, str]] = field(default_factory=list)

    def meet(self, path: InputPath, start_byte: int, fault: str) -> None:
        """Raise ValueError for the fault, or note it where bad text is skipped."""
        if not self.skip:
            raise ValueError(f"{path}: {fault}: correct it, or pass --on-bad-text skip")
        self.faults.append((start_byte, fault))


def read_documents(
    file: TextFile,
    text_field: str = "text",
    bad_text: BadText | None = None,
    start: int = 0,
    stop: int = WHOLE,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Document]:
    """Yield the documents of the byte range [start, stop) of a file in order; unreadable ones go to bad_text.

    Raises ValueError for text that is not UTF-8 (with the byte offset, in the decompressed stream), not JSON, without
    the text field, for a document past MAX_DOCUMENT_BYTES, and for a damaged or truncated compressed file.
    """
    bad_text = bad_text or BadText()
    for start_byte, record in _read_range(file, start, stop, block_bytes):
        try:
            text = _decode_utf8(record, start_byte)
            text = _take_json_field(text, text_field, start_byte) if file.container == ".jsonl" else text
        except ValueError as error:
            bad_text.meet(file.path, start_byte, str(error))
            continue
        yield Document(text, start_byte)


def tidy_text(text: str) -> str:
    """Return a row's text as a .txt file would have given it: without white space around it, and with LF line ends."""
    return text.strip(_WHITE_SPACE.decode()).replace("\r\n", "\n")


def _read_range(file: TextFile, start: int, stop: int, block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield (first byte, content) of the documents that belong to [start, stop).

    Reading begins one byte early: the first content found then ends at or after `start`, and is not ours. Within the
    first bytes there may be a byte-order mark, which is recognized only when reading begins at 0.
    """
    assert start == 0 or file.compression is None, "only a plain file can be entered anywhere"
    begin = 0 if start <= len(_BYTE_ORDER_MARK) else start - 1
    previous_end = 0 if begin == 0 else -1
    records = _split_records(_read_blocks(file, begin, block_bytes), begin, _SEPARATORS[file.container], file.path)
    with contextlib.closing(records):
        for start_byte, record in records:
            if start <= previous_end < stop:
                yield start_byte, record
            previous_end = start_byte + len(record)
            if previous_end >= stop:
                return


def _read_blocks(file: TextFile, begin: int, block_bytes: int) -> Iterator[bytes]:
    """Yield the decompressed content of a file from byte `begin` on, at most block_bytes at a time."""
    with open_stream(file.path, begin) as stored:
        stream: Any = stored
        if file.compression == "xz":
            stream = lzma.LZMAFile(stored)  # noqa: SIM115  (it holds nothing but the file that is closed here)
        elif file.compression:
            stream = pa.CompressedInputStream(stored, file.compression)
        while True:
            try:
                block = stream.read(block_bytes)
            except (OSError, EOFError, lzma.LZMAError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"{file.path}: cannot be read to its end ({reason}): replace the file") from None
            if not block:
                return
            yield block


def _split_records(
    blocks: Iterator[bytes], begin: int, separator: re.Pattern[bytes], path: InputPath
) -> Generator[tuple[int, bytes], None, None]:
    """Yield (first byte, content) of what lies between separators, without the white space around it.

    A separator that a block border cuts is found with the next block: it can only begin at the buffer's last newline,
    and from there the search goes on.
    """
    buffer, buffer_start, search_from = b"", begin, 0
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
    return tidy_text(text)
