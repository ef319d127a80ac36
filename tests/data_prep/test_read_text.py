"""read_text.py: the same documents from every container, at any block size, and what bad text gets."""

import gzip
import json
import random
from pathlib import Path

import pytest

from disentangled.data_prep import read_text
from disentangled.data_prep.find_inputs import find_text_files
from disentangled.data_prep.read_text import BadText, Document, read_documents
from tests.data_prep.tiny_corpus import compress, make_documents, write_bytes, write_jsonl, write_txt


def read_all(path: Path, bad_text: BadText | None = None, block_bytes: int = 1 << 20, **options: str) -> list[Document]:
    [file] = find_text_files([path])
    return list(read_documents(file, bad_text=bad_text, block_bytes=block_bytes, **options))


def read_texts(path: Path, **options: str) -> list[str]:
    return [document.text for document in read_all(path, **options)]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".xz"])
@pytest.mark.parametrize("container", [".txt", ".jsonl"])
def test_every_container_gives_the_same_documents(tmp_path: Path, container: str, suffix: str):
    documents = make_documents()
    write = write_txt if container == ".txt" else write_jsonl
    assert read_texts(write(tmp_path / f"corpus{container}{suffix}", documents)) == documents


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"one\n\ntwo\n", ["one", "two"]),
        (b"one\n\ntwo", ["one", "two"]),
        (b"one\r\nmore\r\n\r\ntwo\r\n", ["one\nmore", "two"]),
        (b"\n\n \n\t\n  one\n \t\r\n\n\n\ntwo  \n\n", ["one", "two"]),
        (b"one\n indented\n\n  two", ["one\n indented", "two"]),
        (b"\xef\xbb\xbfone\n\ntwo", ["one", "two"]),
        (b"\xef\xbb\xbf\n\none", ["one"]),
        ("één\n\n東京\n\n\U0001f600".encode(), ["één", "東京", "\U0001f600"]),
        (b"one\x0b\n\x0b\ntwo", ["one\x0b\n\x0b\ntwo"]),
        (b"", []),
        (b" \n\n\t", []),
    ],
)
def test_txt_documents_lie_between_blank_lines(tmp_path: Path, content: bytes, expected: list[str]):
    assert read_texts(write_bytes(tmp_path / "corpus.txt", content)) == expected


def test_jsonl_rows_give_their_stripped_text(tmp_path: Path):
    rows = ['{"text": " one\\r\\n\\n more\\n"}', "", '{"n": [1], "text": "\\u6771\\ud83d\\ude00"}', '{"text": ""}']
    path = write_bytes(tmp_path / "corpus.jsonl", "\r\n".join(rows).encode("utf-8-sig"))
    assert read_texts(path) == ["one\n\n more", "東\U0001f600", ""]


def test_jsonl_text_field_can_be_chosen(tmp_path: Path):
    path = write_jsonl(tmp_path / "corpus.jsonl", ["one", "two"], field="body")
    assert read_texts(path, text_field="body") == ["one", "two"]


def test_documents_do_not_depend_on_block_borders(tmp_path: Path):
    draw = random.Random(0)
    parts = ["a", "é", "東京", "\U0001f600", " ", "\t", "\n", "\r\n", "\n\n", "\n \n", "\r\n\r\n", "word"]
    for _ in range(150):
        content = ("\ufeff" * draw.randint(0, 1) + "".join(draw.choices(parts, k=draw.randint(0, 40)))).encode()
        path = write_bytes(tmp_path / "corpus.txt", content)
        whole = read_all(path)
        assert all(read_all(path, block_bytes=size) == whole for size in (1, 2, 3, draw.randint(4, 50)))


@pytest.mark.parametrize("name", ["corpus.txt", "corpus.jsonl", "corpus.txt.zst", "corpus.jsonl.gz"])
def test_start_bytes_find_the_documents_in_the_decompressed_file(tmp_path: Path, name: str):
    documents = make_documents()
    write = write_txt if ".txt" in name else write_jsonl
    path = write(tmp_path / name, documents)
    plain = write(tmp_path / "plain" / name.removesuffix(".zst").removesuffix(".gz"), documents).read_bytes()
    for document in read_all(path, block_bytes=100):
        found = plain[document.start_byte :]
        if ".jsonl" in name:
            assert json.loads(found[: found.index(b"\n")])["text"] == document.text
        else:
            assert found.startswith(document.text.encode())


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz"])
def test_archives_of_several_frames_are_read_to_the_end(tmp_path: Path, suffix: str):
    path = tmp_path / f"corpus.txt{suffix}"
    path.write_bytes(compress(b"one\n\ntw", suffix) + compress(b"o\n\nthree", suffix))
    assert read_texts(path) == ["one", "two", "three"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".xz"])
@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_byte_that_is_not_utf8_is_named_with_its_offset(tmp_path: Path, suffix: str, block_bytes: int):
    path = write_bytes(tmp_path / f"corpus.txt{suffix}", "één\n\n fine \xe9\n\nlast".encode("latin-1"))
    with pytest.raises(ValueError, match=r"corpus\.txt.*: byte 0 \(0xe9\) is not UTF-8: .*--on-bad-text skip$"):
        read_all(path, block_bytes=block_bytes)
    path = write_bytes(tmp_path / f"corpus.txt{suffix}", b"good\n\n  still \xff here\n\nlast")
    with pytest.raises(ValueError, match=r"byte 14 \(0xff\)"):
        read_all(path, block_bytes=block_bytes)


def test_character_cut_at_the_end_of_the_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"byte 4 \(0xe6\) is not UTF-8"):
        read_all(write_bytes(tmp_path / "corpus.txt", "abc 東".encode()[:-1]))


def test_utf16_is_refused_at_its_first_byte(tmp_path: Path):
    with pytest.raises(ValueError, match=r"byte 0 \(0xff\) is not UTF-8"):
        read_all(write_bytes(tmp_path / "corpus.txt", "hello".encode("utf-16")))


@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
def test_skipping_drops_the_bad_document_only_and_counts_it(tmp_path: Path, block_bytes: int):
    path = write_bytes(tmp_path / "corpus.txt", b"one\n\ntw\xffo\xff\nmore\n\nthree\n\n\xfe\n\nfour")
    bad_text = BadText(skip=True)
    assert [document.text for document in read_all(path, bad_text, block_bytes)] == ["one", "three", "four"]
    assert bad_text.faults == [(5, "byte 7 (0xff) is not UTF-8"), (24, "byte 24 (0xfe) is not UTF-8")]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (b'{"text": "x"', r"is not valid JSON \(Expecting ',' delimiter.*\)"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b'["x"]', "is not a JSON object"),
        (b'{"body": "x", "id": 1}', r"has no field 'text', its fields are 'body', 'id' \(--text-field\)"),
        (b'{"text": null}', "holds no text in 'text'"),
        (b'{"text": "ab\\ud800"}', "holds half a surrogate pair at character 2"),
        (b'{"text": "\xff"}', r"byte 28 \(0xff\) is not UTF-8"),
    ],
)
def test_jsonl_row_without_text_is_named_and_can_be_skipped(tmp_path: Path, row: bytes, fault: str):
    path = write_bytes(tmp_path / "corpus.jsonl", b'{"text": "first"}\n' + row + b'\n{"text": "last"}\n')
    with pytest.raises(ValueError, match=fault) as caught:
        read_all(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "byte 18" in str(caught.value) or "byte 28" in str(caught.value)
    bad_text = BadText(skip=True)
    assert [document.text for document in read_all(path, bad_text)] == ["first", "last"]
    assert len(bad_text.faults) == 1


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "plain text"])
def test_damaged_archive_is_refused(tmp_path: Path, suffix: str, damage: str):
    content = compress("\n\n".join(make_documents(400)).encode(), suffix)
    middle = len(content) // 2
    damaged = {
        "truncated": content[:-10],
        "flipped": content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :],
        "plain text": b"no archive at all",
    }
    path = tmp_path / f"corpus.txt{suffix}"
    path.write_bytes(damaged[damage])
    # a flipped byte can come out as text that is not UTF-8 before the archive's checksum is reached
    with pytest.raises(
        ValueError, match=r"corpus\.txt.*: (cannot be read to its end \(.*\): replace|byte \d+ .*UTF-8)"
    ):
        read_all(path)


def test_document_past_the_largest_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(read_text, "MAX_DOCUMENT_BYTES", 1 << 20)
    path = write_bytes(tmp_path / "corpus.txt", b"one\n\n" + b"x\n" * (1 << 20))
    with pytest.raises(ValueError, match="a document of more than 1 MiB starts at byte 5: part documents"):
        read_all(path)


def test_gzip_written_by_gzip_is_read(tmp_path: Path):
    with gzip.open(tmp_path / "corpus.txt.gz", "wt", encoding="utf-8") as file:
        file.write("één\n\ntwo")
    assert read_texts(tmp_path / "corpus.txt.gz") == ["één", "two"]
