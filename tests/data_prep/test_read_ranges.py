"""read_text.py by byte ranges: any cutting of a file gives every document once, wherever the cuts fall."""

import itertools
import random
from pathlib import Path

import pytest

from disentangled.data_prep import read_text
from disentangled.data_prep.find_inputs import find_text_files
from disentangled.data_prep.read_text import WHOLE, Document, read_documents
from tests.data_prep.tiny_corpus import make_documents, write_bytes, write_jsonl, write_txt


def read_in_ranges(path: Path, cuts: list[int], block_bytes: int = 1 << 20) -> list[list[Document]]:
    """Return what each range between the cuts gives."""
    [file] = find_text_files([path])
    borders = [0, *cuts, WHOLE]
    return [
        list(read_documents(file, start=start, stop=stop, block_bytes=block_bytes))
        for start, stop in itertools.pairwise(borders)
    ]


def join(ranges: list[list[Document]]) -> list[Document]:
    return [document for documents in ranges for document in documents]


@pytest.mark.parametrize("container", [".txt", ".jsonl"])
@pytest.mark.parametrize("range_bytes", [1, 2, 3, 7, 100, 1000, 5000])
def test_ranges_of_any_size_give_the_file(tmp_path: Path, container: str, range_bytes: int):
    documents = make_documents(30)
    path = (write_txt if container == ".txt" else write_jsonl)(tmp_path / f"corpus{container}", documents)
    step = max(range_bytes, path.stat().st_size // 300)
    ranges = read_in_ranges(path, list(range(step, path.stat().st_size, step)))
    assert [document.text for document in join(ranges)] == documents


def test_ranges_cut_at_random_give_what_the_whole_file_gives(tmp_path: Path):
    draw = random.Random(0)
    parts = ["a", "é", "東京", "\U0001f600", " ", "\t", "\n", "\r\n", "\n\n", "\n \n", "\r\n\r\n", "\n\n\n", "word"]
    for _ in range(400):
        text = "\ufeff" * draw.randint(0, 1) + "".join(draw.choices(parts, k=draw.randint(0, 40)))
        path = write_bytes(tmp_path / "corpus.txt", text.encode())
        [whole] = read_in_ranges(path, [])
        size = path.stat().st_size
        every_byte = list(range(1, size))
        some = sorted(draw.sample(every_byte, min(3, len(every_byte))))
        assert join(read_in_ranges(path, every_byte)) == whole, text
        assert join(read_in_ranges(path, some, block_bytes=draw.randint(1, 9))) == whole, (text, some)


def test_range_that_starts_inside_a_character_leaves_it_to_the_range_before(tmp_path: Path):
    content = "東京 one\n\n大阪 two\n\n京都 three".encode()
    path = write_bytes(tmp_path / "corpus.txt", content)
    for inside in (1, 2, content.index("阪".encode()) + 1, content.index("都".encode()) + 2):
        first, second = read_in_ranges(path, [inside])
        assert [document.text for document in [*first, *second]] == ["東京 one", "大阪 two", "京都 three"]
        assert content[inside] & 0xC0 == 0x80, "the cut is inside a character"


def test_document_longer_than_ranges_belongs_to_one(tmp_path: Path):
    path = write_bytes(tmp_path / "corpus.txt", b"a\n\n" + b"x" * 1000 + b"\n\nb")
    ranges = read_in_ranges(path, list(range(100, 1000, 100)))
    assert [[document.start_byte for document in documents] for documents in ranges] == [[0, 3], *[[]] * 8, [1005]]


def test_bad_byte_is_named_by_one_range_alone(tmp_path: Path):
    path = write_bytes(tmp_path / "corpus.txt", b"one\n\ntw\xffo\n\nthree")
    [file] = find_text_files([path])
    for cut in range(1, 17):
        faults = 0
        for start, stop in ((0, cut), (cut, WHOLE)):
            try:
                list(read_documents(file, start=start, stop=stop))
            except ValueError as error:
                assert "byte 7 (0xff) is not UTF-8" in str(error)
                faults += 1
        assert faults == 1, cut


def test_range_reads_its_own_part_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_txt(tmp_path / "corpus.txt", make_documents(2000))
    [file] = find_text_files([path])
    seen: list[int] = []
    read_blocks = read_text._read_blocks

    def count_blocks(*arguments):
        for block in read_blocks(*arguments):
            seen.append(len(block))
            yield block

    monkeypatch.setattr(read_text, "_read_blocks", count_blocks)
    assert list(read_documents(file, start=50_000, stop=60_000, block_bytes=1000))
    assert 10_000 <= sum(seen) <= 12_000
