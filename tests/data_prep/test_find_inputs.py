"""find_inputs.py: files, folders and globs, in an order and under names that do not depend on where they lie."""

from pathlib import Path

import pytest

from disentangled.data_prep.find_inputs import find_grouped_files, find_text_files
from tests.data_prep.tiny_corpus import write_bytes


def test_folder_gives_its_text_files_in_order(tmp_path: Path):
    for name in ["b.txt", "a.jsonl.gz", "deep/er/c.TXT.zst", "a.csv", "notes.md", ".hidden.txt", ".git/d.txt", "x.gz"]:
        write_bytes(tmp_path / "in" / name, b"x")
    files = find_text_files([tmp_path / "in"])
    assert [file.name for file in files] == ["a.jsonl.gz", "b.txt", "deep/er/c.TXT.zst"]
    assert [(file.container, file.compression) for file in files] == [
        (".jsonl", "gzip"),
        (".txt", None),
        (".txt", "zstd"),
    ]


def test_names_do_not_depend_on_where_the_inputs_lie_or_their_order(tmp_path: Path):
    for place in ("here", "there"):
        for name in ("two/x.txt", "one/x.txt", "one/y.txt"):
            write_bytes(tmp_path / place / name, b"x")
    here = find_text_files([tmp_path / "here/two/x.txt", tmp_path / "here/one"])
    there = find_text_files([tmp_path / "there/one", tmp_path / "there/two"])
    assert [file.name for file in here] == [file.name for file in there] == ["one/x.txt", "one/y.txt", "two/x.txt"]


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["absent.txt"], r"absent\.txt: no such file or folder: check --input"),
        (["empty"], r"empty: no text file in this folder: inputs are \.txt or \.jsonl"),
        (["a.csv"], r"a\.csv: unknown kind of file: inputs are \.txt or \.jsonl"),
        (["a.txt", "empty/../a.txt"], r"a\.txt: named twice"),
        (["a.txt", "."], r"a\.txt: named twice"),
    ],
)
def test_inputs_that_cannot_be_read_are_refused(tmp_path: Path, names: list[str], fault: str):
    (tmp_path / "empty").mkdir()
    write_bytes(tmp_path / "a.csv", b"x")
    write_bytes(tmp_path / "a.txt", b"x")
    with pytest.raises(ValueError, match=fault):
        find_text_files([tmp_path / name for name in names])


def test_globs_give_the_known_files_that_match(tmp_path: Path):
    for name in ["de/a.txt", "de/b.txt.xz", "de/notes.md", "fr/a.parquet", "fr/deep/b.arrow", "fr/.c.txt", "[x]/a.txt"]:
        write_bytes(tmp_path / name, b"x")

    def names(*patterns: str) -> list[str]:
        files = find_text_files([tmp_path / pattern for pattern in patterns])
        return [file.path.relative_to(tmp_path).as_posix() for file in files]

    assert names("de/*") == ["de/a.txt", "de/b.txt.xz"]
    assert names("*/a.*", "de/b*") == ["[x]/a.txt", "de/a.txt", "de/b.txt.xz", "fr/a.parquet"]
    assert names("f?/**") == ["fr/a.parquet", "fr/deep/b.arrow"]
    # a path that exists is taken as it is, whatever it looks like
    assert names("[x]/a.txt") == ["[x]/a.txt"]
    with pytest.raises(ValueError, match=r"zh/\*: matches no text file: inputs are"):
        names("zh/*")


def test_groups_share_one_common_folder_and_no_file(tmp_path: Path):
    for name in ("de/a.txt", "fr/a.txt"):
        write_bytes(tmp_path / name, b"x")
    groups = find_grouped_files([[tmp_path / "fr"], [tmp_path / "de"]])
    assert [[file.name for file in group] for group in groups] == [["fr/a.txt"], ["de/a.txt"]]
    with pytest.raises(ValueError, match=r"de/a\.txt: named twice"):
        find_grouped_files([[tmp_path / "de"], [tmp_path / "de/a.txt"]])
