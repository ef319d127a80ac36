"""LayerNorm(residual + dropout(x)) in one pass, as torch operators: disentangled::residual_norm and its backward.

What: a program owns whole rows. Forward reads x and the residual, draws dropout's decisions in registers, adds and
normalizes in float32 and writes the result, with two float32 numbers a row; where products take another dtype than the
residual stream has, in both. Backward reads the gradients of the results that were used and adds them, reads x and the
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
from disentangled.kernels.direct_operator import DirectOperator
from disentangled.kernels.grids import ceil_div, power_of_2_from
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
    out_ptr, operand_ptr, mean_ptr, rstd_ptr,  # [R, F], the same or None, [R] float32, [R] float32
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
    if operand_ptr is not None:
        tl.store(operand_ptr + place, out.to(operand_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + row, mean, mask=row_mask)
    tl.store(rstd_ptr + row, rstd, mask=row_mask)


@triton.jit(do_not_specialize=DATA_DEPENDENT)
def residual_norm_backward_kernel(
    grad_ptr, grad_operand_ptr,  # [R, F], one of them may be None
    x_ptr, residual_ptr, weight_ptr, sample_ptr, token_ptr, mean_ptr, rstd_ptr,
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
        if grad_ptr is None:
            grad = tl.load(grad_operand_ptr + place, mask=mask, other=0.0).to(tl.float32)
        else:
            grad = tl.load(grad_ptr + place, mask=mask, other=0.0).to(tl.float32)
            if grad_operand_ptr is not None:
                grad += tl.load(grad_operand_ptr + place, mask=mask, other=0.0).to(tl.float32)
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
    blocks = max(2, power_of_2_from(ceil_div(num_features, DECISIONS_PER_CALL)))
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
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, operand_dtype: torch.dtype | None, *keys: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result in the wider dtype and in `operand_dtype`, and each row's mean and reciprocal deviation, float32.

    Where `operand_dtype` is None the second has no values. Keys as in _shared.
    """
    x, residual = x.contiguous(), residual.contiguous()
    out, operand, mean, rstd = _results(x, residual, operand_dtype)
    if x.numel():
        shared = _shared(x.shape[-1], *keys)
        num_rows = mean.numel()
        residual_norm_kernel[(ceil_div(num_rows, shared["ROWS"]),)](
            x, residual, weight, bias, out_ptr=out, operand_ptr=None if operand_dtype is None else operand,
            mean_ptr=mean, rstd_ptr=rstd, num_rows=num_rows, eps=eps, **shared, maxnreg=MAX_REGISTERS,
        )  # fmt: skip
    return out, operand, mean, rstd


def _results(x: Tensor, residual: Tensor, operand_dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What forward returns, without values."""
    out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype), device=x.device)
    operand = torch.empty_like(out, dtype=operand_dtype) if operand_dtype is not None else out.new_empty(0)
    mean, rstd = (torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device) for _ in range(2))
    return out, operand, mean, rstd


def backward(
    grad: Tensor | None,
    grad_operand: Tensor | None,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *keys: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to x, residual, weight and bias, of those of both results; one of them may be None."""
    grad, grad_operand = (None if values is None else values.contiguous() for values in (grad, grad_operand))
    x, residual = x.contiguous(), residual.contiguous()
    grad_x, grad_residual = torch.empty_like(x), torch.empty_like(residual)
    if not x.numel():
        return grad_x, grad_residual, torch.zeros_like(weight), torch.zeros_like(bias)
    shared = _shared(x.shape[-1], *keys)
    num_rows = mean.numel()
    tiles = ceil_div(num_rows, shared["ROWS"] * MOST_PROGRAMS)
    programs = ceil_div(num_rows, shared["ROWS"] * tiles)
    sums = torch.empty((programs, 2, x.shape[-1]), dtype=torch.float32, device=x.device)
    residual_norm_backward_kernel[(programs,)](
        grad, grad_operand, x, residual, weight, mean_ptr=mean, rstd_ptr=rstd, grad_x_ptr=grad_x,
        grad_residual_ptr=grad_residual, sums_ptr=sums, num_rows=num_rows, tiles=tiles, **shared,
    )  # fmt: skip
    grad_weight, grad_bias = sums.sum(0)
    return grad_x, grad_residual, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)


_KEYS = "float probability, int seed, int stream, SymInt layer, Tensor? sample, Tensor? token, int first_block"
torch.library.define(
    "disentangled::residual_norm",
    f"(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, ScalarType? operand_dtype, {_KEYS})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "disentangled::residual_norm_backward",
    "(Tensor? grad, Tensor? grad_operand, Tensor x, Tensor residual, Tensor weight, Tensor bias, Tensor mean, "
    f"Tensor rstd, {_KEYS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.impl("disentangled::residual_norm", ("cpu", "cuda"))(forward)
torch.library.impl("disentangled::residual_norm_backward", ("cpu", "cuda"))(backward)


@torch.library.register_fake("disentangled::residual_norm")
def _(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, operand_dtype: Any, *rest: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _results(x, residual, operand_dtype)


@torch.library.register_fake("disentangled::residual_norm_backward")
def _(
    grad: Any, grad_operand: Any, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *rest: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x, grad_residual = (torch.empty_like(y, memory_format=torch.contiguous_format) for y in (x, residual))
    return grad_x, grad_residual, torch.empty_like(weight), torch.empty_like(bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, residual, weight, bias, _, operand_dtype, *numbers, sample, token, ctx.first_block = inputs
    _, operand, mean, rstd = output
    ctx.mark_non_differentiable(*([operand] if operand_dtype is None else []), mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.numbers = numbers
    ctx.save_for_backward(x, residual, weight, bias, mean, rstd, sample, token)


def _backward(ctx: Any, grad: Tensor | None, grad_operand: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
    *saved, sample, token = ctx.saved_tensors
    gradients = residual_norm_backward(grad, grad_operand, *saved, *ctx.numbers, sample, token, ctx.first_block)
    return *gradients, *[None] * 9


torch.library.register_autograd("disentangled::residual_norm", _backward, setup_context=_save)
residual_norm_backward = DirectOperator(torch.ops.disentangled.residual_norm_backward.default, backward)
residual_norm = DirectOperator(torch.ops.disentangled.residual_norm.default, forward, _save, _backward)
