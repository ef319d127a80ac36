"""What the fused kernels share: which document a program works on, its rows, far tiles, dropout.

A tile is BLOCK queries by BLOCK keys of one document and one head. Tiles whose distances all lie past an end of the
tables are *far*: there the position terms are one number per row and one per column, and they run at the speed of
plain flash attention. The terms of the others are in bands.py.

`rows` and `columns` are queries and keys in the forward pass (SIGN = 1: table rows ascend with the column) and keys and
queries where a program owns keys (SIGN = -1).
Used by: forward.py, backward.py, bands.py, shear.py, table_gradients.py. Tested by:
tests/kernels/test_triton_attention.py.
Not here: softmax and gradients.
"""

import triton
import triton.language as tl

from disentangled.kernels import counter_rng_triton
from disentangled.kernels.disentangled_attention import dropout as attention_dropout

IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
HEAD_SHIFT = tl.constexpr(attention_dropout.HEAD_SHIFT)

# Of products of float32: three on tensor cores, about as exact as one in float32, which would leave no registers. Half
# precision is multiplied as it is.
PRECISION = tl.constexpr("tf32x3")

# Arguments that change from batch to batch: a kernel is not compiled again for a value of theirs.
DATA_DEPENDENT = (
    "num_queries", "num_keys", "num_all_queries", "num_all_keys", "num_sums", "num_rows", "num_columns", "num_all_rows",
    "num_tiles", "num_query_tiles", "num_key_tiles", "num_row_tiles", "num_word_rows", "num_documents",
    "num_table_rows", "table_offset", "last_left", "last_right", "first_row", "stop_row", "first_block", "first_head",
    "key_0", "key_1", "stream", "layer", "threshold",
)  # fmt: skip


@triton.jit
def program_barrier(scalar):
    """All threads of the program see what any of them has written; `scalar` is any, for it to have an argument.

    Triton 3.7 pipelines no loop that has a tl.debug_barrier, so the same instruction is written by hand.
    """
    if not IS_INTERPRETED:
        tl.inline_asm_elementwise(
            "bar.sync 0; mov.u32 $0, $1;", "=r,r", [scalar], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def anew(scalar):
    """The same number, which the compiler takes for another one.

    What is derived from it after a loop is computed after the loop, and not kept in registers all through it.
    """
    if IS_INTERPRETED:
        return scalar
    return tl.inline_asm_elementwise("mov.u32 $0, $1;", "=r,r", [scalar], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def program_anew(scalar):
    """The program's first two numbers, which the compiler takes for others; `scalar` is any, for it to have one."""
    if IS_INTERPRETED:
        return tl.program_id(0), tl.program_id(1)
    first = tl.inline_asm_elementwise("mov.u32 $0, %ctaid.x;", "=r,r", [scalar], dtype=tl.int32, is_pure=False, pack=1)
    second = tl.inline_asm_elementwise("mov.u32 $0, %ctaid.y;", "=r,r", [scalar], dtype=tl.int32, is_pure=False, pack=1)
    return first, second


@triton.jit
def tile_map_kernel(cu_seqlens_ptr, map_ptr, num_documents, BLOCK: tl.constexpr):
    """Writes the document of one tile of packed documents, and its number there; it may lie past the document's end.

    Document n owns the slots from cu_seqlens[n] // BLOCK + n on. That leaves room for its last, partial tile and rises
    with n, so a binary search finds the document of a slot, and the number of slots follows from that of tokens and
    documents: the host never reads cu_seqlens.
    """
    slot = tl.program_id(0)
    low = slot * 0
    high = low + num_documents - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(cu_seqlens_ptr + middle) // BLOCK + middle <= slot:
            low = middle
        else:
            high = middle - 1
    start = tl.load(cu_seqlens_ptr + low)
    tl.store(map_ptr + 2 * slot, low)
    tl.store(map_ptr + 2 * slot + 1, slot - start // BLOCK - low)


@triton.jit
def find_tile(slot, map_ptr, cu_seqlens_ptr, length, BLOCK: tl.constexpr, IS_PACKED: tl.constexpr):
    """Document, first row of the tile in it, first token of the document, tokens of the document."""
    if IS_PACKED:
        document = tl.load(map_ptr + 2 * slot)
        row0 = tl.load(map_ptr + 2 * slot + 1) * BLOCK  # so that the compiler knows what it is a multiple of
        start = tl.load(cu_seqlens_ptr + document)
        size = tl.load(cu_seqlens_ptr + document + 1) - start
    else:
        tiles = tl.cdiv(length, BLOCK)
        document = slot // tiles
        row0 = (slot - document * tiles) * BLOCK
        start = document * length
        size = length + slot * 0
    return document, row0, start, size


@triton.jit
def first_tile(document, start, length, BLOCK: tl.constexpr, IS_PACKED: tl.constexpr):
    """Number of a document's first tile, int64: what find_tile turns into its first row."""
    tile = start // BLOCK + document if IS_PACKED else document * tl.cdiv(length, BLOCK)
    return tile.to(tl.int64)


@triton.jit
def span_of(document, cu_seqlens_ptr, length, IS_PACKED: tl.constexpr):
    """First token and number of tokens of a document, on the other side of the attention."""
    if IS_PACKED:
        start = tl.load(cu_seqlens_ptr + document)
        size = tl.load(cu_seqlens_ptr + document + 1) - start
    else:
        start = document * length
        size = length + document * 0
    return start, size


@triton.jit
def _row_pointers(base_ptr, first, stride_t, BLOCK: tl.constexpr, BLOCK_H: tl.constexpr):
    """[BLOCK, BLOCK_H]; only the first row's address needs 64 bits, which saves registers."""
    tile_ptr = base_ptr + first * tl.cast(stride_t, tl.int64)
    return tile_ptr + tl.arange(0, BLOCK)[:, None] * stride_t + tl.arange(0, BLOCK_H)[None, :]


@triton.jit
def load_live_rows(
    base_ptr, first, live, stride_t, HEAD_WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_H: tl.constexpr
):
    """Rows first .. first + BLOCK - 1 [BLOCK, BLOCK_H], zero where `live` [BLOCK] is not set, whatever is there."""
    mask = live[:, None]
    if BLOCK_H != HEAD_WIDTH:
        mask &= (tl.arange(0, BLOCK_H) < HEAD_WIDTH)[None, :]
    return tl.load(_row_pointers(base_ptr, first, stride_t, BLOCK, BLOCK_H), mask=mask, other=0.0)


@triton.jit
def load_rows(base_ptr, first, stop, stride_t, HEAD_WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_H: tl.constexpr):
    """The same, zero from row `stop` on."""
    return load_live_rows(base_ptr, first, tl.arange(0, BLOCK) < stop - first, stride_t, HEAD_WIDTH, BLOCK, BLOCK_H)


@triton.jit
def load_clamped_rows(
    base_ptr, first, stop, stride_t, HEAD_WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_H: tl.constexpr
):
    """The same with the last row again from `stop` on, which takes fewer registers than a mask."""
    tile_ptr = base_ptr + first * tl.cast(stride_t, tl.int64)
    place = tl.minimum(tl.arange(0, BLOCK), stop - first - 1)
    pointers = tile_ptr + place[:, None] * stride_t + tl.arange(0, BLOCK_H)[None, :]
    if BLOCK_H != HEAD_WIDTH:
        return tl.load(pointers, mask=(tl.arange(0, BLOCK_H) < HEAD_WIDTH)[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit
def load_full_rows(base_ptr, first, stride_t, HEAD_WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_H: tl.constexpr):
    """The same where all of the rows exist."""
    pointers = _row_pointers(base_ptr, first, stride_t, BLOCK, BLOCK_H)
    if BLOCK_H != HEAD_WIDTH:
        return tl.load(pointers, mask=(tl.arange(0, BLOCK_H) < HEAD_WIDTH)[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit
def store_rows(
    base_ptr, x, first, stop, stride_t, HEAD_WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_H: tl.constexpr
):
    """The adjoint of load_rows, rounded to what base_ptr points to."""
    mask = (tl.arange(0, BLOCK) < stop - first)[:, None]
    if BLOCK_H != HEAD_WIDTH:
        mask &= (tl.arange(0, BLOCK_H) < HEAD_WIDTH)[None, :]
    pointers = _row_pointers(base_ptr, first, stride_t, BLOCK, BLOCK_H)
    tl.store(pointers, x.to(base_ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_live(live_ptr, start, first, stop, BLOCK: tl.constexpr, HAS_MASK: tl.constexpr):
    """Which of the keys first .. first + BLOCK - 1 of a document are there, and live: bool [BLOCK]."""
    key = first + tl.arange(0, BLOCK)
    live = key < stop
    if HAS_MASK:
        live &= tl.load(live_ptr + start.to(tl.int64) + key, mask=live, other=0) != 0
    return live


@triton.jit
def load_table_row(table_ptr, row, HEAD_WIDTH: tl.constexpr, BLOCK_H: tl.constexpr):
    """One row of an expanded table, [BLOCK_H] in float32."""
    offs_h = tl.arange(0, BLOCK_H)
    return tl.load(table_ptr + row * HEAD_WIDTH + offs_h, mask=offs_h < HEAD_WIDTH, other=0.0).to(tl.float32)


@triton.jit
def load_table_rows(table_ptr, rows, HEAD_WIDTH: tl.constexpr, BLOCK_H: tl.constexpr):
    """Rows of an expanded table, [rows, BLOCK_H]."""
    offs_h = tl.arange(0, BLOCK_H)
    pointers = table_ptr + rows[:, None] * HEAD_WIDTH + offs_h[None, :]
    if BLOCK_H != HEAD_WIDTH:
        return tl.load(pointers, mask=(offs_h < HEAD_WIDTH)[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit
def window_of(
    row0, num_columns, last_left, last_right,
    BLOCK: tl.constexpr, SIGN: tl.constexpr, HAS_FAR: tl.constexpr,
):  # fmt: skip
    """The columns [first, stop), multiples of BLOCK, of the tiles that are not far; tiles before and after are.

    Rows are queries (SIGN = 1) or keys (SIGN = -1). A tile is far when all its distances i - j are at least last_left,
    or all at most last_right, whether they exist or not: every kernel classifies every tile alike.
    """
    end = tl.cdiv(num_columns, BLOCK) * BLOCK
    if HAS_FAR:
        # A tile before the window has, where rows are queries, row0 - (column + BLOCK - 1) >= last_left, and one after
        # it row0 + BLOCK - 1 - column <= last_right; where they are keys, column + BLOCK - 1 - row0 <= last_right and
        # column - (row0 + BLOCK - 1) >= last_left.
        if SIGN == 1:
            before = row0 - last_left + 1
            after = row0 + BLOCK - 1 - last_right
        else:
            before = row0 + last_right + 1
            after = row0 + BLOCK - 1 + last_left
        first = tl.minimum(tl.maximum(before, 0) // BLOCK * BLOCK, end)
        stop = tl.minimum(tl.maximum(tl.cdiv(tl.maximum(after, 0), BLOCK) * BLOCK, first), end)
    else:
        first = end * 0
        stop = end
    return first, stop


@triton.jit
def stored_origin(row0, lead, HAS_FAR: tl.constexpr):
    """The column that a stored row of dS begins with: its first one, or `lead` columns before its tile's."""
    return row0 - lead if HAS_FAR else row0 * 0


@triton.jit
def multiply(x, PRESCALE: tl.constexpr):
    """x in units of PRESCALE; the same registers where that is 1."""
    if PRESCALE == 1.0:
        return x
    return (x.to(tl.float32) * PRESCALE).to(x.dtype)


@triton.jit
def far_rows(
    x, own_table_ptr, other_table_ptr, end, postscale,
    HEAD_WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, PRESCALE: tl.constexpr,
    HAS_OWN: tl.constexpr, HAS_OTHER: tl.constexpr,
):  # fmt: skip
    """What stands for the position terms in far tiles, for the rows x [BLOCK, BLOCK_H] of a program.

    The term that x meets itself is a number per row (returned in base 2); the other one, a row of the other table that
    the columns meet, is added to x once.
    """
    row_bias = tl.zeros([x.shape[0]], tl.float32)
    far_x = x.to(tl.float32) * PRESCALE
    if HAS_OWN:
        table_row = load_table_row(own_table_ptr, end, HEAD_WIDTH, BLOCK_H)
        row_bias = tl.sum(x.to(tl.float32) * table_row[None, :], 1) * postscale
    if HAS_OTHER:
        far_x += load_table_row(other_table_ptr, end, HEAD_WIDTH, BLOCK_H)[None, :]
    return row_bias, far_x.to(x.dtype)


@triton.jit
def keep_bits(key_0, key_1, stream, layer, sample, first_token, head, query0, key0, threshold, BLOCK: tl.constexpr):
    """Which of BLOCK queries by BLOCK keys survive dropout, eight keys to a number: int32 [BLOCK, BLOCK // 8].

    dropout.py defines which; key0 is a multiple of 8. Few registers: draw them before there is much else to hold.
    """
    token = first_token + query0 + tl.arange(0, BLOCK)[:, None]
    element = (head << HEAD_SHIFT) + key0 // 8 + tl.arange(0, BLOCK // 8)[None, :]
    zeros = tl.zeros([BLOCK, BLOCK // 8], tl.int32)
    words = counter_rng_triton.random_words(key_0, key_1, stream, layer, sample, token + zeros, element + zeros)
    # Word 2 a + b to place (a, b), then the low and the high half.
    words = tl.join(tl.join(words[0], words[2]), tl.join(words[1], words[3]))
    limit = tl.cast(threshold, tl.uint32) << 16
    keep = tl.reshape(tl.join((words << 16) >= limit, words >= limit), [BLOCK, BLOCK // 8, 8])
    # A sum, because Triton does not compute a sum again in the layout that its user has; it would all of the above.
    return tl.sum(keep.to(tl.int32) << tl.arange(0, 8)[None, None, :], 2)


@triton.jit
def keep_tile(bits, BLOCK: tl.constexpr):
    """keep_bits written out: bool [BLOCK, BLOCK]."""
    bits = tl.reshape(tl.broadcast_to(bits[:, :, None], [BLOCK, BLOCK // 8, 8]), [BLOCK, BLOCK])
    return ((bits >> (tl.arange(0, BLOCK) % 8)[None, :]) & 1) != 0
