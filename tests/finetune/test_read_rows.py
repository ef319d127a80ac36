"""Rows of .tsv, .csv and .jsonl: quotes, line ends, headers, and faults with their line."""

from pathlib import Path

import pytest

from disentangled.finetune.read_rows import read_rows
from disentangled.finetune.read_sequences import read_sequences
from disentangled.finetune.tasks import find_task


def write(path: Path, content: str) -> Path:
    path.write_bytes(content.encode("utf-8"))
    return path


def test_tsv_takes_quotes_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'sentence\tlabel\n"open\t1\nclosed" too\t0\n')
    assert [row.fields for row in read_rows(path)] == [
        {"sentence": '"open', "label": "1"},
        {"sentence": 'closed" too', "label": "0"},
    ]


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "a\u2028b\x85c\x0cd\t1\r\nsecond\t0\n")
    rows = list(read_rows(path, positions=("sentence", "label")))
    assert [row.fields["sentence"] for row in rows] == ["a\u2028b\x85c\x0cd", "second"]
    assert [row.place for row in rows] == [f"{path}:1", f"{path}:2"]
    assert rows[0].fields["label"] == "1"


def test_csv_takes_quoted_line_ends_and_byte_order_marks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\ufefftext,label\n"one, ""two""\nthree",x\nlast,y\n')
    rows = list(read_rows(path))
    assert [row.fields["text"] for row in rows] == ['one, "two"\nthree', "last"]
    assert rows[1].place == f"{path}:4"


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", '{"text": "x"}\n\n[1]\n', "a.jsonl:3: a JSON object is expected"),
        ("a.tsv", "text\tlabel\nx\t1\ny\n", "a.tsv:3: 1 fields where 2 columns are"),
        ("a.csv", 'text,label\nx,"1" 2\n', "a.csv:2: not valid CSV"),
        ("a.parquet", "", "the ending '.parquet' says no format"),
    ],
)
def test_faults_are_named_with_their_line(tmp_path: Path, name: str, content: str, fault: str) -> None:
    with pytest.raises(ValueError) as caught:
        list(read_rows(write(tmp_path / name, content)))
    assert fault in str(caught.value)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"text\n\xff\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        list(read_rows(tmp_path / "a.tsv"))


def test_broken_rows_are_left_out_where_a_release_has_them(tmp_path: Path) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    path = write(tmp_path / "train.tsv", f"{header}1\t2\t3\twhat?\twhy?\t0\n4\t5\t6\tbroken\n")
    broken: list[str] = []
    assert read_sequences(path, find_task("qqp"), broken)["texts"] == [["what?", "why?"]]
    assert broken == [f"{path}:3"]


def test_aliases_of_labels_are_read_as_the_label(tmp_path: Path) -> None:
    path = write(tmp_path / "train-en.tsv", "a\tb\tcontradictory\n")
    assert read_sequences(path, find_task("xnli"), [])["label"] == ["contradiction"]
