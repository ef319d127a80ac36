"""Cuts the inputs into units of work: a pure function of the files and their sizes, not of who does the work.

A unit is a list of parts, each a range of one file: bytes of plain text, row groups of .parquet, the whole of any
other file. Large plain files give many units, many small files one. A unit's shards are named by its number within its
source, so the same shards come out of any number of processes.

Used by: build_corpus.py. Tested by: tests/data_prep/test_work_units.py.
Not here: reading (read_part.py), who does which unit (task_pool.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from disentangled.data_prep.find_inputs import TextFile
from disentangled.data_prep.read_table import row_group_sizes
from disentangled.data_prep.read_text import WHOLE

# 4: what text gains by gzip, zstd and xz, roughly; it only decides how many small archives share a unit
_EXPANSION = 4


@dataclass(frozen=True)
class Part:
    """A range of one file: bytes [start, stop) of plain text, row groups of .parquet, else 0 and WHOLE.

    file_index counts all input files. size_bytes is the text to expect.
    """

    file: TextFile
    file_index: int
    start: int
    stop: int
    size_bytes: int


@dataclass(frozen=True)
class Unit:
    """What one process does at a time and commits as one. index counts all units, task those of the source."""

    index: int
    source: str
    task: int
    parts: tuple[Part, ...]

    @property
    def size_bytes(self) -> int:
        """The text to expect."""
        return sum(part.size_bytes for part in self.parts)


def plan_units(groups: Sequence[tuple[str, Sequence[TextFile]]], range_bytes: int) -> list[Unit]:
    """Return the units of all sources, given as (name, files), each of about range_bytes of text at most."""
    units: list[Unit] = []
    file_index = 0
    for source, files in groups:
        filled: list[tuple[Part, ...]] = []
        parts: list[Part] = []
        size_bytes = 0
        for file in files:
            for part in _cut_file(file, file_index, range_bytes):
                if parts and size_bytes + part.size_bytes > range_bytes:
                    filled.append(tuple(parts))
                    parts, size_bytes = [], 0
                parts.append(part)
                size_bytes += part.size_bytes
            file_index += 1
        filled += [tuple(parts)] if parts else []
        units += [Unit(len(units) + task, source, task, filled[task]) for task in range(len(filled))]
    return units


def _cut_file(file: TextFile, file_index: int, range_bytes: int) -> Iterator[Part]:
    """Yield the parts of a file in order."""
    if file.container == ".parquet":
        for group, size_bytes in enumerate(row_group_sizes(file)):
            yield Part(file, file_index, group, group + 1, size_bytes)
    elif file.compression or file.container == ".arrow":
        yield Part(file, file_index, 0, WHOLE, file.size_bytes * (_EXPANSION if file.compression else 1))
    else:
        for start in range(0, file.size_bytes, range_bytes):
            size_bytes = min(range_bytes, file.size_bytes - start)
            # the last range is open: there is no byte after it that it must leave to another
            stop = start + size_bytes if start + size_bytes < file.size_bytes else WHOLE
            yield Part(file, file_index, start, stop, size_bytes)
