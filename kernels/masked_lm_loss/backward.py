"""Backward pass of the fused masked language modelling loss: gradients of the logits of a chunk of ids.

The kernel computes the chunk's logits once more; two plain products turn its output into the chunk's rows of the
table's gradient and into a part of hidden's (launch.py).
Used by: launch.py. Tested by: tests/kernels/test_triton_masked_lm_loss.py.
"""

# M masked tokens  D hidden width  V vocabulary  C ids of a chunk

import triton
import triton.language as tl

from disentangled.kernels.masked_lm_loss.logit_tiles import DATA_DEPENDENT, logit_tile


@triton.jit(do_not_specialize=DATA_DEPENDENT)
def grad_logits_kernel(
    hidden_ptr, table_ptr, bias_ptr, labels_ptr, reference_ptr, sum_ptr, upstream_ptr, grad_logits_ptr,
    column_sums_ptr,
    num_rows, num_ids, first_id, num_chunk_tiles,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Owns a tile; writes upstream * (softmax - label) [M, C], and its sum over the tile's rows [row tiles, C].

    C is whole tiles, so that rows are aligned and no store has a mask of columns; what is past the last id is unused.
    """
    first_row, column0 = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_V
    logits = logit_tile(
        hidden_ptr, table_ptr, bias_ptr, first_row, first_id + column0, num_rows, num_ids,
        WIDTH, BLOCK_M, BLOCK_V, BLOCK_D,
    )  # fmt: skip
    offs_m, offs_c = first_row + tl.arange(0, BLOCK_M), column0 + tl.arange(0, BLOCK_V)
    row_mask, row_stride = offs_m < num_rows, num_chunk_tiles * BLOCK_V
    label = tl.load(labels_ptr + offs_m, mask=row_mask, other=-1)
    # Two numbers: rounded to one, logsumexp would move all probabilities of a row together.
    reference = tl.load(reference_ptr + offs_m, mask=row_mask, other=0.0)
    scale = 1.0 / tl.load(sum_ptr + offs_m, mask=row_mask, other=1.0)
    upstream = tl.load(upstream_ptr)
    is_label = (first_id + offs_c)[None, :] == label[:, None]
    probabilities = tl.exp(logits - reference[:, None]) * scale[:, None]
    gradient = (probabilities - tl.where(is_label, 1.0, 0.0)) * upstream
    gradient = tl.where((label >= 0)[:, None], gradient, 0.0)
    tl.store(
        grad_logits_ptr + offs_m.to(tl.int64)[:, None] * row_stride + offs_c[None, :],
        gradient.to(grad_logits_ptr.dtype.element_ty),
        mask=row_mask[:, None],
    )
    tl.store(column_sums_ptr + tl.program_id(0).to(tl.int64) * row_stride + offs_c, tl.sum(gradient, 0))
