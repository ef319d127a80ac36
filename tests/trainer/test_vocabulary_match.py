"""Old rows for new tokens. The models are written by hand, so that every row is known."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from disentangled.trainer.hf_tokenizer import PieceKind, SentencePieceModel
from disentangled.trainer.vocabulary_match import match_vocabularies, read_tokenizer, same_vocabulary
from tests.trainer.published_folders import other_tokenizer

SPECIALS = (
    ("[PAD]", PieceKind.CONTROL),
    ("[CLS]", PieceKind.CONTROL),
    ("[SEP]", PieceKind.CONTROL),
    ("[UNK]", PieceKind.UNKNOWN),
)
WIDTH = 3


def make_model(*pieces: str) -> SentencePieceModel:
    """A unigram model with these pieces after the special tokens; earlier ones are likelier. `<0x..>` are bytes."""
    kinds = [PieceKind.BYTE if piece.startswith("<0x") else PieceKind.NORMAL for piece in pieces]
    return SentencePieceModel(
        pieces=tuple(piece for piece, _ in SPECIALS) + pieces,
        scores=(0.0, 0.0, 0.0, 0.0, *(-1.0 - number for number in range(len(pieces)))),
        kinds=tuple(kind for _, kind in SPECIALS) + tuple(kinds),
        model_type=1,
        byte_fallback=False,
        space_is_suffix=False,
        normalizer_name="",
        charsmap=b"",
        add_dummy_prefix=True,
        remove_extra_whitespaces=True,
        escape_whitespaces=True,
    )


OLD = make_model("\u2581the", "\u2581he", "llo", "the", "a", "<0x41>")  # ids 4 to 9, [MASK] 10, two rows of padding
NEW = make_model("a", "\u2581hello", "\u2581the", "xyz", "<0x41>", "<0x42>", "A")
OLD_TABLE = torch.arange(13.0)[:, None].expand(13, WIDTH) * 10
INITIAL = -torch.arange(1.0, 17.0)[:, None].expand(16, WIDTH)


def test_each_token_has_the_rows_of_its_text() -> None:
    match = match_vocabularies(NEW, OLD)
    carried = match.carry(OLD_TABLE, INITIAL)
    assert carried.shape == (16, WIDTH)
    assert carried[:, 0].tolist() == [
        *(0, 10, 20, 30),  # special tokens by their role
        80,  # a
        (50 + 60) / 2,  # he + llo, the word's space included
        40,  # the as a word, not "the" inside one
        -8,  # xyz: no pieces for it
        90,  # byte 41 is the old byte 41
        -10,  # no such byte
        -11,  # the letter A is not byte 41
        100,  # [MASK] follows the last piece in both
        *(-13, -14, -15, -16),  # padding
    ]
    assert (match.num_tokens, match.num_found, match.num_composed) == (12, 8, 1)
    assert match.describe() == "8 of 12 tokens found, 1 the mean of the pieces of their text, 3 initialised"


def test_rows_of_equal_pieces_are_copied_to_the_bit() -> None:
    table, initial = torch.randn(13, 5), torch.randn(16, 5)
    carried = match_vocabularies(NEW, OLD).carry(table, initial)
    assert torch.equal(carried[[0, 1, 2, 3, 4, 6, 8, 11]], table[[0, 1, 2, 3, 8, 4, 9, 10]])
    assert torch.equal(carried[[7, 9, 10, 12, 13, 14, 15]], initial[[7, 9, 10, 12, 13, 14, 15]])
    bias = match_vocabularies(NEW, OLD).carry(table[:, 0], initial[:, 0])
    assert torch.equal(bias, carried[:, 0])


def test_piece_of_text_that_looks_like_a_byte_is_none() -> None:
    text = replace(NEW, kinds=tuple(PieceKind.NORMAL if kind == PieceKind.BYTE else kind for kind in NEW.kinds))
    match = match_vocabularies(text, OLD)
    assert match.carry(OLD_TABLE, INITIAL)[8, 0] == -9
    assert (match.num_found, match.num_composed) == (7, 1)


def test_same_vocabulary_keeps_padding_rows_where_both_have_them() -> None:
    table, initial = torch.randn(13, 5), torch.randn(16, 5)
    match = same_vocabulary(num_tokens=11, num_rows=13)
    assert torch.equal(match.carry(table, initial), torch.cat([table, initial[13:]]))
    assert match.describe() == "all 11 tokens found"


def test_table_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"embeddings are 5 wide, the recipe's 4: set model.hidden_size=5"):
        same_vocabulary(11, 13).carry(torch.zeros(13, 5), torch.zeros(16, 4))


def test_file_that_is_no_deberta_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spm.model"
    with pytest.raises(ValueError, match=r"spm.model cannot be read \(No such file"):
        read_tokenizer(path)
    for content in (b"", b"no model", other_tokenizer().replace(b"[CLS]", b"<cls>")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^tokenizer .*spm.model (is no SentencePiece|does not have DeBERTa's)"):
            read_tokenizer(path)
