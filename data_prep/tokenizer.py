"""A SentencePiece model with DeBERTa's layout of special ids.

    id 0 [PAD]   1 [CLS]   2 [SEP]   3 [UNK]   4 ... num_pieces - 1 ordinary pieces   num_pieces [MASK]

vocab_size is num_pieces + 1 rounded up to a multiple of 64, so that the rows of embeddings and output projection fill
whole tiles; the rows between are padding. Text that spells "[CLS]" or "[MASK]" gives ordinary pieces: the first three
are control symbols, which SentencePiece never produces from text, and [MASK] is not in the model.

Used by: build_corpus.py, inspect_shard.py, train_tokenizer.py. Tested by: tests/data_prep/test_tokenizer.py.
Not here: training (train_tokenizer.py), encoding (encode_text.py), Hugging Face's files (trainer/export.py).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece as spm

from disentangled.data_prep.shard_schema import SpecialIds

SPECIAL_PIECES = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
MASK_PIECE = "[MASK]"
# 64: a multiple of every tile width along the vocabulary, at most 63 rows of padding
VOCAB_MULTIPLE = 64


@dataclass(frozen=True)
class Tokenizer:
    """A loaded SentencePiece model, its file's content and what the dataset's identity needs of it."""

    processor: spm.SentencePieceProcessor
    model: bytes
    sha256: str
    num_pieces: int
    vocab_size: int
    special_ids: SpecialIds
    normalizer: str
    byte_ids: npt.NDArray[np.int64]


def padded_vocab_size(num_pieces: int) -> int:
    """Return the number of embedding rows for num_pieces pieces and [MASK]."""
    return -(-(num_pieces + 1) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read an spm.model; ValueError if it is none or does not have DeBERTa's layout."""
    try:
        model = Path(path).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such tokenizer file: check --tokenizer") from None
    return parse_tokenizer(model, str(path))


def parse_tokenizer(model: bytes, name: str) -> Tokenizer:
    """Return the tokenizer in the content of an spm.model; name is what errors call it."""
    try:
        if not model:
            raise RuntimeError("the file is empty")
        processor = spm.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise ValueError(f"{name}: not a SentencePiece model: give an spm.model or use --train-tokenizer") from None
    _check_layout(processor, name)
    num_pieces = processor.get_piece_size()
    return Tokenizer(
        processor=processor,
        model=model,
        sha256=hashlib.sha256(model).hexdigest(),
        num_pieces=num_pieces,
        vocab_size=padded_vocab_size(num_pieces),
        special_ids=SpecialIds(pad=0, cls=1, sep=2, unk=3, mask=num_pieces),
        normalizer=_read_normalizer_name(model),
        byte_ids=np.array([index for index in range(num_pieces) if processor.is_byte(index)], dtype=np.int64),
    )


def _check_layout(processor: spm.SentencePieceProcessor, name: str) -> None:
    """Refuse a model whose special ids lie elsewhere or can be produced from text."""
    remedy = "give a DeBERTa-V2 or V3 spm.model or use --train-tokenizer"
    num_pieces = processor.get_piece_size()
    first = tuple(processor.id_to_piece(index) for index in range(min(len(SPECIAL_PIECES), num_pieces)))
    if first != SPECIAL_PIECES or not processor.is_unknown(3):
        raise ValueError(f"{name}: pieces 0-3 are {' '.join(first)}, not {' '.join(SPECIAL_PIECES)}: {remedy}")
    if processor.piece_to_id(MASK_PIECE) != processor.unk_id():
        rule = f"{MASK_PIECE} is a piece of the model, but its id must lie past the last piece"
        raise ValueError(f"{name}: {rule}: {remedy}")
    reached = [piece for piece in SPECIAL_PIECES[:3] if processor.piece_to_id(piece) in processor.encode(piece)]
    if reached:
        raise ValueError(f"{name}: text that spells {reached[0]} is encoded as the special id itself: {remedy}")


def _read_normalizer_name(model: bytes) -> str:
    """Return normalizer_spec.name (field 3, then 1) of a SentencePiece ModelProto, "" where it has none.

    Read by hand because the message classes that sentencepiece ships need the protobuf package.
    """
    specs = [value for number, value in _read_fields(model) if number == 3]
    names = [value for spec in specs for number, value in _read_fields(spec) if number == 1]
    return names[-1].decode("utf-8", errors="replace") if names else ""


def _read_fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (field number, content) of the length-delimited fields of a protobuf message, in order."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        wire_type = key & 7
        if wire_type == 0:
            _, at = _read_varint(message, at)
        elif wire_type == 2:
            size, at = _read_varint(message, at)
            yield key >> 3, message[at : at + size]
            at += size
        else:
            at += 8 if wire_type == 1 else 4


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Return (value, position after it) of the base-128 number at `at`."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
