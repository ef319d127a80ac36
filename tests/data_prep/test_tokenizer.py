"""tokenizer.py: DeBERTa's layout, what text can never spell, and models that do not fit."""

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece as spm

from disentangled.data_prep.shard_schema import SpecialIds
from disentangled.data_prep.tokenizer import (
    SPECIAL_PIECES,
    Tokenizer,
    load_tokenizer,
    padded_vocab_size,
    parse_tokenizer,
)
from tests.data_prep.tiny_corpus import NUM_PIECES, make_documents

DEBERTA_LAYOUT = {
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "unk_id": 3,
    "pad_piece": "[PAD]",
    "bos_piece": "[CLS]",
    "eos_piece": "[SEP]",
    "unk_piece": "[UNK]",
}


def train_foreign_model(**options: Any) -> bytes:
    model = io.BytesIO()
    lines = [line for document in make_documents() for line in document.split("\n")]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=120, minloglevel=2, **options
    )
    return model.getvalue()


def test_special_ids_are_debertas(tokenizer: Tokenizer):
    assert tokenizer.special_ids == SpecialIds(pad=0, cls=1, sep=2, unk=3, mask=NUM_PIECES)
    assert [tokenizer.processor.id_to_piece(index) for index in range(4)] == list(SPECIAL_PIECES)
    assert tokenizer.num_pieces == NUM_PIECES
    assert tokenizer.vocab_size == 448


@pytest.mark.parametrize(
    ("num_pieces", "expected"), [(62, 64), (63, 64), (64, 128), (2048, 2112), (8000, 8064), (128_000, 128_064)]
)
def test_vocab_size_holds_the_mask_and_is_a_multiple_of_64(num_pieces: int, expected: int):
    assert padded_vocab_size(num_pieces) == expected


@pytest.mark.parametrize("literal", ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "<0x41>", "a [MASK] b[CLS][SEP]"])
def test_text_that_spells_a_special_gives_ordinary_pieces(tokenizer: Tokenizer, literal: str):
    ids = tokenizer.processor.encode(literal)
    specials = tokenizer.special_ids
    assert not {specials.pad, specials.cls, specials.sep, specials.unk, specials.mask} & set(ids)
    assert tokenizer.processor.decode(ids) == literal


def test_byte_fallback_spells_unseen_characters(tokenizer: Tokenizer):
    ids = tokenizer.processor.encode("Ж")
    assert tokenizer.special_ids.unk not in ids
    assert set(ids) & set(tokenizer.byte_ids.tolist())
    assert tokenizer.processor.decode(ids) == "Ж"
    assert len(tokenizer.byte_ids) == 256


def test_normalizer_name_is_read_from_the_model(tokenizer: Tokenizer):
    assert tokenizer.normalizer == "nmt_nfkc"
    model = train_foreign_model(normalization_rule_name="identity", **DEBERTA_LAYOUT)
    assert parse_tokenizer(model, "spm.model").normalizer == "identity"


def test_model_of_debertas_layout_without_byte_fallback_is_accepted():
    tokenizer = parse_tokenizer(train_foreign_model(**DEBERTA_LAYOUT), "spm.model")
    assert tokenizer.special_ids.mask == 120
    assert len(tokenizer.byte_ids) == 0


def test_model_of_another_layout_is_refused():
    with pytest.raises(ValueError, match=r"^my\.model: pieces 0-3 are <unk> <s> </s> .*, not \[PAD\].*spm\.model or"):
        parse_tokenizer(train_foreign_model(), "my.model")


def test_model_that_holds_the_mask_is_refused():
    model = train_foreign_model(user_defined_symbols=["[MASK]"], **DEBERTA_LAYOUT)
    with pytest.raises(ValueError, match=r"\[MASK\] is a piece of the model"):
        parse_tokenizer(model, "my.model")


def test_model_whose_specials_text_can_reach_is_refused():
    # ids 0-2 as user-defined symbols: right names, right places, but "[CLS]" in a document would become id 1
    model = train_foreign_model(
        pad_id=-1, bos_id=-1, eos_id=-1, unk_id=3, unk_piece="[UNK]", user_defined_symbols=["[PAD]", "[CLS]", "[SEP]"]
    )
    with pytest.raises(ValueError, match=r"text that spells \[PAD\] is encoded as the special id"):
        parse_tokenizer(model, "my.model")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\x05abc"])
def test_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "spm.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"spm\.model: not a SentencePiece model"):
        load_tokenizer(path)


def test_absent_model_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"absent\.model: no such tokenizer file"):
        load_tokenizer(tmp_path / "absent.model")
