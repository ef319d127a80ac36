"""Backward pass of fused disentangled attention: gradients of value, key and query, without atomics.

    P  = exp2(S - lse)     dP = keep * (dO V^T)     dS = P (dP - rowsum(O dO))
    dV = (keep P)^T dO     dK = dS^T Q + T' E_p2c   dQ = dS K + T E_c2p
    T[r, u] = dS[r, column of distance u], the scores' gradient with its rows sheared so that a column is a distance

Three kernels. `row_kernel`: rowsum(O dO), beside lse. `key_value_kernel`: a program owns keys, walks the queries,
recomputes the scores and keeps dK and dV in registers; it stores dS of the tiles that are not far once by rows of
queries and once by rows of keys. `query_kernel`: a program owns queries and gathers dQ from the stored dS. Where either
has done with the dS of its rows, it puts T there (shear.py), which table_gradients.py reads. Far tiles store nothing:
both kernels recompute them.
Every output has one writer and every sum one order, so gradients are reproducible bit for bit.

A row of the stored dS has `width` columns: all of them where no tile is far, else the widest window (tiles.window_of),
which begins `lead` columns before the row's own tile; and a tile more.
Used by: launch.py. Tested by: tests/kernels/test_triton_attention.py.
Not here: gradients of the tables (table_gradients.py).
"""

import triton
import triton.language as tl

from disentangled.kernels.disentangled_attention.bands import band_memory, begin_row_band, position_terms
from disentangled.kernels.disentangled_attention.keep_words import document_words, load_keep
from disentangled.kernels.disentangled_attention.shear import shear_memory, shear_rows
from disentangled.kernels.disentangled_attention.tiles import (
    DATA_DEPENDENT,
    PRECISION,
    anew,
    far_rows,
    find_tile,
    first_tile,
    load_clamped_rows,
    load_live,
    load_live_rows,
    load_rows,
    load_table_row,
    multiply,
    program_anew,
    program_barrier,
    span_of,
    store_rows,
    stored_origin,
    window_of,
)


@triton.jit(do_not_specialize=DATA_DEPENDENT)
def row_kernel(
    out_ptr, grad_out_ptr, lse_ptr, rows_ptr, map_q_ptr, cu_q_ptr, stride_gb, stride_gt, stride_gh,
    num_heads, num_queries, num_all_queries, keep_scale,
    HEAD_WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr, IS_PACKED: tl.constexpr,
):  # fmt: skip
    """Owns a tile of queries of one head; writes their lse and rowsum(O dO) / keep_scale, float32 [N, tiles, BLOCK, 2].

    A partial tile is filled up with lse = inf, so that P = 0 there: the other kernels read rows without a mask.
    """
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    document, row0, start, size = find_tile(tile, map_q_ptr, cu_q_ptr, num_queries, BLOCK, IS_PACKED)
    if row0 >= size:
        return
    offs = tl.arange(0, BLOCK)
    is_there = offs < size - row0
    out_ptr += (start.to(tl.int64) * num_heads + head) * HEAD_WIDTH
    out = load_rows(out_ptr, row0, size, num_heads * HEAD_WIDTH, HEAD_WIDTH, BLOCK, BLOCK_H)
    grad_out_ptr += head * stride_gh
    if IS_PACKED:
        grad_out_ptr += start.to(tl.int64) * stride_gt
    else:
        grad_out_ptr += document.to(tl.int64) * stride_gb
    grad_out = load_rows(grad_out_ptr, row0, size, stride_gt, HEAD_WIDTH, BLOCK, BLOCK_H)
    delta = tl.sum(out.to(tl.float32) * grad_out.to(tl.float32), 1) / keep_scale
    lse = tl.load(lse_ptr + head * num_all_queries + start + row0 + offs, mask=is_there, other=float("inf"))
    pointers = rows_ptr + 2 * ((head * tl.num_programs(0) + tile) * BLOCK + offs)
    tl.store(pointers, lse)
    tl.store(pointers + 1, delta)


@triton.jit
def _end_term(sums_ptr, table_ptr, row0, num_rows, num_sums, num_table_rows, HEAD_WIDTH: tl.constexpr,
              BLOCK_H: tl.constexpr, BLOCK: tl.constexpr, PRESCALE: tl.constexpr):  # fmt: skip
    """What far tiles give rows through the two ends of their own table, [BLOCK, BLOCK_H] in float32."""
    offs = row0 + tl.arange(0, BLOCK)
    left = tl.load(sums_ptr + offs, mask=offs < num_rows, other=0.0)
    right = tl.load(sums_ptr + num_sums + offs, mask=offs < num_rows, other=0.0)
    left_row = load_table_row(table_ptr, 0, HEAD_WIDTH, BLOCK_H) / PRESCALE
    right_row = load_table_row(table_ptr, num_table_rows - 1, HEAD_WIDTH, BLOCK_H) / PRESCALE
    return left[:, None] * left_row[None, :] + right[:, None] * right_row[None, :]


@triton.jit
def _store_grad_scores(
    grad_scores, by_query_ptr, by_key_ptr, key0, query0, size_k, size_q, width_q, width_k, lead_q, lead_k,
    BLOCK: tl.constexpr, HAS_FAR: tl.constexpr, HAS_P2C: tl.constexpr,
):  # fmt: skip
    """dS^T [keys, queries] of a tile, once by rows of queries and once by rows of keys."""
    offs = tl.arange(0, BLOCK)
    width_q, width_k = anew(width_q // 16) * 16, anew(width_k // 16) * 16  # or 16 places would be kept in registers
    if HAS_P2C:
        column = query0 - stored_origin(key0, lead_q, HAS_FAR)
        pointers = by_key_ptr + key0 * tl.cast(width_q, tl.int64) + column + offs[:, None] * width_q + offs[None, :]
        tl.store(pointers, grad_scores, mask=(offs < size_k - key0)[:, None])
    column = key0 - stored_origin(query0, lead_k, HAS_FAR)
    pointers = by_query_ptr + query0 * tl.cast(width_k, tl.int64) + column + offs[:, None] * width_k + offs[None, :]
    tl.store(pointers, grad_scores.T, mask=(offs < size_q - query0)[:, None])


@triton.jit
def _add_tile(
    grad_key, grad_value, scores, row_bias, live, query, grad_out, value, rows_ptr, words_ptr, word_width, query0,
    postscale,
    BLOCK: tl.constexpr, HAS_ROW_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_DROPOUT: tl.constexpr,
):  # fmt: skip
    """dK and dV with one more tile, and its dS^T [keys, queries] in float32; `scores` are transposed, too.

    The order of the loads, and dS without a second selection, are what lets 64 x 64 tiles do without spills.
    """
    row_ptrs = rows_ptr + 2 * query0 + 2 * tl.arange(0, BLOCK)
    lse = tl.load(row_ptrs)
    if HAS_ROW_BIAS:
        probabilities = tl.math.exp2(scores * postscale + (row_bias[:, None] - lse[None, :]))
    else:
        probabilities = tl.math.exp2(scores * postscale - lse[None, :])
    if HAS_MASK:
        probabilities = tl.where(live[:, None], probabilities, 0.0)
    if HAS_DROPOUT:
        kept = tl.where(load_keep(words_ptr, word_width, query0, BLOCK), probabilities, 0.0)
        grad_value = tl.dot(kept.to(value.dtype), grad_out, grad_value, input_precision=PRECISION)
        grad_probabilities = tl.dot(value, grad_out.T, input_precision=PRECISION)
        grad_scores = kept * grad_probabilities - probabilities * tl.load(row_ptrs + 1)[None, :]
    else:
        grad_probabilities = tl.dot(value, grad_out.T, input_precision=PRECISION)
        grad_value = tl.dot(probabilities.to(value.dtype), grad_out, grad_value, input_precision=PRECISION)
        grad_scores = probabilities * (grad_probabilities - tl.load(row_ptrs + 1)[None, :])
    grad_key = tl.dot(grad_scores.to(value.dtype), query, grad_key, input_precision=PRECISION)
    return grad_key, grad_value, grad_scores


@triton.jit(do_not_specialize=DATA_DEPENDENT)
def key_value_kernel(
    query_ptr, key_ptr, value_ptr, grad_out_ptr, rows_ptr, grad_key_ptr, grad_value_ptr,
    far_key_ptr, far_value_ptr, by_query_ptr, by_key_ptr, key_table_ptr, query_table_ptr, sums_ptr,
    words_ptr, live_ptr, key_stop_ptr, map_k_ptr, cu_q_ptr, cu_k_ptr,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_gb, stride_gt, stride_gh,
    num_heads, num_queries, num_keys, num_all_queries, num_all_keys, num_sums, width_q, width_k, lead_q, lead_k,
    num_table_rows, table_offset, last_left, last_right, postscale, scale,
    num_row_tiles, num_word_rows, word_width, keep_scale, first_head,
    HEAD_WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr,
    HAS_C2P: tl.constexpr, HAS_P2C: tl.constexpr, HAS_FAR: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, IS_PACKED: tl.constexpr, PRESCALE: tl.constexpr,
    IS_FAR: tl.constexpr,
):  # fmt: skip
    """Owns a tile of keys of one head; writes their dK and dV, dS of their window by rows of queries, and T of theirs.

    Scores are transposed, [keys, queries], so that P^T and dS^T are left operands and stay in registers. In longer
    sequences a launch with IS_FAR goes first: it does the far tiles, whose sums, float32, the other one adds, and
    their part of the gradients of the table's ends. (In one launch the two have too many registers between them.)
    """
    document, row0, start_k, size_k = find_tile(tl.program_id(0), map_k_ptr, cu_k_ptr, num_keys, BLOCK, IS_PACKED)
    local_head = tl.program_id(1)
    offs_r = tl.arange(0, BLOCK)
    if row0 >= size_k:
        return
    start_q, size_q = span_of(document, cu_q_ptr, num_queries, IS_PACKED)
    head = first_head + local_head
    head_64, document_64, local_head_64 = head.to(tl.int64), document.to(tl.int64), local_head.to(tl.int64)
    dtype = key_ptr.dtype.element_ty

    query_ptr += head_64 * stride_qh
    key_ptr += head_64 * stride_kh
    value_ptr += head_64 * stride_vh
    grad_out_ptr += head_64 * stride_gh
    if IS_PACKED:
        query_ptr += start_q.to(tl.int64) * stride_qt
        key_ptr += start_k.to(tl.int64) * stride_kt
        value_ptr += start_k.to(tl.int64) * stride_vt
        grad_out_ptr += start_q.to(tl.int64) * stride_gt
    else:
        query_ptr += document_64 * stride_qb
        key_ptr += document_64 * stride_kb
        value_ptr += document_64 * stride_vb
        grad_out_ptr += document_64 * stride_gb
    rows_ptr += 2 * (head_64 * num_row_tiles + first_tile(document, start_q, num_queries, BLOCK, IS_PACKED)) * BLOCK
    by_query_ptr += (local_head_64 * num_all_queries + start_q) * width_k
    by_own_key_ptr = by_key_ptr + (local_head_64 * num_all_keys + start_k) * width_q
    key_table_ptr += head_64 * num_table_rows * HEAD_WIDTH
    query_table_ptr += head_64 * num_table_rows * HEAD_WIDTH
    if HAS_DROPOUT:
        words_ptr = document_words(
            words_ptr + row0, document, local_head, start_q, num_queries, num_word_rows, word_width, IS_PACKED
        )

    live = load_live(live_ptr, start_k, row0, size_k, BLOCK, HAS_MASK)
    if HAS_MASK and IS_FAR:
        # Keys from key_stop on are dead: no other kernel looks at what is stored for them.
        size_q = tl.where(row0 < tl.load(key_stop_ptr + document), size_q, 0)
    first, stop = window_of(row0, size_q, last_left, last_right, BLOCK, -1, HAS_FAR)
    if HAS_MASK and not IS_FAR:
        stop = tl.where(row0 < tl.load(key_stop_ptr + document), stop, first)

    key = load_live_rows(key_ptr, row0, live, stride_kt, HEAD_WIDTH, BLOCK, BLOCK_H)
    value = load_live_rows(value_ptr, row0, live, stride_vt, HEAD_WIDTH, BLOCK, BLOCK_H)
    if IS_FAR:
        grad_key = tl.zeros([BLOCK, BLOCK_H], tl.float32)
        grad_value = tl.zeros([BLOCK, BLOCK_H], tl.float32)
        # side 0: queries far to the right of the keys, the left end of the table; side 1: far to the left.
        for side in range(2):
            end = tl.where(side == 0, 0, num_table_rows - 1)
            from_query, to_query = tl.where(side == 0, stop, 0), tl.where(side == 0, size_q, first)
            row_bias, far_key = far_rows(
                key, query_table_ptr, key_table_ptr, end, postscale, HEAD_WIDTH, BLOCK_H, PRESCALE, HAS_P2C, HAS_C2P
            )
            row_sums = tl.zeros([BLOCK], tl.float32)
            for query0 in tl.range(from_query, to_query, BLOCK):
                query = load_rows(query_ptr, query0, size_q, stride_qt, HEAD_WIDTH, BLOCK, BLOCK_H)
                grad_out = load_rows(grad_out_ptr, query0, size_q, stride_gt, HEAD_WIDTH, BLOCK, BLOCK_H)
                scores = tl.dot(far_key, query.T, input_precision=PRECISION)
                grad_key, grad_value, grad_scores = _add_tile(
                    grad_key, grad_value, scores, row_bias, live, query, grad_out, value, rows_ptr, words_ptr,
                    word_width, query0, postscale, BLOCK, True, HAS_MASK, HAS_DROPOUT,
                )  # fmt: skip
                row_sums += tl.sum(grad_scores, 1)
            offs = row0 + offs_r
            pointers = sums_ptr + side * num_sums + local_head_64 * num_all_keys + start_k + offs
            tl.store(pointers, row_sums, mask=offs < size_k)
        row0, size_k = anew(row0), anew(size_k)
        out = (anew(local_head).to(tl.int64) * num_all_keys + anew(start_k)) * HEAD_WIDTH
        store_rows(far_key_ptr + out, grad_key, row0, size_k, HEAD_WIDTH, HEAD_WIDTH, BLOCK, BLOCK_H)
        store_rows(far_value_ptr + out, grad_value, row0, size_k, HEAD_WIDTH, HEAD_WIDTH, BLOCK, BLOCK_H)
        return

    grad_key = tl.zeros([BLOCK, BLOCK_H], tl.float32)
    grad_value = tl.zeros([BLOCK, BLOCK_H], tl.float32)
    scaled_key = multiply(key, PRESCALE)
    memory = band_memory(row0, dtype, BLOCK) if HAS_C2P or HAS_P2C else row0
    if HAS_P2C:
        begin_row_band(
            key, query_table_ptr, table_offset + row0 - first, num_table_rows, memory, HEAD_WIDTH, BLOCK_H, BLOCK, -1
        )
    # What could be computed once for all turns has no room in registers.
    for query0 in tl.range(first, stop, BLOCK, disable_licm=True):
        query = load_clamped_rows(query_ptr, query0, size_q, stride_qt, HEAD_WIDTH, BLOCK, BLOCK_H)
        grad_out = load_clamped_rows(grad_out_ptr, query0, size_q, stride_gt, HEAD_WIDTH, BLOCK, BLOCK_H)
        if HAS_C2P or HAS_P2C:
            terms = position_terms(
                key, query, query_table_ptr, key_table_ptr, table_offset + row0 - query0, num_table_rows,
                memory, query0 - first, HEAD_WIDTH, BLOCK_H, BLOCK, -1, HAS_P2C, HAS_C2P, False, True, 1,
            )  # fmt: skip
            scores = tl.dot(scaled_key, query.T, terms, input_precision=PRECISION)
        else:
            scores = tl.dot(scaled_key, query.T, input_precision=PRECISION)
        grad_key, grad_value, grad_scores = _add_tile(
            grad_key, grad_value, scores, None, live, query, grad_out, value, rows_ptr, words_ptr,
            word_width, query0, postscale, BLOCK, False, HAS_MASK, HAS_DROPOUT,
        )  # fmt: skip
        _store_grad_scores(
            grad_scores.to(dtype), by_query_ptr, by_own_key_ptr, row0, query0, size_k, size_q,
            width_q, width_k, lead_q, lead_k, BLOCK, HAS_FAR, HAS_P2C,
        )  # fmt: skip

    # Everything anew, or it would be kept in registers through the loop.
    tile, local_head = program_anew(num_heads)
    local_head_64 = local_head.to(tl.int64)
    document, row0, start_k, size_k = find_tile(tile, map_k_ptr, cu_k_ptr, anew(num_keys), BLOCK, IS_PACKED)
    _, size_q = span_of(document, cu_q_ptr, anew(num_queries), IS_PACKED)
    first, stop = window_of(row0, size_q, last_left, last_right, BLOCK, -1, HAS_FAR)
    if HAS_MASK:
        stop = tl.where(row0 < tl.load(key_stop_ptr + document), stop, first)
    own_key = local_head_64 * num_all_keys + start_k
    far_out = own_key * HEAD_WIDTH
    if HAS_FAR:
        grad_value += load_rows(far_value_ptr + far_out, row0, size_k, HEAD_WIDTH, HEAD_WIDTH, BLOCK, BLOCK_H)
    out = (start_k.to(tl.int64) * num_heads + first_head + local_head_64) * HEAD_WIDTH
    stride_out = num_heads * HEAD_WIDTH
    store_rows(grad_value_ptr + out, grad_value * keep_scale, row0, size_k, stride_out, HEAD_WIDTH, BLOCK, BLOCK_H)
    if HAS_P2C:
        program_barrier(row0)  # dS by rows of keys has been written, by this program
        sheared = shear_rows(
            tl.zeros([BLOCK, BLOCK_H], tl.float32), by_key_ptr + own_key * width_q, query_table_ptr, memory,
            row0, size_k, first, stop, size_q, stored_origin(row0, lead_q, HAS_FAR), width_q, table_offset,
            HEAD_WIDTH, BLOCK_H, BLOCK, -1,
        )  # fmt: skip
        grad_key += sheared / PRESCALE
    if HAS_FAR:
        grad_key += load_rows(far_key_ptr + far_out, row0, size_k, HEAD_WIDTH, HEAD_WIDTH, BLOCK, BLOCK_H)
        if HAS_P2C:
            grad_key += _end_term(
                sums_ptr + own_key, query_table_ptr, row0, size_k, num_sums, num_table_rows,
                HEAD_WIDTH, BLOCK_H, BLOCK, PRESCALE,
            )  # fmt: skip
    store_rows(grad_key_ptr + out, grad_key * scale, row0, size_k, stride_out, HEAD_WIDTH, BLOCK, BLOCK_H)


@triton.jit(do_not_specialize=DATA_DEPENDENT)
def query_kernel(
    query_ptr, key_ptr, value_ptr, grad_out_ptr, rows_ptr, grad_query_ptr,
    by_query_ptr, key_table_ptr, query_table_ptr, sums_ptr,
    words_ptr, live_ptr, key_stop_ptr, map_q_ptr, cu_q_ptr, cu_k_ptr,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_gb, stride_gt, stride_gh,
    num_heads, num_queries, num_keys, num_all_queries, num_sums, width_k, lead_k,
    num_table_rows, table_offset, last_left, last_right, postscale, scale,
    num_row_tiles, num_word_rows, word_width, first_head,
    HEAD_WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr,
    HAS_C2P: tl.constexpr, HAS_P2C: tl.constexpr, HAS_FAR: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, IS_PACKED: tl.constexpr, PRESCALE: tl.constexpr,
):  # fmt: skip
    """Owns a tile of queries of one head; writes their dQ, from the stored dS and, for far tiles, new scores; and T."""
    document, row0, start_q, size_q = find_tile(tl.program_id(0), map_q_ptr, cu_q_ptr, num_queries, BLOCK, IS_PACKED)
    local_head = tl.program_id(1)
    if row0 >= size_q:
        return
    start_k, size_k = span_of(document, cu_k_ptr, num_keys, IS_PACKED)
    if HAS_MASK:
        size_k = tl.load(key_stop_ptr + document)
    head = first_head + local_head
    head_64, document_64, local_head_64 = head.to(tl.int64), document.to(tl.int64), local_head.to(tl.int64)
    dtype = query_ptr.dtype.element_ty

    query_ptr += head_64 * stride_qh
    key_ptr += head_64 * stride_kh
    value_ptr += head_64 * stride_vh
    grad_out_ptr += head_64 * stride_gh
    if IS_PACKED:
        query_ptr += start_q.to(tl.int64) * stride_qt
        key_ptr += start_k.to(tl.int64) * stride_kt
        value_ptr += start_k.to(tl.int64) * stride_vt
        grad_out_ptr += start_q.to(tl.int64) * stride_gt
    else:
        query_ptr += document_64 * stride_qb
        key_ptr += document_64 * stride_kb
        value_ptr += document_64 * stride_vb
        grad_out_ptr += document_64 * stride_gb
    sums_ptr += local_head_64 * num_all_queries + start_q
    by_query_ptr += (local_head_64 * num_all_queries + start_q) * width_k
    key_table_ptr += head_64 * num_table_rows * HEAD_WIDTH
    query_table_ptr += head_64 * num_table_rows * HEAD_WIDTH

    grad_query = tl.zeros([BLOCK, BLOCK_H], tl.float32)
    first, stop = window_of(row0, size_k, last_left, last_right, BLOCK, 1, HAS_FAR)
    if HAS_FAR:
        if HAS_DROPOUT:
            words_ptr = document_words(
                words_ptr, document, local_head, start_q, num_queries, num_word_rows, word_width, IS_PACKED
            )
        offs_m = row0 + tl.arange(0, BLOCK)
        row_ptrs = rows_ptr + 2 * ((head_64 * num_row_tiles + tl.program_id(0)) * BLOCK + tl.arange(0, BLOCK))
        lse, delta = tl.load(row_ptrs), tl.load(row_ptrs + 1)
        query = load_rows(query_ptr, row0, size_q, stride_qt, HEAD_WIDTH, BLOCK, BLOCK_H)
        grad_out = load_rows(grad_out_ptr, row0, size_q, stride_gt, HEAD_WIDTH, BLOCK, BLOCK_H)
        # side 0: keys far to the left, the left end of the table; side 1: far to the right.
        for side in range(2):
            end = tl.where(side == 0, 0, num_table_rows - 1)
            from_key, to_key = tl.where(side == 0, 0, stop), tl.where(side == 0, first, size_k)
            row_bias, row_query = far_rows(
                query, key_table_ptr, query_table_ptr, end, postscale, HEAD_WIDTH, BLOCK_H, PRESCALE, HAS_C2P, HAS_P2C
            )
            row_sums = tl.zeros([BLOCK], tl.float32)
            for key0 in tl.range(from_key, to_key, BLOCK):
                live = load_live(live_ptr, start_k, key0, size_k, BLOCK, HAS_MASK)
                key = load_live_rows(key_ptr, key0, live, stride_kt, HEAD_WIDTH, BLOCK, BLOCK_H)
                value = load_live_rows(value_ptr, key0, live, stride_vt, HEAD_WIDTH, BLOCK, BLOCK_H)
                scores = tl.dot(row_query, key.T, input_precision=PRECISION)
                scores += tl.where(live, 0.0, float("-inf"))[None, :]
                probabilities = tl.math.exp2(scores * postscale + (row_bias - lse)[:, None])
                grad_probabilities = tl.dot(grad_out, value.T, input_precision=PRECISION)
                if HAS_DROPOUT:
                    keep = load_keep(words_ptr + key0, word_width, row0, BLOCK).T
                    grad_probabilities = tl.where(keep, grad_probabilities, 0.0)
                grad_scores = probabilities * (grad_probabilities - delta[:, None])
                row_sums += tl.sum(grad_scores, 1)
                grad_query = tl.dot(grad_scores.to(dtype), key, grad_query, input_precision=PRECISION)
            tl.store(sums_ptr + side * num_sums + offs_m, row_sums, mask=offs_m < size_q)
        if HAS_C2P:
            tl.debug_barrier()  # the sums have been written, by this program
            grad_query += _end_term(
                sums_ptr, key_table_ptr, row0, size_q, num_sums, num_table_rows, HEAD_WIDTH, BLOCK_H, BLOCK, PRESCALE
            )

    offs = tl.arange(0, BLOCK)
    in_document = (offs < size_q - row0)[:, None]
    rows_ptr = by_query_ptr + row0 * tl.cast(width_k, tl.int64)
    for key0 in tl.range(first, stop, BLOCK):
        pointers = rows_ptr + (key0 - stored_origin(row0, lead_k, HAS_FAR)) + offs[:, None] * width_k + offs[None, :]
        grad_scores = tl.load(pointers, mask=in_document, other=0.0)
        if key0 + BLOCK > size_k:  # what stands past the last key is not defined
            grad_scores = tl.where((key0 + offs < size_k)[None, :], grad_scores, 0.0)
        if HAS_MASK:
            live = load_live(live_ptr, start_k, key0, size_k, BLOCK, HAS_MASK)
            key = load_live_rows(key_ptr, key0, live, stride_kt, HEAD_WIDTH, BLOCK, BLOCK_H)
        else:
            key = load_rows(key_ptr, key0, size_k, stride_kt, HEAD_WIDTH, BLOCK, BLOCK_H)
        grad_query = tl.dot(grad_scores, key, grad_query, input_precision=PRECISION)
    if HAS_C2P:
        sheared = shear_rows(
            tl.zeros([BLOCK, BLOCK_H], tl.float32), by_query_ptr, key_table_ptr, shear_memory(row0, dtype, BLOCK), row0,
            size_q, first, stop, size_k, stored_origin(row0, lead_k, HAS_FAR), width_k, table_offset,
            HEAD_WIDTH, BLOCK_H, BLOCK, 1,
        )  # fmt: skip
        grad_query += sheared / PRESCALE
    out = (start_q.to(tl.int64) * num_heads + head_64) * HEAD_WIDTH
    store_rows(
        grad_query_ptr + out, grad_query * scale, row0, size_q, num_heads * HEAD_WIDTH, HEAD_WIDTH, BLOCK, BLOCK_H
    )
