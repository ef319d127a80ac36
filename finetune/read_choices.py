"""Questions with several answers to choose from, as a `datasets.Dataset` of context, choices and the right one.

- rows with the choices in columns (SWAG, COPA, one's own): the first text column is the context; a second one begins
  each choice (SWAG's half sentence), but for COPA, where it says whether cause or effect is asked for and is put in
  words. The label is the number of the choice from 0, or its column's name.
- RACE's folders: a JSON file a passage, with several questions; a `_` in a question takes the option's place.
- CommonsenseQA's lines: {"question": {"stem", "choices": [{"label", "text"}]}, "answerKey"}.
Used by: read_task.py. Tested by tests/finetune/test_choices.py.
Not here: encoding (choices.py).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from disentangled.finetune.read_rows import Row, open_text, parse_object, read_rows
from disentangled.finetune.tasks import Task

COPA_QUESTIONS = {"cause": "What was the cause?", "effect": "What happened as a result?"}
Example = dict[str, Any]


def read_choices(path: Path, task: Task) -> Dataset:
    """Columns: context, choices (list of str, equally many in each example), label (int), place.

    Raises:
        ValueError: a missing column, a label that names no choice, examples with different numbers of choices.
    """
    read = {"race": _read_race, "commonsenseqa": _read_commonsenseqa}.get(task.reader)
    rows = list(read(path) if read else (_from_columns(row, task) for row in read_rows(path, task.positions)))
    for row in rows:
        if len(row["choices"]) != len(rows[0]["choices"]) or len(row["choices"]) < 2:
            raise ValueError(
                f"{row['place']}: {len(row['choices'])} choices, {len(rows[0]['choices'])} at {rows[0]['place']}: "
                "there must be two or more, equally many in each example"
            )
    return Dataset.from_list(rows)


def _from_columns(row: Row, task: Task) -> Example:
    context, *rest = [row.text(column) for column in task.text_columns]
    listed = row.value(task.choice_columns[0]) if len(task.choice_columns) == 1 else None
    if listed is not None and not isinstance(listed, list):
        raise ValueError(f"{row.place}: column {task.choice_columns[0]!r} holds {listed!r}: it must be a list")
    choices = [str(text) for text in listed] if listed is not None else [row.text(name) for name in task.choice_columns]
    if task.name == "copa":
        context = f"{context} {_in_words(row)}"
    elif rest:
        choices = [" ".join([*rest, text]) for text in choices]
    label = row.text(task.label_column)
    if label in task.choice_columns:
        label = str(task.choice_columns.index(label))
    return _example(context, choices, label, row.place)


def _in_words(row: Row) -> str:
    asked = row.text("question")
    if asked not in COPA_QUESTIONS:
        raise ValueError(f"{row.place}: question {asked!r} is neither 'cause' nor 'effect': mend it")
    return COPA_QUESTIONS[asked]


def _read_race(path: Path) -> Iterator[Example]:
    for file_path in sorted(path.rglob("*.txt")):
        with open_text(file_path) as file:
            row = Row(str(file_path), parse_object(str(file_path), file.read()))
        columns = (row.value("questions"), row.value("options"), row.value("answers"))
        for question, options, answer in zip(*columns, strict=True):
            texts = [question.replace("_", option) if "_" in question else f"{question} {option}" for option in options]
            yield _example(row.text("article"), texts, _letter(answer), row.place)


def _read_commonsenseqa(path: Path) -> Iterator[Example]:
    for row in read_rows(path):
        question = row.value("question")
        choices = question.get("choices") if isinstance(question, dict) else None
        if not choices or "stem" not in question:
            raise ValueError(f"{row.place}: 'question' has no stem and choices: write it as CommonsenseQA does")
        letters = [choice["label"] for choice in choices]
        answer = row.text("answerKey")
        label = str(letters.index(answer)) if answer in letters else answer
        yield _example(question["stem"], [choice["text"] for choice in choices], label, row.place)


def _letter(answer: str) -> str:
    return str("ABCDEFGH".find(answer))


def _example(context: str, choices: list[str], label: str, place: str) -> Example:
    if not label.isdecimal() or int(label) >= len(choices):
        raise ValueError(f"{place}: label {label!r} names none of its {len(choices)} choices: count them from 0")
    return {"context": context, "choices": choices, "label": int(label), "place": place}
