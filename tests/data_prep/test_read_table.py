"""read_table.py: the documents of a text column, by row groups, and tables that are not what they should be."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from disentangled.data_prep.find_inputs import find_text_files
from disentangled.data_prep.read_table import read_rows, row_group_sizes
from disentangled.data_prep.read_text import WHOLE, BadText
from tests.data_prep.tiny_corpus import make_documents

KINDS = ["a.parquet", "a.arrow", "stream.arrow"]


def write_table(path: Path, texts: list[str | None], kind: pa.DataType | None = None, rows: int = 7) -> Path:
    """Write a table with a column of text in groups (batches) of some rows; an Arrow stream where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": list(range(len(texts))), "text": pa.array(texts, kind or pa.string())})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows)
    else:
        new = pa.ipc.new_stream if path.name.startswith("stream") else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    return path


def read(path: Path, bad_text: BadText | None = None, start: int = 0, stop: int = WHOLE) -> list[tuple[str, int]]:
    [file] = find_text_files([path])
    return [(document.text, document.start_byte) for document in read_rows(file, "text", bad_text, start, stop)]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("name", KINDS)
def test_tables_give_their_texts_and_rows(tmp_path: Path, name: str, kind: pa.DataType):
    documents = make_documents(30)
    assert read(write_table(tmp_path / name, documents, kind)) == [(text, row) for row, text in enumerate(documents)]


def test_white_space_and_line_ends_are_those_of_text_files(tmp_path: Path):
    assert read(write_table(tmp_path / "a.parquet", [" one\r\n\n more\n", ""])) == [("one\n\n more", 0), ("", 1)]


def test_row_groups_are_read_alone(tmp_path: Path):
    documents = make_documents(30)
    path = write_table(tmp_path / "a.parquet", documents)
    [file] = find_text_files([path])
    assert len(row_group_sizes(file)) == 5
    whole = read(path)
    assert [row for group in range(5) for row in read(path, start=group, stop=group + 1)] == whole
    assert read(path, start=1, stop=3) == whole[7:21]


@pytest.mark.parametrize("name", KINDS)
def test_null_and_bytes_that_are_not_utf8_are_named_and_can_be_skipped(tmp_path: Path, name: str):
    # a cast checks; a view of the same buffers does not
    texts = pa.Array.from_buffers(pa.string(), 3, pa.array([b"one", b"tw\xff", None], pa.binary()).buffers())
    path = write_table(tmp_path / name, [])
    table = pa.table({"text": texts})
    if name == "a.parquet":
        pq.write_table(table, path)
    else:
        with (pa.ipc.new_stream if name.startswith("stream") else pa.ipc.new_file)(str(path), table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(ValueError, match=r"row 1, byte 2 of its text, is not UTF-8: .*--on-bad-text skip"):
        read(path)
    bad_text = BadText(skip=True)
    assert read(path, bad_text) == [("one", 0)]
    assert [start for start, _ in bad_text.faults] == [1, 2]
    assert "row 2 holds no text in 'text'" in bad_text.faults[1][1]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_truncated_table_is_refused(tmp_path: Path, name: str, kept: float):
    path = write_table(tmp_path / name, make_documents(60))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else int(kept)])
    with pytest.raises(ValueError, match=rf"{name}: cannot be read to its end \(.*\): replace the file"):
        read(path)


def test_stream_cut_between_batches_is_refused(tmp_path: Path):
    path = write_table(tmp_path / "stream.arrow", make_documents(60))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="nor a whole Arrow stream"):
        read(path)


@pytest.mark.parametrize("name", KINDS)
def test_column_that_is_absent_or_holds_no_text_is_refused(tmp_path: Path, name: str):
    [file] = find_text_files([write_table(tmp_path / name, ["x"])])
    with pytest.raises(ValueError, match=r"has no column 'body', its columns are 'id', 'text': name one with --text-"):
        list(read_rows(file, "body"))
    with pytest.raises(ValueError, match=r"column 'id' is of type int64, not of text"):
        list(read_rows(file, "id"))
