"""The scores' gradient with its rows sheared, so that a column is a distance: T E for dQ and dK, and T for the tables.

    T[r, w] = dS[r, c] in the block of distances c - r = w - (BLOCK - 1) + a multiple of BLOCK

The stored dS of BLOCK rows is read tile by tile, and a block of T is two neighbouring tiles read along slanted rows of
the program's own memory (own_memory.py). T is stored where dS was, in one block more, for table_gradients.py: there a
block of distances of all rows is a plain matrix. Columns that do not exist are zero.
Used by: backward.py. Tested by: tests/kernels/test_triton_attention.py, tests/ptx/test_compiled_kernels.py.
"""

import triton
import triton.language as tl

from disentangled.kernels.disentangled_attention.own_memory import (
    PADDING,
    load_slanted,
    own_memory,
    place_of,
    store_loaded,
)
from disentangled.kernels.disentangled_attention.tiles import (
    IS_INTERPRETED,
    PRECISION,
    anew,
    load_table_rows,
    program_barrier,
)


@triton.jit
def shear_memory(scalar, dtype: tl.constexpr, BLOCK: tl.constexpr):
    """Address of room for two tiles and one of them again; `scalar` is any. Call it once, if not band_memory."""
    return own_memory(scalar, BLOCK * (3 * BLOCK + PADDING), dtype)


@triton.jit
def shear_rows(
    accumulator, grad_scores_ptr, table_ptr, memory, row0, num_rows, first, stop, num_columns, origin, width,
    table_offset,
    HEAD_WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr, SIGN: tl.constexpr,
):  # fmt: skip
    """accumulator [BLOCK, BLOCK_H] + T E, and T in place of the dS of rows row0 .. row0 + BLOCK - 1.

    dS has tiles of columns first .. stop - 1, of which num_columns are in the document, in rows of `width` from column
    `origin` on; T has one tile more, unless there is none. No thread may still be reading from `memory`.
    """
    dtype: tl.constexpr = grad_scores_ptr.dtype.element_ty
    STRIDE: tl.constexpr = 3 * BLOCK + PADDING
    offs = tl.arange(0, BLOCK)
    in_document = (offs < num_rows - row0)[:, None]
    rows_ptr = grad_scores_ptr + row0 * tl.cast(width, tl.int64) - origin
    last = tl.minimum(stop, num_columns)
    whole = first + tl.maximum(last - first, 0) // BLOCK * BLOCK
    end = tl.where(first < stop, stop + BLOCK, first)
    before = tl.zeros([BLOCK, BLOCK], dtype)
    if not IS_INTERPRETED:
        store_loaded(memory, before, STRIDE)
    # part 0: tiles that are wholly in the document; part 1: the last, if it is not, and the block behind it.
    for part in tl.static_range(2):
        from_column, to_column = (first, whole) if part == 0 else (whole, end)
        # One stage: loads must not be ahead of stores.
        for column0 in tl.range(from_column, to_column, BLOCK, num_stages=1):
            pointers = rows_ptr + column0 + offs[:, None] * width + offs[None, :]
            tile = tl.load(pointers, mask=in_document, other=0.0)
            if part == 1:  # what stands behind the last column is not defined
                tile = tl.where((column0 + offs < last)[None, :], tile, 0.0)
            if IS_INTERPRETED:
                column = offs[:, None] + offs[None, :] + 1 - BLOCK
                old = tl.gather(before, tl.minimum(column + BLOCK, BLOCK - 1), 1)
                sheared = tl.where(column < 0, old, tl.gather(tile, tl.maximum(column, 0), 1))
                before = tile
            else:
                # Three tiles have room. An even one is the second, an odd one the third, and the first of the next.
                odd = (column0 - first) & BLOCK
                program_barrier(row0)  # the block before has been read
                store_loaded(place_of(memory, BLOCK + odd, dtype), tile, STRIDE)
                if odd != 0:
                    store_loaded(memory, tile, STRIDE)
                program_barrier(row0)  # this tile has been written
                sheared = load_slanted(
                    place_of(anew(memory), odd + 1, dtype), accumulator, BLOCK, STRIDE + 1, dtype, False
                )
            table_row = table_offset + SIGN * (column0 - row0 - (BLOCK - 1) + offs)
            table = load_table_rows(table_ptr, table_row, HEAD_WIDTH, BLOCK_H)
            accumulator = tl.dot(sheared, table, accumulator, input_precision=PRECISION)
            tl.store(pointers, sheared, mask=in_document)
    return accumulator
