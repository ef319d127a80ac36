"""LayerNorm(residual + dropout(x)) in one pass, as torch operators: disentangled::residual_norm and its backward.

What: a program owns whole rows. Forward reads x and the residual, draws dropout's decisions in registers, adds and
normalizes in float32 and writes the result, with two float32 numbers a row. Backward reads the gradient, x and the
residual again, and writes both gradients; those of weight and bias are summed over the rows of a program, and the
programs' sums by torch. Their number follows from the rows alone, so gradients are the same bits on any GPU.
Used by: op.py. Tested by: tests/kernels/test_residual_norm.py, tests/ptx/test_compiled_kernels.py.
Not yet run on a GPU.
"""

# R rows  F features of a row  B blocks of eight features, of the power of two that covers F

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from disentangled.kernels.counter_rng import DECISIONS_PER_CALL, drop_threshold, keep_scale
from disentangled.kernels.counter_rng_triton import key_words, random_words
from disentangled.kernels.hidden_dropout.fused import decisions

# Values of a program at a time, a row at least, and of a thread: with 32 backward has 235 registers and more.
TILE_VALUES, THREAD_VALUES = 2048, 16
# Of forward: or the assembler spills some in float32, for one more program at a time.
MAX_REGISTERS = 96
# Of backward: four to each processor of the largest GPUs.
MOST_PROGRAMS = 512

DATA_DEPENDENT = ["num_rows", "tiles", "key_0", "key_1", "stream", "layer", "first_block", "threshold"]


@triton.jit
def _load_sum(
    x_ptr, residual_ptr, sample_ptr, token_ptr, row, row_mask, mask, place,
    key_0, key_1, stream, layer, first_block, threshold, scale,
    BLOCKS: tl.constexpr, HAS_DROPOUT: tl.constexpr,
):  # fmt: skip
    """residual + dropout(x) of some rows [ROWS, 8 BLOCKS] in float32, and which values are kept."""
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + place, mask=mask, other=0.0).to(tl.float32)
    keep = mask
    if HAS_DROPOUT:
        sample = tl.load(sample_ptr + row, mask=row_mask, other=0)[:, None]
        token = tl.load(token_ptr + row, mask=row_mask, other=0)[:, None]
        zeros = tl.zeros((row.shape[0], BLOCKS), tl.int64)
        block = first_block + tl.arange(0, BLOCKS)[None, :] + zeros
        word_0, word_1, word_2, word_3 = random_words(key_0, key_1, stream, layer, sample + zeros, token + zeros, block)
        keep = decisions(word_0, word_1, word_2, word_3) >= threshold
        x = tl.where(keep, x * scale, 0.0)
    return x + residual, keep


@triton.jit(do_not_specialize=DATA_DEPENDENT)
def residual_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, sample_ptr, token_ptr,  # [R, F], [R, F], [F], [F], [R] int64, [R] int64
    out_ptr, mean_ptr, rstd_ptr,  # [R, F], [R] float32, [R] float32
    num_rows, num_features, eps,
    key_0, key_1, stream, layer, first_block, threshold, scale,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr, HAS_DROPOUT: tl.constexpr,
):  # fmt: skip
    """A program owns ROWS rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    feature = tl.arange(0, BLOCKS * 8)
    row_mask, feature_mask = row < num_rows, feature < num_features
    mask = row_mask[:, None] & feature_mask[None, :]
    place = row[:, None] * num_features + feature[None, :]
    total, _ = _load_sum(
        x_ptr, residual_ptr, sample_ptr, token_ptr, row, row_mask, mask, place,
        key_0, key_1, stream, layer, first_block, threshold, scale, BLOCKS, HAS_DROPOUT,
    )  # fmt: skip
    mean = tl.sum(tl.where(mask, total, 0.0), 1) / num_features
    centred = tl.where(mask, total - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, 1) / num_features + eps)
    weight = tl.load(weight_ptr + feature, mask=feature_mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + feature, mask=feature_mask, other=0.0).to(tl.float32)
    out = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + row, mean, mask=row_mask)
    tl.store(rstd_ptr + row, rstd, mask=row_mask)


@triton.jit(do_not_specialize=DATA_DEPENDENT)
def residual_norm_backward_kernel(
    grad_ptr, x_ptr, residual_ptr, weight_ptr, sample_ptr, token_ptr, mean_ptr, rstd_ptr,
    grad_x_ptr, grad_residual_ptr, sums_ptr,  # [R, F], [R, F], [programs, 2, F] float32
    num_rows, num_features, tiles,
    key_0, key_1, stream, layer, first_block, threshold, scale,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr, HAS_DROPOUT: tl.constexpr,
):  # fmt: skip
    """A program owns `tiles` times ROWS rows, and sums over them for weight and bias."""
    feature = tl.arange(0, BLOCKS * 8)
    feature_mask = feature < num_features
    weight = tl.load(weight_ptr + feature, mask=feature_mask, other=0.0).to(tl.float32)[None, :]
    grad_weight = tl.zeros((ROWS, BLOCKS * 8), tl.float32)
    grad_bias = tl.zeros((ROWS, BLOCKS * 8), tl.float32)
    program = tl.program_id(0).to(tl.int64)
    for tile in tl.range(tiles):
        row = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        row_mask = row < num_rows
        mask = row_mask[:, None] & feature_mask[None, :]
        place = row[:, None] * num_features + feature[None, :]
        total, keep = _load_sum(
            x_ptr, residual_ptr, sample_ptr, token_ptr, row, row_mask, mask, place,
            key_0, key_1, stream, layer, first_block, threshold, scale, BLOCKS, HAS_DROPOUT,
        )  # fmt: skip
        mean = tl.load(mean_ptr + row, mask=row_mask, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + row, mask=row_mask, other=0.0)[:, None]
        normal = tl.where(mask, (total - mean) * rstd, 0.0)
        grad = tl.load(grad_ptr + place, mask=mask, other=0.0).to(tl.float32)
        grad_weight += grad * normal
        grad_bias += grad
        weighted = grad * weight
        along = tl.sum(weighted * normal, 1)[:, None] / num_features
        grad_total = (weighted - tl.sum(weighted, 1)[:, None] / num_features - normal * along) * rstd
        tl.store(grad_residual_ptr + place, grad_total.to(grad_residual_ptr.dtype.element_ty), mask=mask)
        if HAS_DROPOUT:
            grad_total = tl.where(keep, grad_total * scale, 0.0)
        tl.store(grad_x_ptr + place, grad_total.to(grad_x_ptr.dtype.element_ty), mask=mask)
    sums = sums_ptr + program * 2 * num_features + feature
    tl.store(sums, tl.sum(grad_weight, 0), mask=feature_mask)
    tl.store(sums + num_features, tl.sum(grad_bias, 0), mask=feature_mask)


def _shared(
    num_features: int,
    probability: float,
    seed: int,
    stream: int,
    layer: int,
    sample: Tensor | None,
    token: Tensor | None,
    first_block: int,
) -> dict[str, Any]:
    """Arguments of both kernels; the seed is the signed number of its bits."""
    key_0, key_1 = key_words(seed % (1 << 64))
    blocks = max(2, triton.next_power_of_2(triton.cdiv(num_features, DECISIONS_PER_CALL)))
    rows = max(1, TILE_VALUES // (blocks * DECISIONS_PER_CALL))
    return {
        "sample_ptr": None if sample is None else sample.contiguous(),
        "token_ptr": None if token is None else token.contiguous(),
        "num_features": num_features, "key_0": key_0, "key_1": key_1, "stream": stream, "layer": layer,
        "first_block": first_block, "threshold": drop_threshold(probability), "scale": keep_scale(probability),
        "ROWS": rows, "BLOCKS": blocks, "HAS_DROPOUT": sample is not None,
        "num_warps": rows * blocks * DECISIONS_PER_CALL // (32 * THREAD_VALUES),
    }  # fmt: skip


def forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, *keys: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, in the wider dtype, and each row's mean and reciprocal deviation, float32; keys as in _shared."""
    x, residual = x.contiguous(), residual.contiguous()
    out = torch.empty_like(x, dtype=torch.promote_types(x.dtype, residual.dtype))
    mean, rstd = (torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device) for _ in range(2))
    if x.numel():
        shared = _shared(x.shape[-1], *keys)
        num_rows = mean.numel()
        residual_norm_kernel[(triton.cdiv(num_rows, shared["ROWS"]),)](
            x, residual, weight, bias, out_ptr=out, mean_ptr=mean, rstd_ptr=rstd, num_rows=num_rows, eps=eps, **shared,
            maxnreg=MAX_REGISTERS,
        )  # fmt: skip
    return out, mean, rstd


def backward(
    grad: Tensor, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, *keys: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to x, residual, weight and bias."""
    grad, x, residual = grad.contiguous(), x.contiguous(), residual.contiguous()
    grad_x, grad_residual = torch.empty_like(x), torch.empty_like(residual)
    if not x.numel():
        return grad_x, grad_residual, torch.zeros_like(weight), torch.zeros_like(bias)
    shared = _shared(x.shape[-1], *keys)
    num_rows = mean.numel()
    tiles = triton.cdiv(num_rows, shared["ROWS"] * MOST_PROGRAMS)
    programs = triton.cdiv(num_rows, shared["ROWS"] * tiles)
    sums = torch.empty((programs, 2, x.shape[-1]), dtype=torch.float32, device=x.device)
    residual_norm_backward_kernel[(programs,)](
        grad, x, residual, weight, mean_ptr=mean, rstd_ptr=rstd, grad_x_ptr=grad_x, grad_residual_ptr=grad_residual,
        sums_ptr=sums, num_rows=num_rows, tiles=tiles, **shared,
    )  # fmt: skip
    grad_weight, grad_bias = sums.sum(0)
    return grad_x, grad_residual, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)


_KEYS = "float probability, int seed, int stream, SymInt layer, Tensor? sample, Tensor? token, int first_block"
torch.library.define(
    "disentangled::residual_norm",
    f"(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, {_KEYS}) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "disentangled::residual_norm_backward",
    f"(Tensor grad, Tensor x, Tensor residual, Tensor weight, Tensor bias, Tensor mean, Tensor rstd, {_KEYS})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.impl("disentangled::residual_norm", ("cpu", "cuda"))(forward)
torch.library.impl("disentangled::residual_norm_backward", ("cpu", "cuda"))(backward)


@torch.library.register_fake("disentangled::residual_norm")
def _(x: Tensor, residual: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    rows = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype), device=x.device)
    return out, rows, torch.empty_like(rows)


@torch.library.register_fake("disentangled::residual_norm_backward")
def _(
    grad: Tensor, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *rest: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x, grad_residual = (torch.empty_like(y, memory_format=torch.contiguous_format) for y in (x, residual))
    return grad_x, grad_residual, torch.empty_like(weight), torch.empty_like(bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, weight, bias, _, *numbers, sample, token, ctx.first_block = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.numbers = numbers
    ctx.save_for_backward(x, residual, weight, bias, mean, rstd, sample, token)


def _backward(ctx: Any, grad: Tensor, *unused: None) -> tuple[Tensor | None, ...]:
    *saved, sample, token = ctx.saved_tensors
    gradients = torch.ops.disentangled.residual_norm_backward(
        grad, *saved, *ctx.numbers, sample, token, ctx.first_block
    )
    return *gradients, *[None] * 8


torch.library.register_autograd("disentangled::residual_norm", _backward, setup_context=_save)
