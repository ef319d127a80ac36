"""work_units.py: every byte of the inputs once, in order, in units of the size asked for."""

from pathlib import Path

import pytest

from disentangled.data_prep.find_inputs import find_text_files
from disentangled.data_prep.read_text import WHOLE
from disentangled.data_prep.work_units import Unit, plan_units
from tests.data_prep.test_read_table import write_table
from tests.data_prep.tiny_corpus import make_documents, write_bytes


def cut(folder: Path, range_bytes: int) -> list[Unit]:
    return plan_units([("text", find_text_files([folder]))], range_bytes)


def test_large_file_gives_many_units_and_small_files_share_one(tmp_path: Path):
    write_bytes(tmp_path / "a.txt", b"x" * 250)
    for name in "bcdef":
        write_bytes(tmp_path / f"{name}.txt", b"x" * 20)
    units = cut(tmp_path, 100)
    found = [[(part.file.name, part.start, part.stop) for part in unit.parts] for unit in units]
    assert found == [
        [("a.txt", 0, 100)],
        [("a.txt", 100, 200)],
        [("a.txt", 200, WHOLE), ("b.txt", 0, WHOLE), ("c.txt", 0, WHOLE)],
        [("d.txt", 0, WHOLE), ("e.txt", 0, WHOLE), ("f.txt", 0, WHOLE)],
    ]
    assert [unit.size_bytes for unit in units] == [100, 100, 90, 60]


@pytest.mark.parametrize("range_bytes", [1, 7, 99, 100, 101, 1000])
def test_ranges_cover_every_byte_once(tmp_path: Path, range_bytes: int):
    for size in (0, 1, 99, 100, 101, 500):
        write_bytes(tmp_path / f"{size}.txt", b"x" * size)
    parts = [part for unit in cut(tmp_path, range_bytes) for part in unit.parts]
    for size in (1, 99, 100, 101, 500):
        ranges = [(part.start, min(part.stop, size)) for part in parts if part.file.name == f"{size}.txt"]
        assert [byte for start, stop in ranges for byte in range(start, stop)] == list(range(size))


def test_archive_is_one_part_and_row_groups_are_parts(tmp_path: Path):
    write_bytes(tmp_path / "a.txt.xz", b"x y z " * 10_000)
    write_table(tmp_path / "b.parquet", make_documents(21), rows=7)
    write_table(tmp_path / "c.arrow", make_documents(21), rows=7)
    parts = [(part.file.name, part.start, part.stop) for unit in cut(tmp_path, 10) for part in unit.parts]
    groups = [("b.parquet", group, group + 1) for group in range(3)]
    assert parts == [("a.txt.xz", 0, WHOLE), *groups, ("c.arrow", 0, WHOLE)]


def test_units_belong_to_one_source_and_are_counted_within_it(tmp_path: Path):
    for name in ("a", "b"):
        write_bytes(tmp_path / f"{name}.txt", b"x" * 25)
    [first, second] = find_text_files([tmp_path])
    units = plan_units([("de", [first]), ("fr", [second])], 10)
    assert [(unit.index, unit.source, unit.task) for unit in units] == [
        (0, "de", 0), (1, "de", 1), (2, "de", 2), (3, "fr", 0), (4, "fr", 1), (5, "fr", 2),
    ]  # fmt: skip
    assert [unit.parts[0].file_index for unit in units] == [0, 0, 0, 1, 1, 1]
