"""Dropout of hidden activations in one pass, as a torch operator: disentangled::hidden_dropout.

What: counter_rng.dropout with its decisions made in registers. In plain torch Philox moves some 200 bytes a value by
count, here the value is read and written: 4 bytes in bfloat16. Backward is the same kernel on the gradient, so nothing
is kept. Equal to plain torch bit for bit.
Used by: op.py. Tested by: tests/kernels/test_hidden_dropout.py, in Triton's interpreter. Not yet run on a GPU.
Not here: attention's dropout, which its kernels draw themselves (disentangled_attention/).
"""

# R rows  F features of a row  B blocks of eight features

import torch
import triton
import triton.language as tl
from torch import Tensor

from disentangled.kernels.counter_rng import DECISIONS_PER_CALL, drop_threshold, keep_scale
from disentangled.kernels.counter_rng_triton import key_words, random_words
from disentangled.kernels.direct_operator import DirectOperator
from disentangled.kernels.grids import ceil_div, power_of_2_from

# Values of a program: 8 a thread of 4 warps, four times over, so that a load takes 16 bytes of bfloat16.
TILE_VALUES = 4096
MOST_BLOCKS = 64  # of a row that a program takes at a time


@triton.jit
def decisions(word_0, word_1, word_2, word_3):
    """Eight 16-bit numbers of each call's four words [R, B], in counter_rng's order: [R, 8 B] int32."""
    low_high_0 = tl.join(word_0 & 0xFFFF, word_0 >> 16)
    low_high_1 = tl.join(word_1 & 0xFFFF, word_1 >> 16)
    low_high_2 = tl.join(word_2 & 0xFFFF, word_2 >> 16)
    low_high_3 = tl.join(word_3 & 0xFFFF, word_3 >> 16)
    # [R, B, half, word % 2, word // 2], to be read as word // 2, word % 2, half
    numbers = tl.join(tl.join(low_high_0, low_high_1), tl.join(low_high_2, low_high_3))
    numbers = tl.permute(numbers, (0, 1, 4, 3, 2))
    return tl.reshape(numbers, (word_0.shape[0], word_0.shape[1] * 8)).to(tl.int32)


@triton.jit(do_not_specialize=["num_rows", "key_0", "key_1", "stream", "layer", "first_block", "threshold"])
def hidden_dropout_kernel(
    x_ptr,  # [R, F], rows one after another
    sample_ptr,  # [R] int64
    token_ptr,  # [R] int64
    out_ptr,  # [R, F]
    num_rows,
    num_features,
    key_0,
    key_1,
    stream,
    layer,
    first_block,
    threshold,
    scale,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """A program owns ROWS rows and 8 BLOCKS of their features, and writes them."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    feature = tl.program_id(1) * BLOCKS * 8 + tl.arange(0, BLOCKS * 8)
    row_mask = row < num_rows
    sample = tl.load(sample_ptr + row, mask=row_mask, other=0)[:, None]
    token = tl.load(token_ptr + row, mask=row_mask, other=0)[:, None]
    zeros = tl.zeros((ROWS, BLOCKS), tl.int64)
    word_0, word_1, word_2, word_3 = random_words(
        key_0, key_1, stream, layer, sample + zeros, token + zeros, first_block + block[None, :] + zeros
    )
    keep = decisions(word_0, word_1, word_2, word_3) >= threshold
    mask = row_mask[:, None] & (feature < num_features)[None, :]
    place = row[:, None] * num_features + feature[None, :]
    x = tl.load(x_ptr + place, mask=mask, other=0.0)
    kept = tl.where(keep, x.to(tl.float32) * scale, 0.0)
    tl.store(out_ptr + place, kept.to(x.dtype), mask=mask)


def launch(
    x: Tensor, probability: float, seed: int, stream: int, layer: int, sample: Tensor, token: Tensor, first_block: int
) -> Tensor:
    """x [..., F] with dropout, contiguous; sample and token [...] int64; the seed as the signed number of its bits."""
    values = x.contiguous()
    out = torch.empty_like(values)
    if values.numel() == 0:
        return out
    num_features = values.shape[-1]
    num_rows = values.numel() // num_features
    blocks = min(MOST_BLOCKS, power_of_2_from(-(-num_features // DECISIONS_PER_CALL)))
    rows = TILE_VALUES // (blocks * DECISIONS_PER_CALL)
    grid = (ceil_div(num_rows, rows), ceil_div(num_features, blocks * DECISIONS_PER_CALL))
    hidden_dropout_kernel[grid](
        values, sample.contiguous(), token.contiguous(), out, num_rows, num_features,
        *key_words(seed % (1 << 64)), stream, layer, first_block,
        drop_threshold(probability), keep_scale(probability), ROWS=rows, BLOCKS=blocks,
    )  # fmt: skip
    return out


torch.library.define(
    "disentangled::hidden_dropout",
    "(Tensor x, float probability, int seed, int stream, SymInt layer, Tensor sample, Tensor token, int first_block) "
    "-> Tensor",
)
torch.library.impl("disentangled::hidden_dropout", ("cpu", "cuda"))(launch)


@torch.library.register_fake("disentangled::hidden_dropout")
def _(x: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
    _, ctx.probability, ctx.seed, ctx.stream, ctx.layer, sample, token, ctx.first_block = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(sample, token)  # type: ignore[attr-defined]


def _backward(ctx: object, gradient: Tensor) -> tuple[Tensor | None, ...]:
    sample, token = ctx.saved_tensors  # type: ignore[attr-defined]
    keys = (ctx.probability, ctx.seed, ctx.stream, ctx.layer, sample, token, ctx.first_block)  # type: ignore[attr-defined]
    return (hidden_dropout(gradient, *keys), *[None] * len(keys))


torch.library.register_autograd("disentangled::hidden_dropout", _backward, setup_context=_save)
hidden_dropout = DirectOperator(torch.ops.disentangled.hidden_dropout.default, launch, _save, _backward)
