"""Bands and their diagonals: the position terms of a tile that is not far.

A tile is BLOCK rows by BLOCK columns. Its term of a table needs a window of 2 BLOCK - 1 consecutive rows of it: one
product with them, a *band*, holds the term of row r and column c at band[r, c - r + BLOCK - 1], a diagonal. Bands are
rounded to the inputs' type, written to memory of the program's own as they are, and read with a row stride one
shorter (own_memory.py): an affine address, the same for each tile. No index, no gather, no atomic.

Neighbouring tiles of the same rows share half of their window, so the rows' band is made by halves, one for each tile.
In Triton's interpreter bands are made whole, and the diagonal is gathered.
Used by: forward.py, backward.py. Tested by: tests/kernels/test_triton_attention.py, tests/ptx/test_compiled_kernels.py.
Not here: far tiles, whose terms are one number per row and one per column (tiles.py).
"""

import triton
import triton.language as tl

from disentangled.kernels.disentangled_attention.own_memory import (
    PADDING,
    load_slanted,
    own_memory,
    place_of,
    store_rounded,
)
from disentangled.kernels.disentangled_attention.tiles import (
    IS_INTERPRETED,
    PRECISION,
    anew,
    load_table_rows,
    program_barrier,
)


@triton.jit
def band_memory(scalar, dtype: tl.constexpr, BLOCK: tl.constexpr):
    """Address of room for the bands of a tile; `scalar` is any. Call it once."""
    return own_memory(scalar, BLOCK * (5 * BLOCK + 2 * PADDING), dtype)


@triton.jit
def _band(
    x, table_ptr, first_row, num_table_rows,
    WIDTH: tl.constexpr, HEAD_WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, STEP: tl.constexpr, CLAMP: tl.constexpr,
):  # fmt: skip
    """x [BLOCK, BLOCK_H] times WIDTH table rows: first_row, first_row + STEP, ..."""
    row = first_row + STEP * tl.arange(0, WIDTH)
    if CLAMP:
        row = tl.minimum(tl.maximum(row, 0), num_table_rows - 1)
    table = load_table_rows(table_ptr, row, HEAD_WIDTH, BLOCK_H)
    return tl.dot(x, table.T, input_precision=PRECISION)


@triton.jit
def begin_row_band(
    x_rows, row_table_ptr, table_row, num_table_rows, memory,
    HEAD_WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr, SIGN: tl.constexpr,
):  # fmt: skip
    """Before a run of neighbouring tiles: what the first of them would have from a tile before it."""
    if not IS_INTERPRETED:
        first_row = table_row - SIGN * (BLOCK - 1)
        band = _band(x_rows, row_table_ptr, first_row, num_table_rows, BLOCK, HEAD_WIDTH, BLOCK_H, SIGN, True)
        store_rounded(memory, band, 3 * BLOCK + PADDING, x_rows.dtype)


@triton.jit
def position_terms(
    x_rows, x_columns, row_table_ptr, column_table_ptr, table_row, num_table_rows, memory, offset,
    HEAD_WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr, SIGN: tl.constexpr,
    HAS_ROW_TERM: tl.constexpr, HAS_COLUMN_TERM: tl.constexpr, CLAMP: tl.constexpr, IS_RUN: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """The position terms of a tile, float32 [BLOCK, BLOCK]; one of the two may be off.

    x_rows [BLOCK, BLOCK_H] meets row_table, x_columns [BLOCK, BLOCK_H] meets column_table; `table_row` is the table
    row of the tile's first row and first column. CLAMP: the window may leave the table, whose ends are saturated.
    IS_RUN: the tile is `offset` columns behind the first of a run of neighbours, and half of its row band is the one's
    before it. PARTS: products that the column band is made in: one is quickest, two need less room for the table.
    """
    dtype: tl.constexpr = x_rows.dtype
    ROW_STRIDE: tl.constexpr = 3 * BLOCK + PADDING
    COLUMN_STRIDE: tl.constexpr = 2 * BLOCK + PADDING
    first_row, first_column = table_row - SIGN * (BLOCK - 1), table_row + SIGN * (BLOCK - 1)
    terms = tl.zeros([BLOCK, BLOCK], tl.float32)
    if IS_INTERPRETED:
        diagonal = tl.arange(0, BLOCK)[None, :] - tl.arange(0, BLOCK)[:, None] + (BLOCK - 1)
        if HAS_ROW_TERM:
            band = _band(x_rows, row_table_ptr, first_row, num_table_rows, 2 * BLOCK, HEAD_WIDTH, BLOCK_H, SIGN, CLAMP)
            terms += tl.gather(band.to(dtype), diagonal, 1).to(tl.float32)
        if HAS_COLUMN_TERM:
            band = _band(
                x_columns, column_table_ptr, first_column, num_table_rows, 2 * BLOCK, HEAD_WIDTH, BLOCK_H, -SIGN, CLAMP
            )
            terms += tl.gather(band.to(dtype), diagonal, 1).T.to(tl.float32)
    elif (
        offset >= 0
    ):  # It is. What is loaded outside of a branch Triton keeps in two copies: there is no memory for it.
        odd = offset & BLOCK  # BLOCK in every other tile of a run, else 0
        program_barrier(table_row)  # the tile before has been read
        if HAS_ROW_TERM:
            if not IS_RUN:
                band = _band(x_rows, row_table_ptr, first_row, num_table_rows, BLOCK, HEAD_WIDTH, BLOCK_H, SIGN, CLAMP)
                store_rounded(place_of(memory, odd, dtype), band, ROW_STRIDE, dtype)
            # Three halves of a band have room. An even tile has the first and second, an odd one the second and third,
            # which is stored as the first, too, for the even tile that follows.
            band = _band(
                x_rows, row_table_ptr, first_row + SIGN * BLOCK, num_table_rows, BLOCK, HEAD_WIDTH, BLOCK_H, SIGN, CLAMP
            )
            store_rounded(place_of(memory, BLOCK + odd, dtype), band, ROW_STRIDE, dtype)
            if odd != 0:
                store_rounded(memory, band, ROW_STRIDE, dtype)
        if HAS_COLUMN_TERM:
            WIDTH: tl.constexpr = 2 * BLOCK // PARTS
            for part in tl.static_range(PARTS):
                band = _band(
                    x_columns, column_table_ptr, first_column - SIGN * part * WIDTH, num_table_rows,
                    WIDTH, HEAD_WIDTH, BLOCK_H, -SIGN, CLAMP,
                )  # fmt: skip
                place = place_of(memory, BLOCK * ROW_STRIDE + part * WIDTH, dtype)
                store_rounded(place, band, COLUMN_STRIDE, dtype)
        program_barrier(table_row)  # this tile has been written
        memory = anew(memory)
        if HAS_ROW_TERM:
            terms += load_slanted(
                place_of(memory, odd + BLOCK - 1, dtype), terms, BLOCK, ROW_STRIDE - 1, dtype, False
            ).to(tl.float32)
        if HAS_COLUMN_TERM:
            column_memory = place_of(memory, BLOCK * ROW_STRIDE + BLOCK - 1, dtype)
            terms += load_slanted(column_memory, terms, BLOCK, COLUMN_STRIDE - 1, dtype, True).to(tl.float32)
    return terms
