"""encode_text.py: where documents are cut, and that batches do not show in the ids."""

import random

import numpy as np
import pytest

from disentangled.data_prep.encode_text import MAX_CHUNK_CHARACTERS, chunk_text, encode_documents
from disentangled.data_prep.tokenizer import Tokenizer
from tests.data_prep.tiny_corpus import make_documents


def test_chunks_of_short_text_are_the_text():
    assert chunk_text("a b\nc") == ["a b\nc"]
    assert chunk_text("x" * MAX_CHUNK_CHARACTERS) == ["x" * MAX_CHUNK_CHARACTERS]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abc def", ["abc", "def"]),
        ("abcd efg", ["abcd", "efg"]),
        ("abcd\nefg", ["abcd", "efg"]),
        ("abc\ndef", ["abc", "def"]),
        ("ab cd ef", ["ab", "cd", "ef"]),
        ("abcdefghij", ["abcd", "efgh", "ij"]),
        ("a bcdefgh", ["a", "bcde", "fgh"]),
        ("abcd ", ["abcd"]),
        ("ab  cd", ["ab ", "cd"]),
    ],
)
def test_chunks_end_at_the_last_blank_that_fits(text: str, expected: list[str]):
    assert chunk_text(text, 4) == expected


def test_chunks_lose_blanks_only_and_keep_to_the_size():
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choices("abc \n東", [5, 5, 5, 2, 1, 1], k=draw.randint(1, 60)))
        size = draw.randint(1, 12)
        chunks = chunk_text(text, size)
        assert all(0 < len(chunk) <= size for chunk in chunks)
        assert "".join("".join(chunks).split()) == "".join(text.split())
        if size > max(map(len, text.split()), default=0):
            assert " ".join(chunks).split() == text.split(), "a word was cut that need not be"


def test_encoding_equals_encoding_each_chunk_alone(tokenizer: Tokenizer):
    documents = make_documents()
    documents += [" ".join(documents), "\u200b", "z" * (MAX_CHUNK_CHARACTERS + 10)]
    tokens, lengths = encode_documents(tokenizer.processor, documents)
    assert len(lengths) == len(documents)
    assert lengths[-2] == 0
    rows = np.split(tokens, np.cumsum(lengths)[:-1])
    for document, row in zip(documents, rows, strict=True):
        assert row.tolist() == [index for chunk in chunk_text(document) for index in tokenizer.processor.encode(chunk)]


def test_encoding_does_not_depend_on_the_batch(tokenizer: Tokenizer):
    documents = make_documents()
    tokens, lengths = encode_documents(tokenizer.processor, documents)
    alone = [encode_documents(tokenizer.processor, [document]) for document in documents]
    assert np.array_equal(np.concatenate([row for row, _ in alone]), tokens)
    assert [int(length[0]) for _, length in alone] == lengths.tolist()


def test_cutting_at_a_blank_leaves_the_ids_of_the_whole_text(tokenizer: Tokenizer):
    text = " ".join(make_documents(20)).replace("\n", " ")
    whole = tokenizer.processor.encode(text)
    cut = [index for chunk in chunk_text(text, 200) for index in tokenizer.processor.encode(chunk)]
    assert cut == whole
