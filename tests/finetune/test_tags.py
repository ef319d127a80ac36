"""Tags: the first piece of a word carries its tag, whatever the words are, and long sentences lose nothing."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from disentangled.finetune.read_conll import read_conll
from disentangled.finetune.tags import IGNORED, Tags, find_first_pieces
from tests.finetune.tiny_tasks import WORDS

LABELS = ("B-LOC", "I-LOC", "O")
ODD = ["\u6771\u4eac", "\u200b", "w" * 90, "\u00a0", "f\u00eate", "\U0001f600", "end"]


@pytest.fixture(scope="module")
def tokenizer(pretrained: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(pretrained)


def as_dataset(words: list[str], tags: list[str]) -> Dataset:
    return Dataset.from_list([{"words": words, "label": tags, "place": "file:1"}])


def test_first_pieces_carry_the_tags(tokenizer: PreTrainedTokenizerBase) -> None:
    words, tags = WORDS[:4], ["B-LOC", "I-LOC", "O", "B-LOC"]
    (row,) = Tags(LABELS).encode(as_dataset(words, tags), tokenizer, 64)
    counts = [len(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in words]
    expected = [IGNORED]
    for tag, count in zip(tags, counts, strict=True):
        expected += [LABELS.index(tag)] + [IGNORED] * (count - 1)
    assert row["labels"] == [*expected, IGNORED]
    assert max(counts) > 1


@pytest.mark.parametrize("max_length_tokens", [16, 64])
def test_long_sentences_and_odd_words_lose_nothing(tokenizer: PreTrainedTokenizerBase, max_length_tokens: int) -> None:
    words = [*ODD, *WORDS[:80], *ODD]
    tags = [LABELS[index % 3] for index in range(len(words))]
    examples, kind = as_dataset(words, tags), Tags(LABELS)
    encoded = kind.encode(examples, tokenizer, max_length_tokens)
    assert all(len(row) <= max_length_tokens for row in encoded["input_ids"])
    width = max(map(len, encoded["input_ids"]))
    logits = np.zeros((len(encoded), width, 3))
    for index, row in enumerate(encoded["labels"]):
        for position, label in enumerate(row):
            if label != IGNORED:
                logits[index, position, label] = 1.0
    (decoded,) = kind.decode(logits, encoded, examples)
    without_pieces = {index for index, word in enumerate(words) if word in ("\u200b", "\u00a0")}
    for index, (gold, found) in enumerate(zip(tags, decoded["prediction"], strict=True)):
        assert found == ("O" if index in without_pieces else gold), words[index]


def test_a_piece_with_a_space_before_it_belongs_to_the_word_behind() -> None:
    # "ab c": pieces "a", "b", " c"
    assert find_first_pieces(["ab", "c"], [(0, 0), (0, 1), (1, 2), (2, 4), (0, 0)], [1, 0, 0, 0, 1]) == {0: 1, 1: 3}


def test_sentences_are_read_from_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(
        "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\nNew York\tX\tB-LOC\n", encoding="utf-8"
    )
    read = read_conll(path)
    assert read["words"] == [["EU", "rejects"], ["New York"]]
    assert read["label"] == [["B-ORG", "O"], ["B-LOC"]]
    assert read["place"] == [f"{path}:3", f"{path}:7"]


def test_a_line_without_a_tag_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("EU B-ORG\nrejects\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.txt:2: 'rejects' is no word and tag"):
        read_conll(path)
