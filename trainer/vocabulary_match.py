"""Rows of another tokenizer's tables for the shards' tokens.

What: a checkpoint's tables have a row for each id of its own tokenizer. Two tokenizers are brought together by the text
of their pieces, special tokens by their role:
- a piece that both know takes its row (special tokens and byte pieces too, each among its kind);
- any other piece is cut by the old tokenizer, as it stands, and takes the mean of the rows that this gives (arXiv
  2402.09977, "fast vocabulary transfer": no second model and no text needed);
- one that the old tokenizer has no pieces for keeps its initial row, N(0, initializer_range), as padding rows do.
Used by: trainer/continue_from.py. Tested by tests/trainer/test_vocabulary_match.py.
Not here: which tables are carried over (model/pair_from_hf.py).
"""

# V rows of a table  P pairs of a new and an old row

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from disentangled.data_prep.shard_schema import SpecialIds
from disentangled.trainer.hf_tokenizer import (
    SPECIAL_TOKENS,
    PieceKind,
    SentencePieceModel,
    build_tokenizer,
    parse_model,
)


@dataclass(frozen=True)
class VocabularyMatch:
    """Which old rows make up each new one.

    Attributes:
        new_rows, old_rows, weights: [P]; a new row is the weighted sum of its old ones.
        num_tokens: of the new tokenizer, [MASK] included.
        num_found: of them known to both.
        num_composed: of them the mean of the old pieces of their text.
    """

    new_rows: Tensor
    old_rows: Tensor
    weights: Tensor
    num_tokens: int
    num_found: int
    num_composed: int

    def carry(self, old: Tensor, initial: Tensor) -> Tensor:
        """A table [V new, ...] from `old` [V old, ...]; rows without a source are those of `initial` [V new, ...].

        Raises:
            ValueError: tables of another width.
        """
        if old.shape[1:] != initial.shape[1:]:
            raise ValueError(
                f"the checkpoint's embeddings are {old.shape[-1]} wide, the recipe's {initial.shape[-1]}: set "
                f"model.hidden_size={old.shape[-1]}"
            )
        carried = initial.clone()
        carried[self.new_rows] = 0
        weights = self.weights.view(-1, *[1] * (old.dim() - 1))
        return carried.index_add_(0, self.new_rows, (old[self.old_rows] * weights).to(initial.dtype))

    def describe(self) -> str:
        """The counts in words."""
        if self.num_found == self.num_tokens:
            return f"all {self.num_tokens:,} tokens found"
        initial = self.num_tokens - self.num_found - self.num_composed
        return (
            f"{self.num_found:,} of {self.num_tokens:,} tokens found, {self.num_composed:,} the mean of the pieces "
            f"of their text, {initial:,} initialised"
        )


def same_vocabulary(num_tokens: int, num_rows: int) -> VocabularyMatch:
    """Every row as it is: the checkpoint's ids are the shards' own.

    Args:
        num_rows: that old and new tables both have; those past the tokens are padding.
    """
    rows = torch.arange(num_rows)
    return VocabularyMatch(rows, rows, torch.ones(num_rows), num_tokens, num_tokens, 0)


def match_vocabularies(new: SentencePieceModel, old: SentencePieceModel) -> VocabularyMatch:
    """Rows for the pieces of `new` and for [MASK], which follows the last piece in both."""
    tokenizer = build_tokenizer(old, special_ids_of(old)).model
    known_pieces = zip(old.pieces, map(_group_of, old.kinds), strict=True)
    places = {piece: row for row, piece in enumerate(known_pieces)}
    # byte pieces stand for unknown characters, where there is a fallback; never special tokens that a text spells
    text = {PieceKind.NORMAL, PieceKind.USER_DEFINED} | ({PieceKind.BYTE} if old.byte_fallback else set())
    sources: list[list[int]] = []
    num_found = num_composed = 0
    for piece, kind in zip(new.pieces, new.kinds, strict=True):
        known = places.get((piece, _group_of(kind)))
        if known is not None:
            sources.append([known])
            num_found += 1
            continue
        cut = [token.id for token in tokenizer.tokenize(piece)] if kind == PieceKind.NORMAL else []
        unknown = not cut or any(old.kinds[row] not in text for row in cut)
        sources.append([] if unknown else cut)
        num_composed += not unknown
    sources.append([len(old.pieces)])
    return VocabularyMatch(
        new_rows=torch.tensor([row for row, cut in enumerate(sources) for _ in cut]),
        old_rows=torch.tensor([old_row for cut in sources for old_row in cut]),
        weights=torch.tensor([1 / len(cut) for cut in sources for _ in cut]),
        num_tokens=len(sources),
        num_found=num_found + 1,
        num_composed=num_composed,
    )


def read_tokenizer(path: Path) -> SentencePieceModel:
    """Read an spm.model.

    Raises:
        ValueError: it is none, or its first pieces are not DeBERTa's special tokens.
    """
    try:
        model = parse_model(path.read_bytes())
    except OSError as error:
        raise ValueError(f"tokenizer {path} cannot be read ({error.strerror}): give an spm.model") from error
    except (IndexError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"tokenizer {path} is no SentencePiece model: give an spm.model") from error
    if model.pieces[:4] != SPECIAL_TOKENS[:4] or SPECIAL_TOKENS[4] in model.pieces:
        raise ValueError(
            f"tokenizer {path} does not have DeBERTa's special tokens (pieces 0-3 are {' '.join(model.pieces[:4])}): "
            "give a checkpoint with a DeBERTa-V2 or V3 spm.model"
        )
    return model


def special_ids_of(model: SentencePieceModel) -> SpecialIds:
    """DeBERTa's layout: [PAD] [CLS] [SEP] [UNK] first, [MASK] after the last piece."""
    return SpecialIds(pad=0, cls=1, sep=2, unk=3, mask=len(model.pieces))


def _group_of(kind: PieceKind) -> str:
    """Pieces of text and pieces that only look like text are never the same."""
    return "text" if kind in (PieceKind.NORMAL, PieceKind.USER_DEFINED) else kind.name
