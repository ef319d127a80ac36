"""Launches the fused kernels: forward, then backward by chunks of ids; the autograd function.

Workspace: forward has 4 bytes for each row and SAMPLE_BLOCK ids, and 16 for each row and PART_IDS ids; backward has the
gradients of a chunk's logits, CHUNK_BYTES at most, and hidden's gradient in float32. The host reads nothing back.
Used by: op.py, benchmarks/loss_resources.py. Tested by: tests/kernels/test_triton_masked_lm_loss.py.
Not here: a registration with torch.library: compiled layers do not hold this op (model/compile.py), so it would serve
nobody; under torch.compile a call breaks the graph.
"""

# M masked tokens  D hidden width  V vocabulary  C ids of a chunk

from typing import Any

import torch
from torch import Tensor

from disentangled.kernels.counter_rng_triton import key_words
from disentangled.kernels.disentangled_attention.tile_sizes import capability_of
from disentangled.kernels.grids import ceil_div, power_of_2_from
from disentangled.kernels.masked_lm_loss.backward import grad_logits_kernel
from disentangled.kernels.masked_lm_loss.draw import SAMPLE_BLOCK, Draw
from disentangled.kernels.masked_lm_loss.forward import finish_kernel, statistics_kernel
from disentangled.kernels.masked_lm_loss.tile_sizes import tiles_of

CHUNK_BYTES = 32 << 20
# Of one program of the forward pass: 63 parts of 128,100 ids, and with 2,400 rows 1,197 programs.
PART_IDS = 16 * SAMPLE_BLOCK


class FusedLoss(torch.autograd.Function):
    """The sum of the losses, differentiable once, and losses, logsumexp, is_correct and drawn, which are not."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, table: Tensor, bias: Tensor, labels: Tensor, draw: Draw
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Keeps nothing for backward but its inputs and two numbers a row."""
        hidden, table, bias, labels = (x.contiguous() for x in (hidden, table, bias, labels))
        with torch.cuda.device_of(hidden):  # Triton launches on the current device
            losses, lse, is_correct, drawn, largest, total = forward(hidden, table, bias, labels, draw)
        ctx.save_for_backward(hidden, table, bias, labels, largest, total)
        ctx.mark_non_differentiable(losses, lse, is_correct, drawn)
        ctx.set_materialize_grads(False)
        return losses.sum(), losses, lse, is_correct, drawn

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Gradients with respect to hidden, table and bias."""
        if upstream is None:
            return (None,) * 5
        with torch.cuda.device_of(upstream):
            return *backward(upstream, *ctx.saved_tensors), None, None


def forward(
    hidden: Tensor, table: Tensor, bias: Tensor, labels: Tensor, draw: Draw
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Each [M]: losses, logsumexp, is_correct, drawn ids; the largest logit and the sum of exponentials over its."""
    (num_rows, width), num_ids, device = hidden.shape, table.shape[0], hidden.device
    # Each in memory of its own: a kernel is compiled again for a pointer that is aligned otherwise, as the second half
    # of one piece of memory would be at some numbers of rows.
    losses, lse, largest, total = (torch.empty(num_rows, dtype=torch.float32, device=device) for _ in range(4))
    is_correct = torch.empty(num_rows, dtype=torch.bool, device=device)
    drawn = torch.empty(num_rows, dtype=torch.int64, device=device)
    if num_rows == 0:
        return losses, lse, is_correct, drawn, largest, total
    tiles = tiles_of(hidden.dtype, table.dtype, capability_of(device))
    num_parts, num_sample_blocks = ceil_div(num_ids, PART_IDS), ceil_div(num_ids, SAMPLE_BLOCK)
    part_total, part_largest, part_label_logit = (
        torch.empty((num_parts, num_rows), dtype=torch.float32, device=device) for _ in range(3)
    )
    part_best = torch.empty((num_parts, num_rows), dtype=torch.int32, device=device)
    block_lse = torch.empty((num_rows, num_sample_blocks), dtype=torch.float32, device=device)
    banned = draw.banned.contiguous().view(torch.uint8)
    shared = {
        "num_rows": num_rows, "num_ids": num_ids, "num_sample_blocks": num_sample_blocks,
        "inverse_temperature": 1.0 / draw.temperature, "WIDTH": width,
    }  # fmt: skip
    # Programs of one part of the table run side by side, so that it comes from device memory once.
    statistics_kernel[ceil_div(num_rows, tiles.rows), num_parts](
        hidden, table, bias, labels, banned, part_total, part_largest, part_best, part_label_logit, block_lse,
        TILES=PART_IDS // tiles.ids, **shared, **tiles.constants,
    )  # fmt: skip
    key_0, key_1 = key_words(draw.seed)
    finish_kernel[(ceil_div(num_rows, tiles.finished_rows),)](
        hidden, table, bias, labels, banned, draw.sample.contiguous(), draw.token.contiguous(),
        part_total, part_largest, part_best, part_label_logit, block_lse,
        losses, lse, largest, total, is_correct.view(torch.uint8), drawn,
        num_parts=num_parts, key_0=key_0, key_1=key_1, stream=int(draw.stream),
        BLOCK_M=tiles.finished_rows, BLOCK_D=32, PARTS=power_of_2_from(num_parts),
        SAMPLE_BLOCKS=power_of_2_from(num_sample_blocks), **shared, num_warps=4,
    )  # fmt: skip
    return losses, lse, is_correct, drawn, largest, total


def backward(
    upstream: Tensor, hidden: Tensor, table: Tensor, bias: Tensor, labels: Tensor, largest: Tensor, total: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to hidden, table and bias; upstream is a scalar."""
    (num_rows, width), num_ids, device = hidden.shape, table.shape[0], hidden.device
    grad_table, grad_bias = torch.empty_like(table), torch.empty_like(bias)
    if num_rows == 0:
        return torch.zeros_like(hidden), grad_table.zero_(), grad_bias.zero_()
    tiles = tiles_of(hidden.dtype, table.dtype, capability_of(device))
    num_row_tiles = ceil_div(num_rows, tiles.rows)
    upstream = upstream.float().contiguous()
    grad_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=device)
    most_tiles = max(1, CHUNK_BYTES // (num_rows * hidden.element_size() * tiles.ids))
    num_chunk_tiles = min(most_tiles, ceil_div(num_ids, tiles.ids))
    step = num_chunk_tiles * tiles.ids
    grad_logits = torch.empty((num_rows, step), dtype=hidden.dtype, device=device)
    column_sums = torch.empty((num_row_tiles, step), dtype=torch.float32, device=device)
    for first_id in range(0, num_ids, step):
        ids = slice(first_id, min(first_id + step, num_ids))
        grad_logits_kernel[num_row_tiles, ceil_div(ids.stop - first_id, tiles.ids)](
            hidden, table, bias, labels, largest, total, upstream, grad_logits, column_sums,
            num_rows=num_rows, num_ids=num_ids, first_id=first_id, num_chunk_tiles=num_chunk_tiles,
            WIDTH=width, **tiles.constants,
        )  # fmt: skip
        part = grad_logits[:, : ids.stop - first_id]
        if table.dtype == hidden.dtype:
            torch.mm(part.T, hidden, out=grad_table[ids])
        else:
            grad_table[ids] = part.T @ hidden
        grad_hidden += part @ table[ids].to(hidden.dtype)
        grad_bias[ids] = column_sums[:, : ids.stop - first_id].sum(0)
    return grad_hidden.to(hidden.dtype), grad_table, grad_bias
