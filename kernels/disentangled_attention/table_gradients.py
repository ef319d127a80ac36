"""Gradients of the expanded tables: a program owns a block of distances and walks the stored T.

    dE_c2p[u] = sum over rows r of T[r, u] q_r       dE_p2c[u] = the same with keys, by rows of keys

T is dS with its rows sheared, as shear.py has stored it by tiles: of a block of distances a plain matrix of all rows.
The distances' sums stay in registers, so there is one writer for each and no atomic. Tokens are split into a few parts
that fold_kernel adds up.
Used by: launch.py. Tested by: tests/kernels/test_triton_attention.py.
Not here: distances to slots (distance_tables.fold_kernel); far tiles (backward.py).
"""

import triton
import triton.language as tl

from disentangled.kernels.disentangled_attention.tiles import (
    DATA_DEPENDENT,
    PRECISION,
    find_tile,
    load_live,
    load_live_rows,
    load_rows,
    span_of,
    stored_origin,
    window_of,
)


@triton.jit(do_not_specialize=DATA_DEPENDENT)
def table_gradient_kernel(
    x_ptr, grad_scores_ptr, partial_ptr, live_ptr, key_stop_ptr, map_ptr, cu_rows_ptr, cu_columns_ptr,
    stride_xb, stride_xt, stride_xh,
    num_rows, num_columns, num_all_rows, width, lead, num_tiles,
    first_block, num_table_rows, table_offset, last_left, last_right, scale, first_head,
    HEAD_WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr, SIGN: tl.constexpr, SPLITS: tl.constexpr,
    HAS_FAR: tl.constexpr, HAS_MASK: tl.constexpr, IS_PACKED: tl.constexpr,
):  # fmt: skip
    """Owns a block of distances of one head and every SPLITS-th tile of tokens; writes partial [SPLITS, n, U, H].

    Rows are queries (SIGN = 1) or keys (SIGN = -1), and x holds them. Block n has the distances, column minus row, of
    n * BLOCK - (BLOCK - 1) .. n * BLOCK, and those of row tile R stand where its dS had column tile R + n.
    """
    local_head, split = tl.program_id(1), tl.program_id(2)
    shift = (first_block + tl.program_id(0)) * BLOCK
    x_ptr += (first_head + local_head).to(tl.int64) * stride_xh
    grad_scores_ptr += local_head.to(tl.int64) * num_all_rows * width
    offs_u, offs_h = tl.arange(0, BLOCK), tl.arange(0, BLOCK_H)
    total = tl.zeros([BLOCK, BLOCK_H], tl.float32)
    for tile in tl.range(split, num_tiles, SPLITS):
        document, row0, start, size = find_tile(tile + split * 0, map_ptr, cu_rows_ptr, num_rows, BLOCK, IS_PACKED)
        _, size_columns = span_of(document, cu_columns_ptr, num_columns, IS_PACKED)
        if HAS_MASK:
            if SIGN == 1:
                size_columns = tl.load(key_stop_ptr + document)
            else:
                size = tl.load(key_stop_ptr + document)
        first, stop = window_of(row0, size_columns, last_left, last_right, BLOCK, SIGN, HAS_FAR)
        column0 = row0 + shift
        if (row0 < size) & (first < stop) & (column0 >= first) & (column0 <= stop):
            base = (
                grad_scores_ptr + (start + row0).to(tl.int64) * width + (column0 - stored_origin(row0, lead, HAS_FAR))
            )
            pointers = base + offs_u[:, None] * width + offs_u[None, :]
            sheared = tl.load(pointers, mask=(offs_u < size - row0)[:, None], other=0.0)
            if IS_PACKED:
                rows_ptr = x_ptr + start.to(tl.int64) * stride_xt
            else:
                rows_ptr = x_ptr + document.to(tl.int64) * stride_xb
            if HAS_MASK and SIGN == -1:  # what a dead key holds must not meet even a zero
                live = load_live(live_ptr, start, row0, size, BLOCK, HAS_MASK)
                x = load_live_rows(rows_ptr, row0, live, stride_xt, HEAD_WIDTH, BLOCK, BLOCK_H)
            else:
                x = load_rows(rows_ptr, row0, size, stride_xt, HEAD_WIDTH, BLOCK, BLOCK_H)
            total = tl.dot(sheared.T, x, total, input_precision=PRECISION)
    row = table_offset + SIGN * (shift - (BLOCK - 1) + offs_u)
    base = (split * tl.num_programs(1) + local_head).to(tl.int64) * num_table_rows
    mask = ((row >= 0) & (row < num_table_rows))[:, None] & (offs_h < HEAD_WIDTH)[None, :]
    tl.store(partial_ptr + (base + row[:, None]) * HEAD_WIDTH + offs_h[None, :], total * scale, mask=mask)


@triton.jit(do_not_specialize=DATA_DEPENDENT)
def end_gradient_kernel(
    x_ptr, sums_ptr, ends_ptr, stride_xb, stride_xt, stride_xh, num_rows, num_all_rows, num_sums, scale, first_head,
    HEAD_WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Owns BLOCK tokens of one head; writes what their far tiles give to the table's two ends, [tiles, n, 2, H].

    sums [2, n, tokens] holds the rowsums of dS over tiles far to the left and far to the right.
    """
    local_head = tl.program_id(1)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    offs_h = tl.arange(0, BLOCK_H)
    row = (token // num_rows).to(tl.int64) * stride_xb + (token % num_rows).to(tl.int64) * stride_xt
    row += (first_head + local_head).to(tl.int64) * stride_xh
    for end in tl.static_range(2):
        offs = end * num_sums + local_head.to(tl.int64) * num_all_rows + token
        sums = tl.load(sums_ptr + offs, mask=token < num_all_rows, other=0.0)
        # What a dead key holds must not meet even a zero.
        mask = (sums != 0.0)[:, None] & (offs_h < HEAD_WIDTH)[None, :]
        x = tl.load(x_ptr + row[:, None] + offs_h[None, :], mask=mask, other=0.0).to(tl.float32)
        out = ends_ptr + ((tl.program_id(0) * tl.num_programs(1) + local_head) * 2 + end) * HEAD_WIDTH + offs_h
        tl.store(out, tl.sum(sums[:, None] * x, 0) * scale, mask=offs_h < HEAD_WIDTH)
