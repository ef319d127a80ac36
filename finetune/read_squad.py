"""Questions on a text, in SQuAD's JSON, SuperGLUE's ReCoRD or the JSON of the same: with answers that lie in the text.

SQuAD 1.1 and 2.0 and what is written like them (TyDi QA's gold passages, XQuAD, MLQA):
{"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text", "answer_start"}]}]}]}]}.
ReCoRD, a line a passage: {"passage": {"text", "entities": [{"start", "end"}]}, "qas": [{"idx", "query", "answers"}]};
an entity's end is its last character, and an answer is one of the entities (arXiv 1810.12885).
Used by: read_task.py. Tested by tests/finetune/test_spans.py.
Not here: encoding (spans.py), scores (answer_scores.py).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from disentangled.finetune.read_rows import open_text, parse_object, read_rows

# of every example; `candidates` are [start, end) of the context's entities, empty where any span may be the answer
COLUMNS = ("id", "question", "context", "answers", "starts", "candidates", "place")


def read_squad(path: Path, has_unanswerable: bool) -> Dataset:
    """The questions of a SQuAD file: id, question, context, answers (texts), starts, candidates (none), place.

    Raises:
        ValueError: a missing field, an answer that is not where it is said to be, a question without one.
    """
    with open_text(path) as file:
        content = parse_object(str(path), file.read())
    rows: list[dict[str, Any]] = []
    for context, fields, place in _walk_squad(path, content):
        answers = [] if fields.get("is_impossible") else _get(fields, "answers", list, place)
        row = {
            "id": str(_get(fields, "id", object, place)),
            "question": _get(fields, "question", str, place),
            "context": context,
            "answers": [_get(answer, "text", str, place) for answer in answers],
            "starts": [_get(answer, "answer_start", int, place) for answer in answers],
            "candidates": [],
            "place": place,
        }
        _check_answers(row, has_unanswerable)
        rows.append(row)
    return Dataset.from_list(rows)


def read_record(path: Path) -> Dataset:
    """The queries of a ReCoRD file in SuperGLUE's form, with the passage's entities as candidates.

    Raises:
        ValueError: as `read_squad`.
    """
    rows: list[dict[str, Any]] = []
    for row in read_rows(path):
        passage = _get(row.fields, "passage", dict, row.place)
        text = _get(passage, "text", str, row.place)
        entities = sorted(
            {
                (_get(entity, "start", int, row.place), _get(entity, "end", int, row.place) + 1)
                for entity in _get(passage, "entities", list, row.place)
            }
        )
        for query in _get(row.fields, "qas", list, row.place):
            answers = _get(query, "answers", list, row.place)
            number = query.get("idx", len(rows))
            found = {
                "id": str(number["query"] if isinstance(number, dict) else number),
                "question": _get(query, "query", str, row.place),
                "context": text,
                "answers": [_get(answer, "text", str, row.place) for answer in answers],
                "starts": [_get(answer, "start", int, row.place) for answer in answers],
                "candidates": [list(entity) for entity in entities],
                "place": row.place,
            }
            _check_answers(found, has_unanswerable=False)
            rows.append(found)
    return Dataset.from_list(rows)


def _walk_squad(path: Path, content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(context, question's fields, place) of each question."""
    for article in _get(content, "data", list, str(path)):
        for paragraph in _get(article, "paragraphs", list, str(path)):
            context = _get(paragraph, "context", str, str(path))
            for fields in _get(paragraph, "qas", list, str(path)):
                yield context, fields, f"{path}, question {fields.get('id')}"


def _get(fields: dict[str, Any], name: str, kind: type, place: str) -> Any:
    if not isinstance(fields, dict) or name not in fields:
        raise ValueError(f"{place}: the field {name!r} is missing: write it in SQuAD's form, see docs/finetuning.md")
    if not isinstance(fields[name], kind):
        raise ValueError(f"{place}: the field {name!r} holds {fields[name]!r}: it must be a {kind.__name__}")
    return fields[name]


def _check_answers(row: dict[str, Any], has_unanswerable: bool) -> None:
    """Refuse answers that are not in the context, and none where there must be one."""
    if not row["answers"] and not has_unanswerable:
        raise ValueError(
            f"{row['place']}: it has no answer: use squad2, or --unanswerable for one's own data, or remove it"
        )
    for text, start in zip(row["answers"], row["starts"], strict=True):
        if not text:
            raise ValueError(
                f"{row['place']}: its answer is empty, as in releases that hide them: name a file with answers"
            )
        there = row["context"][start : start + len(text)] if start >= 0 else ""
        if there != text:
            raise ValueError(
                f"{row['place']}: answer {text!r} is not in its context at {start}, where {there!r} is: mend "
                "answer_start, which counts characters"
            )
