"""read_unit.py and read_part.py: the documents that are left, and an account of the others in their order."""

import json
from pathlib import Path

import pytest

from disentangled.data_prep.clean import CleaningRules
from disentangled.data_prep.find_inputs import find_text_files
from disentangled.data_prep.read_unit import DUPLICATE, Rejects, Repeat, read_unit
from disentangled.data_prep.work_units import Unit, plan_units
from tests.data_prep.tiny_corpus import write_bytes, write_jsonl


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    write_bytes(tmp_path / "a.txt", b"one\n\n\xff\n\nthree\n\nsix six six\n\n\xfe")
    write_jsonl(tmp_path / "b.jsonl", ["seven", "x"])
    [unit] = plan_units([("de", find_text_files([tmp_path]))], 10_000)
    return unit


def test_documents_are_cleaned_and_the_others_accounted_for_in_order(unit: Unit):
    rejects = Rejects("de")
    first = Repeat(DUPLICATE, "0.txt", 7, 0)
    rules = CleaningRules(min_characters=3, max_characters=10)
    documents = list(read_unit(unit, "text", True, rules, {(0, 8, 0): first, (1, 500, 0): first}, rejects))
    assert [(document.text, document.place) for document in documents] == [("one", (0, 0, 0)), ("seven", (1, 0, 0))]
    assert dict(rejects.reasons) == {"bad text": 2, "duplicate": 1, "too long": 1, "too short": 1}
    rows = [json.loads(line) for line in rejects.encode().splitlines()]
    assert [(row["file"], row["doc"], row["reason"]) for row in rows] == [
        ("a.txt", 5, "bad text"), ("a.txt", 8, "duplicate"), ("a.txt", 15, "too long"), ("a.txt", 28, "bad text"),
        ("b.jsonl", 27, "too short"),
    ]  # fmt: skip
    assert [row["repeats"] for row in rows if "repeats" in row] == [{"file": "0.txt", "doc": 7}]
    assert (rows[0]["source"], rows[0]["detail"], rows[1]["detail"]) == ("de", "byte 5 (0xff) is not UTF-8", "three")


def test_long_documents_are_cut_into_pieces_of_one_place(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", ["short", "line one\nline two\n\nline three\nx"])
    [unit] = plan_units([("de", find_text_files([tmp_path]))], 10_000)
    rejects = Rejects("de")
    rules = CleaningRules(split_documents=18, min_characters=2)
    documents = list(read_unit(unit, "text", False, rules, {(0, 27, 1): Repeat(DUPLICATE, "b", 3, 2)}, rejects))
    assert [(document.text, document.place) for document in documents] == [
        ("short", (0, 0, 0)), ("line one\nline two", (0, 27, 0)),
    ]  # fmt: skip
    assert dict(rejects.changes) == {"cut into several": 1}
    [row] = [json.loads(line) for line in rejects.encode().splitlines()]
    assert (row["doc"], row["piece"], row["repeats"]) == (27, 1, {"file": "b", "doc": 3, "piece": 2})


def test_file_that_has_changed_is_named(unit: Unit):
    unit.parts[1].file.path.write_bytes(b"other")
    with pytest.raises(
        ValueError, match=r"b\.jsonl: changed since the build began \(its size or time differs\): remove"
    ):
        list(read_unit(unit, "text", True, CleaningRules(), {}, Rejects("de")))
