"""Cutting and packing documents into windows of a fixed length, from their lengths alone.

What: a document longer than a row is split into full pieces and a leftover, and pieces are put into rows by one of
three rules. Each piece costs two tokens more, its own [CLS] and [SEP].
- best_fit: best-fit decreasing in groups of pieces in shard order, so that packing is local and deterministic. Nothing
  that fits in a row is ever cut (arXiv 2404.10830 shows why that matters).
- concatenate: documents one after another, cut wherever a row is full: no row has a gap, many documents are cut.
- one_piece: a row for each piece, for what wants a document a row; rows of short documents are mostly padding.
Used by: trainer/window_plan.py. Tested by tests/trainer/test_packing.py.
Not here: tokens; the order of windows (trainer/order.py).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Packing = Literal["best_fit", "concatenate", "one_piece"]
PACKINGS: tuple[str, ...] = get_args(Packing)
SPECIALS_PER_PIECE = 2  # [CLS] and [SEP]
GROUP_PIECES = 4096  # larger groups fill rows no better (99.4 % at 512 tokens) and cost locality


@dataclass(frozen=True)
class PackedWindows:
    """Rows of one shard: window w holds pieces first_piece[w] .. first_piece[w + 1] - 1.

    Attributes:
        first_piece: [windows + 1] int64.
        start: [pieces] int64, where a piece starts in the shard's tokens.
        length: [pieces] int64, its tokens, special ones not counted.
    """

    first_piece: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]

    @property
    def num_windows(self) -> int:
        """Rows that are filled."""
        return self.first_piece.size - 1


def pack_windows(
    offsets: NDArray[np.int64], sequence_length: int, minimum_piece_tokens: int, packing: Packing = "best_fit"
) -> PackedWindows:
    """Fill the rows of a shard.

    Args:
        offsets: [documents + 1], document i is tokens offsets[i] : offsets[i + 1]; empty documents are passed over.
        sequence_length: tokens of a row, special ones included.
        minimum_piece_tokens: leftovers of split documents shorter than this are dropped; whole documents never are.
    """
    if packing == "concatenate":
        return concatenate_documents(offsets, sequence_length, minimum_piece_tokens)
    starts, lengths = cut_documents(offsets, sequence_length - SPECIALS_PER_PIECE, minimum_piece_tokens)
    if packing == "one_piece":
        return PackedWindows(np.arange(starts.size + 1), starts, lengths)
    windows: list[list[int]] = []
    for group in range(0, starts.size, GROUP_PIECES):
        costs = lengths[group : group + GROUP_PIECES] + SPECIALS_PER_PIECE
        windows.extend([group + piece for piece in window] for window in pack_best_fit(costs, sequence_length))
    counts = np.array([len(window) for window in windows], dtype=np.int64)
    order = np.array([piece for window in windows for piece in window], dtype=np.int64)
    return PackedWindows(np.concatenate([[0], counts.cumsum()]).astype(np.int64), starts[order], lengths[order])


def cut_documents(
    offsets: NDArray[np.int64], piece_tokens: int, minimum_piece_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and lengths of all pieces, in document order; no piece is longer than `piece_tokens`."""
    lengths = np.diff(offsets)
    num_full, leftover = np.divmod(lengths, piece_tokens)
    keeps_leftover = np.where(num_full > 0, leftover >= min(minimum_piece_tokens, piece_tokens), leftover > 0)
    num_pieces = num_full + keeps_leftover
    document = np.repeat(np.arange(lengths.size), num_pieces)
    place = np.arange(document.size) - np.repeat(num_pieces.cumsum() - num_pieces, num_pieces)
    starts = offsets[document] + place * piece_tokens
    return starts, np.minimum(piece_tokens, offsets[document + 1] - starts)


def concatenate_documents(offsets: NDArray[np.int64], sequence_length: int, minimum_piece_tokens: int) -> PackedWindows:
    """Documents in order, each going on in the next row where the row is full.

    A piece shorter than `minimum_piece_tokens` is not begun at a row's end, and is dropped at a document's.
    """
    first_piece, starts, lengths = [0], list[int](), list[int]()
    room = sequence_length
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        minimum = min(minimum_piece_tokens, end - start)
        while end - start >= max(1, minimum):
            if room < min(end - start, minimum) + SPECIALS_PER_PIECE:
                first_piece.append(len(starts))
                room = sequence_length
            length = min(end - start, room - SPECIALS_PER_PIECE)
            starts.append(start)
            lengths.append(length)
            room -= length + SPECIALS_PER_PIECE
            start += length
    if len(starts) > first_piece[-1]:
        first_piece.append(len(starts))
    return PackedWindows(*(np.array(column, dtype=np.int64) for column in (first_piece, starts, lengths)))


def pack_best_fit(costs: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: each piece, longest first, goes to the open row with the least room that still holds it."""
    rows: list[list[int]] = []
    rows_with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set where some open row has room r
    for piece in np.argsort(-costs, kind="stable").tolist():
        cost = int(costs[piece])
        fitting = rooms >> cost
        if fitting:
            room = cost + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(piece)
        if room > cost:
            rows_with_room[room - cost].append(row)
            rooms |= 1 << (room - cost)
    return rows
