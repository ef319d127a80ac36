"""tokenizer.json against SentencePiece: `AutoTokenizer` gives the ids that data_prep wrote into the shards.

Where the two differ on real text, the segmentations must have equal scores as far as float32 sums can tell.
SentencePiece adds piece by piece along the chunk, each time to within half a unit in the last place of the running sum;
so within the stretch that differs its sums are off by at most that much a piece, and so is what it takes for the better
path.
"""

import io
import json
import math
import pydoc_data.topics
import sys
import unicodedata
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sentencepiece as spm
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoTokenizer

from disentangled.data_prep.encode_text import chunk_text, encode_documents
from disentangled.data_prep.tokenizer import Tokenizer, parse_tokenizer
from disentangled.data_prep.train_tokenizer import TrainingOptions, train_model
from disentangled.trainer.hf_tokenizer import (
    PieceKind,
    SentencePieceModel,
    build_tokenizer,
    parse_model,
    write_tokenizer_files,
)

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
MAX_LENGTH_TOKENS = 512
# the special tokens' layout, as data_prep trains it
LAYOUT = {
    **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3},
    **{"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
}
TEXTS = {
    "ordinary": "The quick brown fox returns a new tuple, unless it raised ValueError.",
    "nothing": "",
    "only spaces": " \u00a0 \n",
    "spaces around and between": "  for  x in   y: ",
    "lines": "first line\nsecond line\n\n  indented\tby a tab\nlast",
    "no-break and wide spaces": "10\u00a0000 and\u3000more\u2009thin",
    "ligatures": "of\ufb01ce \ufb02ow a\ufb03x \u00bd \u2122 \u2460",
    "full-width letters": "\uff21\uff22\uff23 \uff01 \uff5e",
    "CJK": "\u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd\u3002\ud55c\uad6d\uc5b4",
    "byte pieces": "caf\u00e9 \u0416\u0438\u0437\u043d\u044c \U0001f600\U0001f469\u200d\U0001f4bb",
    "controls": "a\x00b\x07c\x7fd\u00ade\ufefff\u200bg",
    "right to left": "\u0639\u064e\u0631\u064e\u0628\u0650\u064a\u0651 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "composed by NFC first": unicodedata.normalize("NFD", "Ti\u1ebfng Vi\u1ec7t \u01d5 \ud55c\uad6d\uc5b4"),
    "half-width kana with voicing marks": "\uff76\uff9e\uff8a\uff9f\uff77\uff9e",
    "the visible space itself": "\u2581a \u2581b\u2581 c\u2581",
    "a byte piece's name": "a <0x41> b<0xE6>",
    "a long word": "w" * 3000,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """1,000 pieces trained on Python's own documentation."""
    lines = [line for topic in pydoc_data.topics.topics.values() for line in topic.split("\n") if line.strip()]
    return parse_tokenizer(train_model(lines, TrainingOptions(1000)), "spm.model")


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported")
    write_tokenizer_files(path, tokenizer.model, tokenizer.special_ids, MAX_LENGTH_TOKENS)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def train_other_model(**options: Any) -> bytes:
    """A small model of another kind, with DeBERTa's layout."""
    model = io.BytesIO()
    lines = [line for line in pydoc_data.topics.topics["class"].split("\n") if line.strip()]
    arguments = LAYOUT | {"vocab_size": 200, "byte_fallback": False, "model_type": "unigram"} | options
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, hard_vocab_limit=False, **arguments
    )
    return model.getvalue()


def ids_of(rust: RustTokenizer, text: str) -> list[int]:
    ids: list[int] = rust.encode(text, add_special_tokens=False).ids
    return ids


def test_special_tokens_have_debertas_ids_and_padding_rows_are_no_tokens(tokenizer: Tokenizer, loaded: Any):
    ids = (loaded.pad_token_id, loaded.cls_token_id, loaded.sep_token_id, loaded.unk_token_id, loaded.mask_token_id)
    assert ids == astuple(tokenizer.special_ids) == (0, 1, 2, 3, 1000)
    assert set(loaded.all_special_ids) == set(ids)
    assert (loaded.bos_token_id, loaded.eos_token_id) == (1, 2)
    assert len(loaded) == tokenizer.num_pieces + 1 < tokenizer.vocab_size == 1024
    assert loaded.convert_tokens_to_ids("[MASK]") == tokenizer.num_pieces
    assert max(loaded.get_vocab().values()) == tokenizer.num_pieces
    assert loaded.model_max_length == MAX_LENGTH_TOKENS


def test_files_are_the_documented_three(tokenizer: Tokenizer, folder: Path):
    assert {path.name for path in folder.iterdir()} == {"spm.model", "tokenizer.json", "tokenizer_config.json"}
    assert (folder / "spm.model").read_bytes() == tokenizer.model
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["byte_fallback"] is True


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_auto_tokenizer_gives_data_preps_ids(tokenizer: Tokenizer, loaded: Any, text: str):
    expected = encode_documents(tokenizer.processor, [text])[0].tolist()
    assert loaded(text, add_special_tokens=False).input_ids == expected
    assert loaded(text).input_ids == [1, *expected, 2]
    assert loaded.decode(expected) == tokenizer.processor.decode(expected)


def test_every_character_of_unicode_gives_data_preps_ids(tokenizer: Tokenizer, folder: Path):
    rust = RustTokenizer.from_file(str(folder / "tokenizer.json"))
    points = [p for p in range(1, sys.maxunicode + 1) if unicodedata.category(chr(p)) not in ("Cn", "Co", "Cs")]
    assert len(points) > 140_000
    texts = [f"a{chr(p)}b" for p in points]
    expected = tokenizer.processor.encode(texts)
    got = [encoding.ids for encoding in rust.encode_batch_fast(texts, add_special_tokens=False)]
    differing = [f"U+{p:04X}" for p, first, second in zip(points, expected, got, strict=True) if first != second]
    assert differing == ["U+0344"]  # a mark that stands for two; they compose with the letter before them


def test_pair_is_joined_as_deberta_joins_it(tokenizer: Tokenizer, loaded: Any):
    first, second = (tokenizer.processor.encode(text) for text in ("one sentence", "and another"))
    assert loaded("one sentence", "and another").input_ids == [1, *first, 2, *second, 2]
    encoded = loaded("one sentence", "and another", return_token_type_ids=True)
    assert encoded.token_type_ids == [0] * (len(first) + 2) + [1] * (len(second) + 1)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("the class body is executed", "the [MASK] body is executed"),
        ("the class, or not", "the [MASK], or not"),
        ("class definition", "[MASK] definition"),
        ("  the  class", " the   [MASK] "),
    ],
)
def test_mask_takes_the_place_of_a_word(tokenizer: Tokenizer, loaded: Any, text: str, masked: str):
    word = tokenizer.processor.piece_to_id("\u2581class")
    ids = tokenizer.processor.encode(text)
    assert word in ids, "choose a word that is one piece"
    expected = [loaded.mask_token_id if piece == word else piece for piece in ids]
    assert loaded(masked, add_special_tokens=False).input_ids == expected


def test_text_that_spells_a_special_gives_ordinary_pieces_where_asked_for(tokenizer: Tokenizer, loaded: Any):
    text = "[CLS] then [MASK] and [PAD][SEP]"
    expected = tokenizer.processor.encode(text)
    assert not set(expected) & set(astuple(tokenizer.special_ids))
    assert loaded(text, add_special_tokens=False, split_special_tokens=True).input_ids == expected
    assert loaded(text, add_special_tokens=False).input_ids[0] == 1


def test_model_is_read_as_sentencepiece_reads_it(tokenizer: Tokenizer):
    model, processor = parse_model(tokenizer.model), tokenizer.processor
    ids = range(processor.get_piece_size())
    assert model.pieces == tuple(processor.id_to_piece(index) for index in ids)
    assert model.scores == tuple(processor.get_score(index) for index in ids)
    for index in ids:
        assert (model.kinds[index] == PieceKind.BYTE) == processor.is_byte(index)
        assert (model.kinds[index] == PieceKind.CONTROL) == processor.is_control(index)
        assert (model.kinds[index] == PieceKind.UNKNOWN) == processor.is_unknown(index)
    assert (model.normalizer_name, model.byte_fallback, model.add_dummy_prefix) == ("nmt_nfkc", True, True)


KINDS = {
    "no byte fallback": {},
    "no normalizer": {"normalization_rule_name": "identity"},
    "folded case": {"normalization_rule_name": "nmt_nfkc_cf"},
    "extra spaces kept": {"remove_extra_whitespaces": False},
    "no space before the first word": {"add_dummy_prefix": False},
    "extra spaces kept, none before the first word": {"remove_extra_whitespaces": False, "add_dummy_prefix": False},
    "pieces across words": {"split_by_whitespace": False},
    "symbols of its own": {"user_defined_symbols": ["<br>", "==="]},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())
def test_other_kinds_of_models_are_repeated(options: dict[str, Any]):
    tokenizer = parse_tokenizer(train_other_model(**options), "spm.model")
    rust = build_tokenizer(parse_model(tokenizer.model), tokenizer.special_ids)
    texts = [text for text in TEXTS.values() if "<0x" not in text]
    texts += ["Class DEFINITIONS of\u00a0Classes", "one<br>two <br> three === four", "  two  spaces "]
    for text in texts:
        assert ids_of(rust, text) == tokenizer.processor.encode(text), ascii(text)


@pytest.mark.parametrize(
    ("options", "fault"),
    [({"model_type": "bpe"}, "is no unigram model"), ({"treat_whitespace_as_suffix": True}, "marks spaces at the end")],
)
def test_model_that_cannot_be_repeated_is_refused(options: dict[str, Any], fault: str):
    tokenizer = parse_tokenizer(train_other_model(**options), "spm.model")
    with pytest.raises(ValueError, match=rf"^spm\.model {fault}.*: tokenizer\.json cannot repeat it; train with"):
        build_tokenizer(parse_model(tokenizer.model), tokenizer.special_ids)


def test_model_with_plain_spaces_is_refused(tokenizer: Tokenizer):
    model = replace(parse_model(tokenizer.model), escape_whitespaces=False)
    with pytest.raises(ValueError, match=r"^spm\.model keeps spaces as they are"):
        build_tokenizer(model, tokenizer.special_ids)


def num_bytes(model: SentencePieceModel, piece: int) -> int:
    return 1 if model.kinds[piece] == PieceKind.BYTE else len(model.pieces[piece].encode())


def assert_tied(model: SentencePieceModel, ours: list[int], theirs: list[int]) -> None:
    """SentencePiece's ids `ours` and Unigram's `theirs` cover the same text and part only at equal scores."""
    unknown = min(score for score, kind in zip(model.scores, model.kinds, strict=True) if kind == PieceKind.NORMAL) - 10
    score_of = [unknown if kind == PieceKind.BYTE else s for s, kind in zip(model.scores, model.kinds, strict=True)]
    paths, at, running, num_stretches = (ours, theirs), [0, 0], 0.0, 0
    while at[0] < len(ours) and at[1] < len(theirs):
        ends, sums, starts = [0, 0], [0.0, 0.0], list(at)
        while not ends[0] or ends[0] != ends[1]:  # up to the next place where both have a border
            behind = 0 if ends[0] <= ends[1] else 1
            piece = paths[behind][at[behind]]
            ends[behind] += num_bytes(model, piece)
            sums[behind] += score_of[piece]
            at[behind] += 1
        running += sums[0]
        if ours[starts[0] : at[0]] != theirs[starts[1] : at[1]]:
            num_stretches += 1
            num_pieces = sum(at) - sum(starts)
            rounding = num_pieces * np.spacing(np.float32(abs(running))) / 2
            assert -1e-9 <= sums[1] - sums[0] <= rounding, (ours[starts[0] : at[0]], theirs[starts[1] : at[1]])
    assert at == [len(ours), len(theirs)] and num_stretches


def count_ties(tokenizer: Tokenizer, documents: list[str]) -> tuple[int, int]:
    """(chunks, chunks whose ids differ) of documents as data_prep cuts them; each difference is shown to be a tie."""
    model = parse_model(tokenizer.model)
    rust = build_tokenizer(model, tokenizer.special_ids)
    chunks = [chunk for document in documents for chunk in chunk_text(document)]
    num_ties = 0
    encodings = rust.encode_batch_fast(chunks, add_special_tokens=False)
    for chunk, encoding in zip(chunks, encodings, strict=True):
        ours = encode_documents(tokenizer.processor, [chunk])[0].tolist()
        if ours != encoding.ids:
            assert_tied(model, ours, encoding.ids)
            num_ties += 1
    return len(chunks), num_ties


def test_differences_on_pythons_documentation_are_ties(tokenizer: Tokenizer):
    lines = [line for topic in pydoc_data.topics.topics.values() for line in topic.split("\n")]
    num_lines, num_ties = count_ties(tokenizer, lines)
    assert num_lines > 10_000 and num_ties <= num_lines * 0.002
    num_topics, num_ties = count_ties(tokenizer, list(pydoc_data.topics.topics.values()))
    print(f"{num_ties} ties in {num_topics} chunks of up to 4,096 characters")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not here")
def test_differences_on_wikipedia_are_ties(tokenizer: Tokenizer):
    with pa.OSFile(str(SHARED / "en_wikipedia" / "good.txt.zst")) as file:
        text = pa.CompressedInputStream(file, "zstd").read(3_000_000).decode("utf-8", errors="ignore")
    lines = [line for line in text.split("\n") if line.strip()]
    num_lines, num_ties = count_ties(tokenizer, lines)
    print(f"{num_ties} ties in {num_lines} lines")
    assert num_lines > 1000 and num_ties <= math.ceil(num_lines * 0.004)
