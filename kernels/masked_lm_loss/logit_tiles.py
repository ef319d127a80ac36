"""What the forward and the backward kernel share: a tile of logits.

Used by: forward.py, backward.py. Tested by: tests/kernels/test_triton_masked_lm_loss.py.
"""

import triton
import triton.language as tl

# float32 on tensor cores in three products, to float32's accuracy; half precision does not look at it.
PRECISION = tl.constexpr("tf32x3")

# Arguments that change from batch to batch: a kernel is not compiled again for a value of theirs.
DATA_DEPENDENT = (
    "num_rows", "num_ids", "num_parts", "num_sample_blocks", "num_chunk_tiles", "first_id", "key_0", "key_1", "stream",
    "upstream_ptr",
)  # fmt: skip


@triton.jit
def logit_tile(
    hidden_ptr, table_ptr, bias_ptr, first_row, first_id, num_rows, num_ids,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Logits, float32 [BLOCK_M, BLOCK_V]: hidden [M, WIDTH] times table [V, WIDTH], plus bias [V].

    The table may have another dtype than hidden, to which it is rounded here. Rows past M repeat the last one, ids past
    V the last id: the caller leaves them out.
    """
    # Clamped and not masked: a mask of rows in each load of the inner loop costs an instruction a load. A 64-bit base
    # and 32-bit offsets: pointers of 64 bits each cost registers, of which sm_100 has none to spare.
    rows = tl.minimum(tl.arange(0, BLOCK_M), num_rows - 1 - first_row)
    ids = tl.minimum(tl.arange(0, BLOCK_V), num_ids - 1 - first_id)
    offs_d = tl.arange(0, BLOCK_D)
    hidden_ptrs = hidden_ptr + tl.cast(first_row, tl.int64) * WIDTH + (rows[:, None] * WIDTH + offs_d[None, :])
    table_ptrs = table_ptr + tl.cast(first_id, tl.int64) * WIDTH + (ids[:, None] * WIDTH + offs_d[None, :])
    logits = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for d0 in tl.range(0, WIDTH, BLOCK_D):
        if WIDTH % BLOCK_D == 0:
            hidden, table = tl.load(hidden_ptrs + d0), tl.load(table_ptrs + d0)
        else:
            width_mask = (d0 + offs_d < WIDTH)[None, :]
            hidden = tl.load(hidden_ptrs + d0, mask=width_mask, other=0.0)
            table = tl.load(table_ptrs + d0, mask=width_mask, other=0.0)
        logits = tl.dot(hidden, table.to(hidden.dtype).T, logits, input_precision=PRECISION)
    return logits + tl.load(bias_ptr + first_id + ids).to(tl.float32)[None, :]
