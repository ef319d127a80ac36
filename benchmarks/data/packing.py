"""Part d: how full rows of 512 tokens are, and how many documents that fit into a row are cut all the same.

Two lists of documents: those of the text, and its lines, which are as short as much of the web's text. A row holds
pieces, each with its [CLS] and [SEP]; real tokens are all others that are not padding.

Used by: benchmarks/data/__main__.py. Tested by: tests/benchmarks/test_data.py.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece as spm
from numpy.typing import NDArray

from benchmarks.data import our_data
from benchmarks.data.lift import lift_modernbert
from benchmarks.data.maskers import ROWS, TOKENS
from benchmarks.data.readers import MODERNBERT_BUFFER_BATCHES, cut_pieces
from benchmarks.data.rounds import Row
from benchmarks.data.text import Text, batch_documents

SPECIALS = 2  # [CLS] and [SEP] of a piece


def measure_packing(dataset: Path, text: Text, options: argparse.Namespace) -> Iterator[Row]:
    """Rows for documents and for lines."""
    _, offsets = our_data.training_tokens(dataset)
    for case, starts in (("documents", offsets), ("lines", line_offsets(text))):
        yield Row("pack", case, "ours", figures=pack_ours(starts))
        yield Row("pack", case, "one piece a row", figures=one_piece_a_row(starts))
        yield Row("pack", case, "concatenate and cut", figures=concatenate_and_cut(starts))
        if options.modernbert is not None:
            try:
                yield Row("pack", case, "modernbert", figures=pack_modernbert(starts, options))
            except ImportError as error:
                yield Row("pack", case, "modernbert", error=f"absent: {error}")


def line_offsets(text: Text) -> NDArray[np.int64]:
    """The bounds of the text's lines in tokens."""
    processor = spm.SentencePieceProcessor(model_file=str(text.tokenizer))
    lines = (line for line in text.plain.read_text("utf-8").splitlines() if line)
    encoded = (len(ids) for batch in batch_documents(lines) for ids in processor.encode(batch, 1, return_type="numpy"))
    lengths = np.fromiter(encoded, np.int64)
    return np.concatenate([[0], lengths.cumsum()])


def piece_lengths(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of every document cut into runs of 510 tokens and the rest."""
    full, rest = np.divmod(np.diff(offsets), TOKENS - SPECIALS)
    pieces = np.repeat(TOKENS - SPECIALS, full.sum())
    return np.concatenate([pieces, rest[rest > 0]])


def pack_ours(offsets: NDArray[np.int64]) -> dict[str, Any]:
    """The plan of the training split; a cut is avoidable where a document of at most 510 tokens is in two pieces."""
    started = time.process_time()
    window, start, length, plan_bytes = our_data.plan_rows(offsets)
    seconds = time.process_time() - started
    document = np.searchsorted(offsets, start, side="right") - 1
    fits = np.diff(offsets) <= TOKENS - SPECIALS
    is_split = np.bincount(document, minlength=len(fits)) > 1
    real_tokens, num_rows = int(length.sum()), int(window.max()) + 1
    return {
        "real_share": real_tokens / (num_rows * TOKENS),
        "filled_share": (real_tokens + SPECIALS * len(length)) / (num_rows * TOKENS),
        "avoidable_cuts_share": float((fits & is_split).sum() / max(1, fits.sum())),
        "dropped_share": 1 - real_tokens / int(offsets[-1]),
        "plan_bytes_per_token": plan_bytes / int(offsets[-1]),
        "million_pieces_per_cpu_second": len(length) / seconds / 1e6,
    }


def one_piece_a_row(offsets: NDArray[np.int64]) -> dict[str, Any]:
    lengths = piece_lengths(offsets)
    return describe_share(int(lengths.sum()), len(lengths), len(lengths), 0.0)


def concatenate_and_cut(offsets: NDArray[np.int64]) -> dict[str, Any]:
    """Rows of 510 tokens of the concatenation, as run_mlm does: no padding, and no regard to documents."""
    width = TOKENS - SPECIALS
    fits = np.diff(offsets) <= width
    is_cut = offsets[:-1] // width != (offsets[1:] - 1) // width
    num_rows = -(-int(offsets[-1]) // width)
    return describe_share(int(offsets[-1]), num_rows, num_rows, float((fits & is_cut).sum() / max(1, fits.sum())))


def describe_share(real_tokens: int, num_pieces: int, num_rows: int, avoidable_cuts_share: float) -> dict[str, Any]:
    return {
        "real_share": real_tokens / (num_rows * TOKENS),
        "filled_share": (real_tokens + SPECIALS * num_pieces) / (num_rows * TOKENS),
        "avoidable_cuts_share": avoidable_cuts_share,
    }


def pack_modernbert(offsets: NDArray[np.int64], options: argparse.Namespace) -> dict[str, Any]:
    """GreedyBestFitSequencePacker on the pieces in random order; its last batch, if incomplete, is not counted."""
    pieces = []
    for piece in cut_pieces(np.empty(offsets[-1], np.uint8), offsets):
        pieces.append(np.full(len(piece) + SPECIALS, 3, np.uint16))
        pieces[-1][0] = 1
    np.random.default_rng(1).shuffle(pieces)  # type: ignore[arg-type]
    batches = [
        [{"input_ids": piece} for piece in pieces[start : start + ROWS]] for start in range(0, len(pieces), ROWS)
    ]
    packer_class: Callable[..., Any] = lift_modernbert(options.modernbert).GreedyBestFitSequencePacker.from_composer
    packer = packer_class(
        batches, batch_size=ROWS, micro_batch_size=1, max_seq_len=TOKENS, pad_token_id=0,
        buffer_size=MODERNBERT_BUFFER_BATCHES * ROWS, mask_token_id=2, suppress_masking=True,
    )  # fmt: skip
    filled = num_rows = num_pieces = 0
    for batch in packer:
        filled += int((batch["input_ids"] != 0).sum())
        num_rows += len(batch["input_ids"])
        # [CLS] is 1, [SEP] and text 3: a piece for each [CLS]
        num_pieces += int((batch["input_ids"] == 1).sum())
    return describe_share(filled - SPECIALS * num_pieces, num_pieces, num_rows, 0.0)
