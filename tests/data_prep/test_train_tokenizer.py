"""train_tokenizer.py: the same bytes again, and sizes that the text does not allow."""

import re

import pytest

from disentangled.data_prep.tokenizer import Tokenizer, parse_tokenizer
from disentangled.data_prep.train_tokenizer import TrainingOptions, train_model, train_model_in_child
from tests.data_prep.tiny_corpus import NUM_PIECES, make_documents

LINES = [line for document in make_documents() for line in document.split("\n")]


def suggested_size(num_pieces: int) -> int:
    """Return the size that the error for num_pieces tells the user to take."""
    with pytest.raises(
        ValueError, match=rf"^--vocab-size {num_pieces} is .*: use --vocab-size \d+(,| or more)"
    ) as caught:
        train_model(LINES, TrainingOptions(num_pieces))
    match = re.search(r"use --vocab-size (\d+)", str(caught.value))
    assert match
    return int(match[1])


def test_training_gives_the_same_bytes_again_and_in_a_child(tokenizer: Tokenizer):
    assert train_model(LINES, TrainingOptions(NUM_PIECES)) == tokenizer.model
    assert train_model_in_child(LINES, TrainingOptions(NUM_PIECES)) == tokenizer.model


def test_vocabulary_larger_than_the_text_allows_names_the_largest():
    largest = suggested_size(100_000)
    assert parse_tokenizer(train_model(LINES, TrainingOptions(largest)), "spm.model").num_pieces == largest
    assert suggested_size(largest + 1) == largest


def test_vocabulary_smaller_than_the_characters_names_the_smallest():
    smallest = suggested_size(20)
    assert parse_tokenizer(train_model(LINES, TrainingOptions(smallest)), "spm.model").num_pieces == smallest
    assert suggested_size(smallest - 1) == smallest


def test_error_in_the_child_reaches_the_caller():
    with pytest.raises(ValueError, match="--vocab-size 100000 is more than this text allows"):
        train_model_in_child(LINES, TrainingOptions(100_000))


def test_training_on_nothing_is_refused():
    with pytest.raises(ValueError, match="no text to train a tokenizer on"):
        train_model([], TrainingOptions(NUM_PIECES))


def test_without_byte_fallback_rare_characters_are_unknown():
    lines = [*LINES * 40, "\u00df"]
    plain = parse_tokenizer(train_model(lines, TrainingOptions(120, byte_fallback=False)), "spm.model")
    assert len(plain.byte_ids) == 0
    assert plain.special_ids.unk in plain.processor.encode("\u00df")
    covered = train_model(lines, TrainingOptions(120, byte_fallback=False, character_coverage=1.0))
    whole = parse_tokenizer(covered, "spm.model")
    assert whole.special_ids.unk not in whole.processor.encode("\u00df")
