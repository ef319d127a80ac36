"""read_unit.py and read_part.py: the documents that are left, and an account of the others in their order."""

import json
from pathlib import Path

import pytest

from disentangled.data_prep.clean import CleaningRules
from disentangled.data_prep.find_inputs import find_text_files
from disentangled.data_prep.read_unit import Rejects, read_unit
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
    rules = CleaningRules(min_characters=3, max_characters=10)
    documents = list(read_unit(unit, "text", True, rules, {(0, 8), (1, 500)}, rejects))
    assert [(document.text, document.place) for document in documents] == [("one", (0, 0)), ("seven", (1, 0))]
    assert dict(rejects.reasons) == {"bad text": 2, "duplicate": 1, "too long": 1, "too short": 1}
    rows = [json.loads(line) for line in rejects.encode().splitlines()]
    assert [(row["file"], row["doc"], row["reason"]) for row in rows] == [
        ("a.txt", 5, "bad text"), ("a.txt", 8, "duplicate"), ("a.txt", 15, "too long"), ("a.txt", 28, "bad text"),
        ("b.jsonl", 27, "too short"),
    ]  # fmt: skip
    assert (rows[0]["source"], rows[0]["detail"], rows[1]["detail"]) == ("de", "byte 5 (0xff) is not UTF-8", "three")


def test_file_that_has_changed_is_named(unit: Unit):
    unit.parts[1].file.path.write_bytes(b"other")
    with pytest.raises(
        ValueError, match=r"b\.jsonl: changed since the build began \(its size or time differs\): remove"
    ):
        list(read_unit(unit, "text", True, CleaningRules(), (), Rejects("de")))
