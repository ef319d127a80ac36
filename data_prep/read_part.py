"""Reads the documents of one part of a unit, whatever its container, and notices a file that changes meanwhile.

Used by: read_unit.py. Tested by: tests/data_prep/test_read_unit.py.
"""

from collections.abc import Iterator

from disentangled.data_prep.find_inputs import TABLE_CONTAINERS, TextFile
from disentangled.data_prep.input_store import stamp_file
from disentangled.data_prep.read_table import read_rows
from disentangled.data_prep.read_text import BadText, Document, read_documents
from disentangled.data_prep.work_units import Part


def read_part(part: Part, text_field: str, bad_text: BadText) -> Iterator[Document]:
    """Yield the part's documents in order; ValueError for what cannot be read and for a file that has changed."""
    read = read_rows if part.file.container in TABLE_CONTAINERS else read_documents
    try:
        yield from read(part.file, text_field, bad_text, part.start, part.stop)
    finally:
        # first of all: a file that was cut meanwhile also looks damaged
        _refuse_changed(part.file)


def _refuse_changed(file: TextFile) -> None:
    try:
        stamp = stamp_file(file.path)
    except FileNotFoundError:
        stamp = None
    if stamp != file.stamp:
        rule = "changed since the build began (its size or time differs)" if stamp else "gone since the build began"
        raise ValueError(f"{file.path}: {rule}: remove the output and build again from inputs that stay as they are")
