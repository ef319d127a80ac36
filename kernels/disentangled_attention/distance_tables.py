"""The relative tables written out per distance, which is what the fused kernels read, and the way back for gradients.

Row u of an expanded table belongs to the distance i - j = offset - u, so rows ascend with the key. The logarithmic
bucket is gone from everything that follows: a tile of scores meets a window of consecutive rows. Both ends of the map
are saturated (one slot for every distance past `last_left`, one for every distance past `last_right`), so the rows
between them, with a margin for the tiles that straddle an end, serve any length.

Rows are multiplied by PRESCALE, a power of two and therefore exact: see Scales in attention_call.py.
Shapes: N heads, R = 2k rows of a table, U rows of an expanded table, H head width.
Used by: attention_call.py, launch.py. Tested by: tests/kernels/test_distance_tables.py.
Not here: which slot a distance has (log_bucket.py).
"""

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from disentangled.kernels.disentangled_attention.log_bucket import Positions
from disentangled.kernels.disentangled_attention.tiles import DATA_DEPENDENT


@dataclass(frozen=True, eq=False)
class DistanceTable:
    """How rows of an expanded table correspond to distances and to slots.

    offset      the distance of row 0
    num_rows    U
    last_left   every distance >= last_left has the slot of last_left (keys far to the left)
    last_right  every distance <= last_right has the slot of last_right (keys far to the right)
    left_slot, right_slot  those slots
    slots       int32 [U], the slot of each row, descending
    row_spans   int32 [R, 2], the rows [first, stop) of each slot; empty where no distance has the slot
    """

    offset: int
    num_rows: int
    last_left: int
    last_right: int
    left_slot: int
    right_slot: int
    slots: Tensor
    row_spans: Tensor


def distance_table(positions: Positions, longest: int, margin: int, device: torch.device) -> DistanceTable:
    """The table for sequences of at most `longest` tokens and tiles that straddle an end by less than `margin`."""
    reach = max(longest, positions.max_relative_positions + 1)
    return _distance_table(positions, 1 << (reach - 1).bit_length(), margin, str(device))


@functools.lru_cache(maxsize=64)
def _distance_table(positions: Positions, reach: int, margin: int, device: str) -> DistanceTable:
    with torch.inference_mode(False):
        slots = positions.slots(reach, reach)  # of the distances 1 - reach .. reach - 1
        changes = (slots[1:] != slots[:-1]).nonzero().flatten()
        last_right = int(changes[0]) - (reach - 1)
        last_left = int(changes[-1]) + 1 - (reach - 1)
        distances = torch.arange(last_left + margin, last_right - margin - 1, -1, device="cpu")
        of_row = slots[(distances.clamp(last_right, last_left) + reach - 1)].contiguous()
        descending = of_row.neg().contiguous()
        slot = torch.arange(2 * positions.att_span, device="cpu").neg()
        spans = torch.stack(
            [torch.searchsorted(descending, slot), torch.searchsorted(descending, slot, right=True)], dim=1
        )
        return DistanceTable(
            offset=last_left + margin,
            num_rows=len(distances),
            last_left=last_left,
            last_right=last_right,
            left_slot=int(slots[-1]),
            right_slot=int(slots[0]),
            slots=of_row.to(device=device, dtype=torch.int32),
            row_spans=spans.to(device=device, dtype=torch.int32),
        )


@triton.jit(do_not_specialize=DATA_DEPENDENT)
def expand_kernel(
    rel_key_ptr, rel_query_ptr, expanded_ptr, slots_ptr,
    stride_kn, stride_kr, stride_kh, stride_qn, stride_qr, stride_qh,
    first_row, stop_row, num_rows, num_heads,
    HEAD_WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_U: tl.constexpr,
    HAS_C2P: tl.constexpr, HAS_P2C: tl.constexpr, PRESCALE: tl.constexpr,
):  # fmt: skip
    """Writes BLOCK_U rows of one head of both expanded tables [2, N, U, H]: rel_key's, then rel_query's."""
    head = tl.program_id(1).to(tl.int64)
    row = first_row + tl.program_id(0) * BLOCK_U + tl.arange(0, BLOCK_U)
    offs_h = tl.arange(0, BLOCK_H)
    mask = (row < stop_row)[:, None] & (offs_h < HEAD_WIDTH)[None, :]
    slot = tl.load(slots_ptr + row, mask=row < stop_row, other=0)
    out = expanded_ptr + (head * num_rows + row[:, None]) * HEAD_WIDTH + offs_h[None, :]
    if HAS_C2P:
        table = rel_key_ptr + head * stride_kn
        rows = tl.load(table + slot[:, None] * stride_kr + offs_h[None, :] * stride_kh, mask=mask)
        tl.store(out, (rows.to(tl.float32) * PRESCALE).to(expanded_ptr.dtype.element_ty), mask=mask)
    if HAS_P2C:
        table = rel_query_ptr + head * stride_qn
        rows = tl.load(table + slot[:, None] * stride_qr + offs_h[None, :] * stride_qh, mask=mask)
        out += tl.cast(num_heads, tl.int64) * num_rows * HEAD_WIDTH
        tl.store(out, (rows.to(tl.float32) * PRESCALE).to(expanded_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=DATA_DEPENDENT)
def fold_kernel(
    partial_ptr, ends_ptr, grad_key_ptr, grad_query_ptr, row_spans_ptr,
    first_row, stop_row, num_rows, num_slots, num_heads, num_query_tiles, num_key_tiles, left_slot, right_slot,
    first_head,
    HEAD_WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_U: tl.constexpr, SPLITS: tl.constexpr,
    HAS_C2P: tl.constexpr, HAS_P2C: tl.constexpr, HAS_FAR: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of one slot of one head of both tables: the sum over the rows that the slot has.

    partial [2, SPLITS, n, U, H] holds what the tiles near the diagonal gave; ends [2, tiles, n, 2, H] what the far
    tiles gave to the left end's slot and to the right end's. Each sum runs in a fixed order.
    """
    slot, head, side = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    offs_h, offs_u = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_U)
    in_width = offs_h < HEAD_WIDTH
    first = tl.maximum(tl.load(row_spans_ptr + 2 * slot), first_row)
    stop = tl.minimum(tl.load(row_spans_ptr + 2 * slot + 1), stop_row)
    total = tl.zeros([BLOCK_H], tl.float32)
    for split in range(SPLITS):
        table = partial_ptr + (((side * SPLITS + split) * num_heads + head).to(tl.int64)) * num_rows * HEAD_WIDTH
        for row0 in range(first, stop, BLOCK_U):
            row = row0 + offs_u
            rows = tl.load(
                table + row[:, None] * HEAD_WIDTH + offs_h[None, :],
                mask=(row < stop)[:, None] & in_width[None, :],
                other=0.0,
            )
            total += tl.sum(rows, 0)
    if HAS_FAR:
        tiles = tl.where(side == 0, num_query_tiles, num_key_tiles)
        for end in range(2):
            if slot == tl.where(end == 0, left_slot, right_slot):
                base = ends_ptr + tl.cast(side, tl.int64) * num_query_tiles * num_heads * 2 * HEAD_WIDTH
                for tile0 in range(0, tiles, BLOCK_U):
                    tile = tile0 + offs_u
                    vectors = tl.load(
                        base + ((tile[:, None] * num_heads + head) * 2 + end) * HEAD_WIDTH + offs_h[None, :],
                        mask=(tile < tiles)[:, None] & in_width[None, :],
                        other=0.0,
                    )
                    total += tl.sum(vectors, 0)
    out = ((first_head + head).to(tl.int64) * num_slots + slot) * HEAD_WIDTH + offs_h
    if HAS_C2P:
        tl.store(grad_key_ptr + out, total.to(grad_key_ptr.dtype.element_ty), mask=in_width & (side == 0))
    if HAS_P2C:
        tl.store(grad_query_ptr + out, total.to(grad_query_ptr.dtype.element_ty), mask=in_width & (side == 1))
