"""Hugging Face's tokenizer files, built from an spm.model: SentencePiece is the truth, tokenizer.json repeats it.

What: a Unigram model with the pieces and scores of spm.model, its byte fallback, its normalizer's own table (charsmap)
and white-space rules, DeBERTa's special tokens and [CLS] A [SEP] B [SEP]. Given spm.model alone, transformers 5's
`DebertaV2Tokenizer` replaces the normalizer by NFC and drops byte fallback; hence tokenizer.json, under
`PreTrainedTokenizerFast`. Rows of the embedding table past [MASK] are padding, not tokens.

The ids are data_prep's except where
- the text spells a special token: "[MASK]" gives its id (with `split_special_tokens=True` ordinary pieces, as there);
- a special token stands beside a space and the model is one of the rare ones that keep extra spaces;
- two segmentations have equal scores: SentencePiece adds float32 along a whole string, Unigram float64 along a word;
- the text spells a byte piece ("<0x41>") with a character that is no piece of the model;
- a compatibility character stands before a combining mark that it does not compose with: the tokenizers library drops
  the mark; or combining marks stand in another than Unicode's canonical order.

spm.model is read by hand: the message classes that sentencepiece ships refuse every protobuf older than their own.
Used by: trainer/export.py. Tested by tests/trainer/test_hf_tokenizer.py.
Not here: encoding for training (data_prep/encode_text.py).
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from disentangled.data_prep.shard_schema import SpecialIds

SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")  # in the order of SpecialIds
SPACE_SYMBOL = "\u2581"  # SentencePiece's visible space
UNIGRAM = 1  # TrainerSpec.ModelType
# Unigram would find "<0x41>" or "[CLS]" in text, at their stored score of 0 always; no path of real pieces costs as
# much as this. An unknown character scores 10 below the worst piece: all paths hold the same number, nothing changes.
UNREACHABLE_SCORE = -1e6
USER_DEFINED_SCORE = -0.1  # SentencePiece's own, whatever the file says


class PieceKind(IntEnum):
    """ModelProto.SentencePiece.Type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class SentencePieceModel:
    """What an spm.model holds, as far as it decides which ids a text gets.

    Attributes:
        charsmap: the normalizer's table in SentencePiece's own binary form; empty where nothing is normalized.
    """

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    kinds: tuple[PieceKind, ...]
    model_type: int
    byte_fallback: bool
    space_is_suffix: bool
    normalizer_name: str
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


def write_tokenizer_files(directory: Path, model: bytes, special_ids: SpecialIds, max_length_tokens: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and spm.model, which is `model`.

    Raises:
        ValueError: a model that tokenizer.json cannot repeat.
    """
    tokenizer = build_tokenizer(parse_model(model), special_ids)
    (directory / "spm.model").write_bytes(model)
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    settings = describe_tokenizer(max_length_tokens)
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def describe_tokenizer(max_length_tokens: int) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    pad, cls, sep, unk, mask = SPECIAL_TOKENS
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length_tokens,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "pad_token": pad,
        "cls_token": cls,
        "sep_token": sep,
        "unk_token": unk,
        "mask_token": mask,
        "bos_token": cls,
        "eos_token": sep,
    }


def build_tokenizer(model: SentencePieceModel, special_ids: SpecialIds) -> Tokenizer:
    """The tokenizer that tokenizer.json describes.

    Raises:
        ValueError: the model is no unigram model or marks spaces in a way that Hugging Face's pieces cannot.
    """
    _check_repeatable(model)
    vocabulary = list(zip(model.pieces, map(_score_of, model.scores, model.kinds), strict=True))
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=special_ids.unk, byte_fallback=model.byte_fallback))
    tokenizer.normalizer = _build_normalizer(model)
    # pieces that hold a space inside need whole strings, all others are found word by word: faster and the same
    by_word = not any(SPACE_SYMBOL in piece[1:] for piece in model.pieces)
    # "first": after a special token in mid-text only what has a space of its own begins a word, as in training
    scheme = "first" if model.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE_SYMBOL, scheme, split=by_word)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(SPACE_SYMBOL, scheme)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(astuple(special_ids))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", special_ids.cls), ("[SEP]", special_ids.sep)],
    )
    return tokenizer


def parse_model(model: bytes) -> SentencePieceModel:
    """Read the content of an spm.model (field numbers are those of sentencepiece_model.proto)."""
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    entries = []
    for number, value in _read_fields(model):
        if number == 1:
            entries.append(dict(_read_fields(value)))
        elif number == 2:
            trainer.update(_read_fields(value))
        elif number == 3:
            normalizer.update(_read_fields(value))
    return SentencePieceModel(
        pieces=tuple(entry[1].decode("utf-8") for entry in entries),
        scores=tuple(struct.unpack("<f", entry[2])[0] if 2 in entry else 0.0 for entry in entries),
        kinds=tuple(PieceKind(entry.get(3, PieceKind.NORMAL)) for entry in entries),
        model_type=trainer.get(3, UNIGRAM),
        byte_fallback=bool(trainer.get(35, False)),
        space_is_suffix=bool(trainer.get(24, False)),
        normalizer_name=normalizer.get(1, b"").decode("utf-8", errors="replace"),
        charsmap=normalizer.get(2, b""),
        add_dummy_prefix=bool(normalizer.get(3, True)),
        remove_extra_whitespaces=bool(normalizer.get(4, True)),
        escape_whitespaces=bool(normalizer.get(5, True)),
    )


def _check_repeatable(model: SentencePieceModel) -> None:
    """Refuse what tokenizer.json has no words for."""
    if model.model_type != UNIGRAM:
        fault = "is no unigram model"
    elif model.space_is_suffix:
        fault = "marks spaces at the end of words (treat_whitespace_as_suffix)"
    elif not model.escape_whitespaces:
        fault = "keeps spaces as they are (escape_whitespaces false)"
    else:
        return
    raise ValueError(f"spm.model {fault}: tokenizer.json cannot repeat it; train with a DeBERTa-V2 or V3 spm.model")


def _score_of(score: float, kind: PieceKind) -> float:
    """A piece's score in tokenizer.json; some kinds of pieces SentencePiece never looks for in text."""
    if kind == PieceKind.USER_DEFINED:
        return USER_DEFINED_SCORE
    return score if kind == PieceKind.NORMAL else UNREACHABLE_SCORE


def _build_normalizer(model: SentencePieceModel) -> normalizers.Normalizer:
    """The charsmap, then SentencePiece's white-space rules; the first word's space is the pre-tokenizer's."""
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
        if "nfkc" in model.normalizer_name:
            # `Precompiled` looks at one grapheme at a time and takes the shortest entry of the table: of a decomposed
            # letter with two marks it drops one, and a half-width kana never meets its voicing mark
            steps = [normalizers.NFC(), *steps, normalizers.NFC()]
    if model.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
        steps.append(normalizers.Replace(Regex(rf"[ {SPACE_SYMBOL}]+\z"), ""))
    if model.add_dummy_prefix:
        # the pre-tokenizer adds its space only where none is; extra spaces, where kept, come after it
        own_space = SPACE_SYMBOL if model.remove_extra_whitespaces else f"[ {SPACE_SYMBOL}]"
        steps.append(normalizers.Replace(Regex(rf"\A{own_space}"), SPACE_SYMBOL * 2))
    elif model.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A "), ""))
    return normalizers.Sequence(steps)


def _read_fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of a protobuf message in order: int for a varint, bytes for all other wire types."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        wire_type = key & 7
        if wire_type == 0:
            value, at = _read_varint(message, at)
            yield key >> 3, value
            continue
        size = 8 if wire_type == 1 else 4
        if wire_type == 2:
            size, at = _read_varint(message, at)
        yield key >> 3, message[at : at + size]
        at += size


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """The base-128 number at `at`, and the position after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
