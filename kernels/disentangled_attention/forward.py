"""Forward pass of fused disentangled attention: one kernel, a program for BLOCK queries of one head of one document.

Scores, kept in units of PRESCALE (a power of two, so exact), are one product with the position terms as its
accumulator; softmax is online, in base 2. No tensor of the scores' size exists.
Used by: launch.py. Tested by: tests/kernels/test_triton_attention.py.
Not here: gradients (backward.py); pointers (attention_call.py); tile sizes (tile_sizes.py).
"""

import triton
import triton.language as tl

from disentangled.kernels.disentangled_attention.bands import band_memory, begin_row_band, position_terms
from disentangled.kernels.disentangled_attention.tiles import (
    DATA_DEPENDENT,
    PRECISION,
    anew,
    far_rows,
    find_tile,
    keep_bits,
    keep_tile,
    load_full_rows,
    load_live,
    load_live_rows,
    load_rows,
    multiply,
    program_anew,
    span_of,
    store_rows,
    window_of,
)


@triton.jit(do_not_specialize=DATA_DEPENDENT)
def forward_kernel(
    query_ptr, key_ptr, value_ptr, out_ptr, lse_ptr, key_table_ptr, query_table_ptr,
    live_ptr, key_whole_ptr, key_stop_ptr, map_q_ptr, cu_q_ptr, cu_k_ptr, sample_ptr, first_token_ptr,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    num_heads, num_queries, num_keys, num_all_queries,
    num_table_rows, table_offset, last_left, last_right, postscale,
    key_0, key_1, stream, layer, threshold, keep_scale,
    HEAD_WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr,
    HAS_C2P: tl.constexpr, HAS_P2C: tl.constexpr, HAS_FAR: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, IS_PACKED: tl.constexpr, PRESCALE: tl.constexpr,
):  # fmt: skip
    """Owns a tile of queries of one head; writes their context (rounded once) and log-sum-exp (base 2)."""
    document, row0, start_q, size_q = find_tile(tl.program_id(0), map_q_ptr, cu_q_ptr, num_queries, BLOCK, IS_PACKED)
    if row0 >= size_q:
        return
    start_k, size_k = span_of(document, cu_k_ptr, num_keys, IS_PACKED)
    whole = size_k
    if HAS_MASK:
        whole = tl.load(key_whole_ptr + document)
        size_k = tl.load(key_stop_ptr + document)
    head = tl.program_id(1)
    head_64, document_64 = head.to(tl.int64), document.to(tl.int64)
    dtype = query_ptr.dtype.element_ty

    query_ptr += head_64 * stride_qh
    key_ptr += head_64 * stride_kh
    value_ptr += head_64 * stride_vh
    if IS_PACKED:
        query_ptr += start_q.to(tl.int64) * stride_qt
        key_ptr += start_k.to(tl.int64) * stride_kt
        value_ptr += start_k.to(tl.int64) * stride_vt
    else:
        query_ptr += document_64 * stride_qb
        key_ptr += document_64 * stride_kb
        value_ptr += document_64 * stride_vb
    key_table_ptr += head_64 * num_table_rows * HEAD_WIDTH
    query_table_ptr += head_64 * num_table_rows * HEAD_WIDTH
    memory = band_memory(row0, dtype, BLOCK) if HAS_C2P or HAS_P2C else row0
    sample, first_token = tl.cast(0, tl.int64), tl.cast(0, tl.int32)
    if HAS_DROPOUT:
        sample = tl.load(sample_ptr + document)
        first_token = tl.load(first_token_ptr + document).to(tl.int32)

    query = load_rows(query_ptr, row0, size_q, stride_qt, HEAD_WIDTH, BLOCK, BLOCK_H)
    scaled_query = multiply(query, PRESCALE)
    maximum = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    accumulator = tl.zeros([BLOCK, BLOCK_H], tl.float32)
    no_bias = tl.zeros([BLOCK], tl.float32)
    BAND_PARTS: tl.constexpr = 2 if HAS_DROPOUT and BLOCK == 64 else 1
    first, stop = window_of(row0, size_k, last_left, last_right, BLOCK, 1, HAS_FAR)
    # Tiles without a dead key need no mask at all. Where the padding follows the keys, all but one are such.
    full = whole // BLOCK * BLOCK

    # side 0: keys far to the left; side 1: far to the right; side 2: the tiles between; side 3: those with dead keys.
    for side in tl.static_range(4):
        if HAS_FAR or side >= 2:
            row_bias, row_query = no_bias, scaled_query
            if side == 0:
                row_bias, row_query = far_rows(
                    query, key_table_ptr, query_table_ptr, 0, postscale,
                    HEAD_WIDTH, BLOCK_H, PRESCALE, HAS_C2P, HAS_P2C,
                )  # fmt: skip
                from_key, to_key = full * 0, tl.minimum(first, full)
            elif side == 1:
                row_bias, row_query = far_rows(
                    query, key_table_ptr, query_table_ptr, num_table_rows - 1, postscale,
                    HEAD_WIDTH, BLOCK_H, PRESCALE, HAS_C2P, HAS_P2C,
                )  # fmt: skip
                from_key, to_key = stop, full
            elif side == 2:
                from_key, to_key = first, tl.minimum(stop, full)
                if HAS_C2P:
                    begin_row_band(
                        query, key_table_ptr, table_offset + from_key - row0, num_table_rows, memory,
                        HEAD_WIDTH, BLOCK_H, BLOCK, 1,
                    )  # fmt: skip
            else:
                from_key, to_key = full, size_k
            for key0 in tl.range(from_key, to_key, BLOCK):
                if side == 3:
                    live = load_live(live_ptr, start_k, key0, size_k, BLOCK, HAS_MASK)
                    key = load_live_rows(key_ptr, key0, live, stride_kt, HEAD_WIDTH, BLOCK, BLOCK_H)
                    value = load_live_rows(value_ptr, key0, live, stride_vt, HEAD_WIDTH, BLOCK, BLOCK_H)
                else:
                    key = load_full_rows(key_ptr, key0, stride_kt, HEAD_WIDTH, BLOCK, BLOCK_H)
                    value = load_full_rows(value_ptr, key0, stride_vt, HEAD_WIDTH, BLOCK, BLOCK_H)
                if side < 2 or not (HAS_C2P or HAS_P2C):
                    scores = tl.dot(row_query, key.T, input_precision=PRECISION)
                else:
                    terms = position_terms(
                        query, key, key_table_ptr, query_table_ptr, table_offset + key0 - row0, num_table_rows,
                        memory, key0 - from_key,
                        HEAD_WIDTH, BLOCK_H, BLOCK, 1, HAS_C2P, HAS_P2C, side == 3, side == 2, BAND_PARTS,
                    )  # fmt: skip
                    scores = tl.dot(row_query, key.T, terms, input_precision=PRECISION)
                if side == 3:
                    scores += tl.where(live, 0.0, float("-inf"))[None, :]
                # One more tile of the online softmax.
                new_maximum = tl.maximum(maximum, tl.max(scores, 1) * postscale + row_bias)
                # A row whose keys are all dead so far: any finite reference will do.
                reference = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
                probabilities = tl.math.exp2(scores * postscale - (reference - row_bias)[:, None])
                shrink = tl.math.exp2(maximum - reference)
                total = total * shrink + tl.sum(probabilities, 1)
                if HAS_DROPOUT:
                    bits = keep_bits(
                        key_0, key_1, stream, layer, sample, first_token, head, row0, key0, threshold, BLOCK
                    )
                    probabilities = tl.where(keep_tile(bits, BLOCK), probabilities, 0.0)
                accumulator = accumulator * shrink[:, None]
                accumulator = tl.dot(probabilities.to(dtype), value, accumulator, input_precision=PRECISION)
                maximum = new_maximum

    # Anew, or it would be kept in registers through the loops. All of it costs instructions where there is no need.
    if HAS_DROPOUT:
        tile, head = program_anew(num_heads)
        head_64 = head.to(tl.int64)
        _, row0, start_q, size_q = find_tile(tile, map_q_ptr, cu_q_ptr, anew(num_queries), BLOCK, IS_PACKED)
    else:
        row0, size_q = anew(row0), anew(size_q)
    has_key = total > 0.0
    context = accumulator * tl.where(has_key, keep_scale / tl.where(has_key, total, 1.0), 0.0)[:, None]
    out = out_ptr + (start_q.to(tl.int64) * num_heads + head_64) * HEAD_WIDTH
    store_rows(out, context, row0, size_q, num_heads * HEAD_WIDTH, HEAD_WIDTH, BLOCK, BLOCK_H)
    # +inf for a query without a live key: its probabilities are zero again in the backward pass.
    lse = tl.where(has_key, maximum + tl.math.log2(tl.where(has_key, total, 1.0)), float("inf"))
    offs_m = row0 + tl.arange(0, BLOCK)
    tl.store(lse_ptr + head_64 * num_all_queries + start_q + offs_m, lse, mask=offs_m < size_q)
