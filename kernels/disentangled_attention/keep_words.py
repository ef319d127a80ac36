"""Dropout's decisions for the backward pass: drawn once, one bit each, 32 queries of a key to a word.

Drawn inside backward's kernels they would take the registers that large tiles need, and be drawn again by each. So a
kernel of its own draws those of some heads, and the others read two words for each row of a tile of 64.

Words are int32 [rows, width]: a column is a key of a document, a row 32 of its queries, query 32 r + b in bit b of row
r. Document n's rows begin at n * ceil(T / 32) where documents are padded to T queries, and at cu_seqlens[n] // 32 + n
where they are packed.
Used by: launch.py, backward.py. Tested by: tests/kernels/test_triton_attention.py.
Not here: which are kept (dropout.py); the forward pass, which draws them as it goes (tiles.keep_bits).
"""

import triton
import triton.language as tl

from disentangled.kernels import counter_rng_triton
from disentangled.kernels.disentangled_attention.tiles import (
    DATA_DEPENDENT,
    HEAD_SHIFT,
    find_tile,
    first_tile,
    span_of,
)

WORD_QUERIES = 32  # bits of a word; written out in the kernels, whose interpreter divides no int by a constexpr


@triton.jit
def _append(words, number, limit):
    """The words with one more bit, set where a 16-bit number is below the limit: the difference wraps there."""
    return (words << 1) | ((number - limit) >> 31)


@triton.jit(do_not_specialize=DATA_DEPENDENT)
def keep_words_kernel(
    words_ptr, map_ptr, cu_q_ptr, cu_k_ptr, sample_ptr, first_token_ptr,
    num_queries, num_keys, num_rows, width, key_0, key_1, stream, layer, threshold, first_head,
    BLOCK_K: tl.constexpr, IS_PACKED: tl.constexpr,
):  # fmt: skip
    """Owns the words of WORD_QUERIES queries and BLOCK_K keys of one head; the map is of such tiles."""
    row = tl.program_id(0)
    document, query0, _, size_q = find_tile(row, map_ptr, cu_q_ptr, num_queries, 32, IS_PACKED)
    _, size_k = span_of(document, cu_k_ptr, num_keys, IS_PACKED)
    key0, local_head = tl.program_id(1) * BLOCK_K, tl.program_id(2)
    if (query0 >= size_q) | (key0 >= size_k):
        return
    sample = tl.load(sample_ptr + document)
    zeros = tl.zeros([BLOCK_K // 8], tl.int32)
    last_token = tl.load(first_token_ptr + document).to(tl.int32) + query0 + (32 - 1) + zeros
    element = ((first_head + local_head) << HEAD_SHIFT) + key0 // 8 + tl.arange(0, BLOCK_K // 8)
    limit = tl.cast(threshold, tl.uint32)
    # Eight tensors for the eight decisions of a call: as one, Triton would lay them out anew in each turn.
    none = zeros.to(tl.uint32)
    gone = (none, none, none, none, none, none, none, none)
    for back in tl.range(32):
        drawn = counter_rng_triton.random_words(key_0, key_1, stream, layer, sample, last_token - back, element)
        gone = (
            _append(gone[0], drawn[0] & 0xFFFF, limit), _append(gone[1], drawn[0] >> 16, limit),
            _append(gone[2], drawn[1] & 0xFFFF, limit), _append(gone[3], drawn[1] >> 16, limit),
            _append(gone[4], drawn[2] & 0xFFFF, limit), _append(gone[5], drawn[2] >> 16, limit),
            _append(gone[6], drawn[3] & 0xFFFF, limit), _append(gone[7], drawn[3] >> 16, limit),
        )  # fmt: skip
    even = tl.join(tl.join(gone[0], gone[4]), tl.join(gone[2], gone[6]))
    odd = tl.join(tl.join(gone[1], gone[5]), tl.join(gone[3], gone[7]))
    words = ~tl.reshape(tl.join(even, odd), [BLOCK_K]).to(tl.int32)
    offs = key0 + tl.arange(0, BLOCK_K)
    pointers = words_ptr + (local_head.to(tl.int64) * num_rows + row) * width + offs
    tl.store(pointers, words, mask=offs < width)


@triton.jit
def document_words(words_ptr, document, local_head, start_q, num_queries, num_rows, width, IS_PACKED: tl.constexpr):
    """Where the words of a document begin, of one head."""
    first = first_tile(document, start_q, num_queries, 32, IS_PACKED)
    return words_ptr + (local_head.to(tl.int64) * num_rows + first) * width


@triton.jit
def load_keep(words_ptr, width, query0, BLOCK: tl.constexpr):
    """Which of a tile survive: bool [keys, queries]; words_ptr points to the first key, in its document's first row.

    32 bits count the words of a document: those of one head would fill 8 GiB before they did not.
    """
    offs = tl.arange(0, BLOCK)
    row_ptr = words_ptr + query0 // 32 * width
    words = tl.load(row_ptr + offs)[:, None]
    if BLOCK > 32:
        words = tl.where((offs < 32)[None, :], words, tl.load(row_ptr + width + offs)[:, None])
    place = offs % 32 if BLOCK >= 32 else query0 % 32 + offs
    return ((words >> place[None, :]) & 1) != 0
