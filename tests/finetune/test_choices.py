"""Choices from every form they come in: columns, a list, COPA, SWAG, RACE, CommonsenseQA."""

import json
from pathlib import Path
from typing import Any

import pytest

from disentangled.finetune.options import FinetuneOptions, resolve_task
from disentangled.finetune.read_choices import read_choices
from disentangled.finetune.tasks import Task, find_task
from tests.finetune.tiny_tasks import write_rows


def own(*choice_columns: str) -> Task:
    files = (Path("a.jsonl"),)
    columns = {"text_columns": ("text",), "choice_columns": choice_columns}
    return resolve_task(FinetuneOptions("choice", "m", Path("o"), train=files, validation=files, **columns))


def only(path: Path, task: Task) -> dict[str, Any]:
    (row,) = read_choices(path, task)
    return row


def test_columns_and_lists_are_the_same(tmp_path: Path) -> None:
    row = {"text": "why?", "one": "a", "two": "b", "both": ["a", "b"], "label": "two"}
    columns = only(write_rows(tmp_path / "a.jsonl", [row]), own("one", "two"))
    assert (columns["context"], columns["choices"], columns["label"]) == ("why?", ["a", "b"], 1)
    assert only(write_rows(tmp_path / "a.jsonl", [row | {"label": 1}]), own("both")) == columns


def test_swag_begins_each_choice_with_the_half_sentence(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    header = ",sent1,sent2,ending0,ending1,ending2,ending3,label"
    path.write_text(f"{header}\n0,He sits.,He,runs.,eats.,naps.,goes.,2\n", encoding="utf-8")
    row = only(path, find_task("swag"))
    assert (row["context"], row["label"]) == ("He sits.", 2)
    assert row["choices"] == ["He runs.", "He eats.", "He naps.", "He goes."]


def test_copa_asks_in_words(tmp_path: Path) -> None:
    fields = {"premise": "It fell.", "choice1": "Wind.", "choice2": "Sun.", "question": "cause", "label": 0, "idx": 0}
    row = only(write_rows(tmp_path / "a.jsonl", [fields]), find_task("copa"))
    assert (row["context"], row["choices"]) == ("It fell. What was the cause?", ["Wind.", "Sun."])


def test_race_puts_options_into_gaps(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "high"
    folder.mkdir(parents=True)
    content = {
        "article": "Text.",
        "questions": ["It is _ .", "Which?"],
        "options": [["a", "b", "c", "d"], ["e", "f", "g", "h"]],
        "answers": ["D", "A"],
    }
    (folder / "1.txt").write_text(json.dumps(content), encoding="utf-8")
    rows = list(read_choices(tmp_path / "train", find_task("race")))
    assert [row["label"] for row in rows] == [3, 0]
    assert rows[0]["choices"][1] == "It is b ." and rows[1]["choices"][1] == "Which? f"


def test_commonsenseqa_is_read_by_letters(tmp_path: Path) -> None:
    choices = [{"label": "A", "text": "bank"}, {"label": "B", "text": "mall"}]
    fields = {"answerKey": "B", "question": {"stem": "Where?", "choices": choices}}
    row = only(write_rows(tmp_path / "a.jsonl", [fields]), find_task("commonsenseqa"))
    assert (row["context"], row["choices"], row["label"]) == ("Where?", ["bank", "mall"], 1)


TWO = {"text": "x", "both": ["a", "b"], "label": 0}


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([TWO | {"label": 2}], ":1: label '2' names none of its 2 choices"),
        ([TWO | {"label": -1}], ":1: label '-1' names none"),
        ([TWO | {"both": "a"}], ":1: column 'both' holds 'a': it must be a list"),
        ([TWO, TWO | {"both": ["a"]}], ":2: 1 choices, 2 at"),
    ],
)
def test_bad_choices_are_named_with_their_line(tmp_path: Path, rows: list[dict[str, Any]], fault: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_choices(write_rows(tmp_path / "a.jsonl", rows), own("both"))
    assert fault in str(caught.value)
