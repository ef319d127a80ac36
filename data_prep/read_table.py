"""Reads documents from a text column of .parquet and .arrow files (IPC files, and the streams that Hugging Face's
`datasets` saves), a batch of rows at a time.

A document's place is its row in the file. As in .jsonl, white space around a text is dropped and CRLF becomes LF.
Of a .parquet file, a range of row groups can be read alone.

Used by: read_part.py, work_units.py. Tested by: tests/data_prep/test_read_table.py.
Not here: compressed tables (both formats compress inside), nested columns.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from disentangled.data_prep.find_inputs import TextFile
from disentangled.data_prep.input_store import open_file
from disentangled.data_prep.read_text import WHOLE, BadText, Document, tidy_text

# rows of one step: a few MiB of ordinary documents
BATCH_ROWS = 1024
# what an Arrow stream ends with; one that was cut between two batches can be told by nothing else
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_FILE_MAGIC = b"ARROW1"


def read_rows(
    file: TextFile, text_field: str = "text", bad_text: BadText | None = None, start: int = 0, stop: int = WHOLE
) -> Iterator[Document]:
    """Yield the documents of a table in order, of row groups [start, stop) alone in .parquet.

    Raises ValueError for a damaged file, a column that is absent or not of text and, unless bad_text skips them, for
    nulls and text that is not UTF-8.
    """
    bad_text = bad_text or BadText()
    with _naming(file):
        batches = _read_parquet(file, text_field, start, stop) if file.container == ".parquet" else _read_arrow(file)
        for first_row, batch in batches:
            for row, value in enumerate(_take_column(file, batch, text_field), first_row):
                if value is None:
                    bad_text.meet(file.path, row, f"row {row} holds no text in {text_field!r}")
                    continue
                try:
                    yield Document(tidy_text(value.decode("utf-8")), row)
                except UnicodeDecodeError as error:
                    bad_text.meet(file.path, row, f"row {row}, byte {error.start} of its text, is not UTF-8")


def row_group_sizes(file: TextFile) -> list[int]:
    """Return the decompressed bytes of each row group of a .parquet file; ValueError if it is none."""
    with _naming(file), open_file(file.path) as stored, pq.ParquetFile(stored) as table:
        return [table.metadata.row_group(index).total_byte_size for index in range(table.num_row_groups)]


def _read_parquet(file: TextFile, text_field: str, start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (first row, batch) of the row groups [start, stop)."""
    with open_file(file.path) as stored, pq.ParquetFile(stored) as table:
        _check_column(file, table.schema_arrow, text_field)
        row = sum(table.metadata.row_group(group).num_rows for group in range(start))
        groups = list(range(start, min(stop, table.num_row_groups)))
        for batch in table.iter_batches(BATCH_ROWS, row_groups=groups, columns=[text_field]) if groups else ():
            yield row, batch
            row += batch.num_rows


def _read_arrow(file: TextFile) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (first row, batch) of an IPC file or stream."""
    # a local file is mapped: its batches are then not copied
    with pa.memory_map(str(file.path)) if isinstance(file.path, Path) else open_file(file.path) as mapped:
        is_file = mapped.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        if not is_file:
            mapped.seek(max(file.size_bytes - len(_END_OF_STREAM), 0))
            if mapped.read() != _END_OF_STREAM:
                raise pa.ArrowInvalid("neither an Arrow file nor a whole Arrow stream")
        mapped.seek(0)
        row = 0
        with (pa.ipc.open_file if is_file else pa.ipc.open_stream)(mapped) as reader:
            count = reader.num_record_batches if is_file else WHOLE
            for index in range(count):
                try:
                    batch = reader.get_batch(index) if is_file else reader.read_next_batch()
                except StopIteration:
                    return
                yield row, batch
                row += batch.num_rows


def _take_column(file: TextFile, batch: pa.RecordBatch, text_field: str) -> Iterator[bytes | None]:
    """Yield the column's values as bytes: Arrow promises UTF-8 in text and does not check it."""
    _check_column(file, batch.schema, text_field)
    for start in range(0, batch.num_rows, BATCH_ROWS):
        yield from batch.column(text_field).slice(start, BATCH_ROWS).cast(pa.large_binary()).to_pylist()


def _check_column(file: TextFile, schema: pa.Schema, text_field: str) -> None:
    if text_field not in schema.names:
        fault = f"has no column {text_field!r}, its columns are {', '.join(map(repr, schema.names))[:200]}"
        raise ValueError(f"{file.path}: {fault}: name one with --text-field")
    kind = schema.field(text_field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise ValueError(f"{file.path}: column {text_field!r} is of type {kind}, not of text: name one of text")


@contextlib.contextmanager
def _naming(file: TextFile) -> Iterator[None]:
    """Turn Arrow's faults into a line that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file.path}: cannot be read to its end ({reason}): replace the file") from None
