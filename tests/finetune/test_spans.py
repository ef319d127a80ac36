"""Questions and answers: windows cover all of a text, a window's span gives back the answer, none beats a bad span."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from disentangled.finetune.read_squad import read_record, read_squad
from disentangled.finetune.spans import Spans, find_pieces
from tests.finetune.tiny_tasks import WORDS, write_rows


@pytest.fixture(scope="module")
def tokenizer(pretrained: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(pretrained)


def question(context: str, answer: str, **changes: Any) -> dict[str, Any]:
    """A question whose answer is whole words of its context."""
    start = f" {context} ".index(f" {answer} ")
    row = {"id": "q", "question": WORDS[3], "context": context, "answers": [answer], "starts": [start]}
    return row | {"candidates": [], "place": "file, question q"} | changes


def write_squad(path: Path, *questions: dict[str, Any], context: str = "in 1973 oil rose") -> Path:
    content = {"data": [{"paragraphs": [{"context": context, "qas": list(questions)}]}]}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_windows_cover_the_text_and_find_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    context = " ".join(WORDS[:60])
    examples = Dataset.from_list(
        [question(context, f"{word} {WORDS[index + 1]}") for index, word in enumerate(WORDS[:59])]
    )
    encoded = Spans(False).encode(examples, tokenizer, 40)
    seen: dict[int, set[int]] = {}
    learnt = set()
    for row in encoded:
        assert len(row["input_ids"]) <= 40
        inside = [span for span in row["spans"] if span[0] >= 0]
        seen.setdefault(row["example"], set()).update(*(range(*span) for span in inside))
        if row["end_positions"]:
            first, last = row["spans"][row["start_positions"]], row["spans"][row["end_positions"]]
            example = examples[row["example"]]
            assert context[first[0] : last[1]].strip() == example["answers"][0]
            learnt.add(row["example"])
    letters = {index for index, letter in enumerate(context) if letter != " "}
    assert all(letters <= characters for characters in seen.values()) and len(seen) == 59
    assert learnt == set(range(59))


def test_library_that_loses_windows_is_refused(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tokenizers 0.23.1 and 0.23.2, which stop after a few windows."""
    whole = type(tokenizer).__call__

    def first_two(self: PreTrainedTokenizerBase, *texts: Any, **keywords: Any) -> dict[str, Any]:
        return {name: rows[:2] for name, rows in whole(self, *texts, **keywords).items()}

    examples = Dataset.from_list([question(" ".join(WORDS[:5]), WORDS[1])])
    assert len(Spans(False).encode(examples, tokenizer, 40)) == 1
    monkeypatch.setattr(type(tokenizer), "__call__", first_two)
    with pytest.raises(ValueError, match=r"^tokenizers \S+ loses windows of long texts.*install another"):
        Spans(False).encode(examples, tokenizer, 40)


def test_decoding_the_gold_positions_gives_the_gold_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    context = " ".join(WORDS[:40])
    examples = Dataset.from_list([question(context, WORDS[index]) for index in range(40)])
    kind = Spans(False)
    encoded = kind.encode(examples, tokenizer, 40)
    width = max(len(row) for row in encoded["input_ids"])
    starts, ends = (np.zeros((len(encoded), width)) for _ in range(2))
    for index, row in enumerate(encoded):
        starts[index, row["start_positions"]] = ends[index, row["end_positions"]] = 9.0
    rows = kind.decode((starts, ends), encoded, examples)
    assert kind.score(rows) == {"f1": 1.0, "exact_match": 1.0}


def test_no_answer_wins_where_it_scores_higher(tokenizer: PreTrainedTokenizerBase) -> None:
    context = " ".join(WORDS[:5])
    examples = Dataset.from_list([question(context, WORDS[0], answers=[], starts=[])])
    encoded = Spans(True).encode(examples, tokenizer, 40)
    scores = np.zeros((1, len(encoded[0]["input_ids"])))
    scores[0, 0] = 1.0
    assert Spans(True).decode((scores, scores), encoded, examples)[0]["prediction"] == ""
    assert Spans(False).decode((scores, scores), encoded, examples)[0]["prediction"] != ""
    assert Spans(True).decode((-scores, -scores), encoded, examples)[0]["prediction"] != ""


def test_candidates_alone_are_looked_at(tokenizer: PreTrainedTokenizerBase) -> None:
    context = " ".join(WORDS[:5])
    end = len(WORDS[0])
    examples = Dataset.from_list([question(context, WORDS[0], candidates=[[0, end]])])
    encoded = Spans(False).encode(examples, tokenizer, 40)
    scores = np.arange(float(len(encoded[0]["input_ids"])))[None]
    assert Spans(False).decode((scores, scores), encoded, examples)[0]["prediction"] == WORDS[0]


def test_spans_that_a_window_cuts_are_not_in_it() -> None:
    pieces = [[-1, -1], [4, 8], [8, 12], [-1, -1]]
    assert find_pieces(pieces, 5, 9) == (1, 2)
    assert find_pieces(pieces, 2, 6) == (0, 0)
    assert find_pieces(pieces, 9, 13) == (0, 0)


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        ([{"text": "oil", "answer_start": 3}], "answer 'oil' is not in its context at 3, where '197' is"),
        ([{"text": "oil", "answer_start": -1}], "is not in its context at -1"),
        ([{"text": "", "answer_start": 0}], "its answer is empty"),
        ([{"text": "oil"}], "the field 'answer_start' is missing"),
        ([{"text": "oil", "answer_start": "8"}], "it must be a int"),
        ([], "it has no answer"),
    ],
)
def test_bad_answers_are_named_with_their_question(tmp_path: Path, answers: list[Any], fault: str) -> None:
    path = write_squad(tmp_path / "a.json", {"id": "q7", "question": "why?", "answers": answers})
    with pytest.raises(ValueError) as caught:
        read_squad(path, has_unanswerable=False)
    assert str(caught.value).startswith(f"{path}, question q7: ") and fault in str(caught.value)


def test_unanswerable_questions_are_read(tmp_path: Path) -> None:
    qas = {"id": "q", "question": "why?", "answers": [{"text": "oil", "answer_start": 8}], "is_impossible": True}
    assert read_squad(write_squad(tmp_path / "a.json", qas), has_unanswerable=True)["answers"] == [[]]


def test_entities_of_record_include_their_last_character(tmp_path: Path) -> None:
    entities = [{"start": 8, "end": 10}, {"start": 3, "end": 6}]
    query = {"query": "@placeholder rose", "answers": [{"text": "oil", "start": 8, "end": 10}], "idx": {"query": 5}}
    row = {"passage": {"text": "in 1973 oil rose", "entities": entities}, "qas": [query]}
    (read,) = read_record(write_rows(tmp_path / "a.jsonl", [row]))
    assert read["candidates"] == [[3, 7], [8, 11]]
    assert (read["id"], read["answers"]) == ("5", ["oil"])
