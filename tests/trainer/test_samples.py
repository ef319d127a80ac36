"""The demo's sentences: which are shown, and that guesses and marks are the models' own."""

from pathlib import Path

import pytest
import sentencepiece
import torch

from disentangled.data_prep.build_corpus import main as build_corpus
from disentangled.trainer.samples import corrupt_and_judge, find_sentences, guess_pieces, is_prose, word_to_mask
from tests.data_prep.tiny_corpus import make_documents, write_txt
from tests.trainer.tiny_run import Parts, build_parts, tiny_config


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose documents are capitalised sentences of words."""
    folder = tmp_path_factory.mktemp("prose")
    lines = ["\n".join(f"{line.capitalize()}." for line in text.split("\n")) for text in make_documents(200)]
    text = write_txt(folder / "corpus.txt", lines)
    built = build_corpus(["--input", str(text), "--output", str(folder / "shards"), "--train-tokenizer",
                          "--vocab-size", "512", "--validation-fraction", "0.2", "--seed", "1"])  # fmt: skip
    assert built == 0
    return folder / "shards"


@pytest.fixture(scope="module")
def parts(prose: Path) -> Parts:
    return build_parts(tiny_config(prose))


@pytest.fixture(scope="module")
def pieces(prose: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(prose / "spm.model"))


def test_sentences_are_of_the_length_asked_for(prose: Path, parts: Parts, pieces):
    sentences = find_sentences(prose, parts.manifest, pieces, range(10, 24))
    assert len(sentences) == 5
    for sentence in sentences:
        assert 10 <= len(sentence) < 24
        assert is_prose(pieces.decode(sentence).removesuffix("."))
    assert find_sentences(prose, parts.manifest, pieces, range(1, 1)) == []


@pytest.mark.parametrize(
    ("sentence", "is_one"),
    [
        ("The cat sat", True),
        ("\u00c4rzte gibt es, viele", True),
        ("the cat", False),
        ("X = [1, 2]", False),
        ("See 4.1", False),
    ],
)
def test_prose_is_words_only(sentence: str, is_one: bool):
    assert is_prose(sentence) is is_one


def test_masked_word_is_a_whole_one_in_the_second_half(pieces):
    sentence = pieces.encode("a b c d e f g h i j k l")
    assert word_to_mask(sentence, pieces) >= len(sentence) // 2


def test_guesses_are_the_likeliest_allowed_ids(parts: Parts):
    sentence = list(range(10, 20))
    with torch.no_grad():
        parts.generator.lm_predictions["lm_head"].bias.zero_()
        parts.generator.lm_predictions["lm_head"].bias[[0, 407, 477, 507]] += torch.tensor([99.0, 30.0, 40.0, 35.0])
    assert guess_pieces(parts.generator, parts.manifest, sentence, 5) == [477, 507, 407]  # [PAD] is never guessed


def test_marks_fall_on_what_the_discriminator_suspects(parts: Parts, pieces):
    sentence = list(range(300, 330))
    *_, numbers = corrupt_and_judge(parts.generator, parts.discriminator, parts.manifest, pieces, sentence)
    line, _ = corrupt_and_judge(parts.generator, parts.discriminator, parts.manifest, pieces, sentence)
    num_replaced = line.count(">")
    assert num_replaced == len(range(2, len(sentence), 5))  # with that bias the generator always draws piece 477
    assert line.count("*") == num_replaced
    assert f"of the {num_replaced} most suspected" in numbers
