"""The fused kernels as torch operators: disentangled::attention_forward and attention_backward.

What torch.library gives them: a schema of plain tensors and numbers, fake twins that know shapes (so torch.compile and
torch.export never look inside), and autograd. Forward gives the context and log-sum-exp [N, query tokens] (not defined
at padding tokens), which backward wants and which has no gradient. Backward gives the gradients of those of query, key,
value, rel_key and rel_query that are there, in this order; it has no gradient of its own.

Importable where Triton is missing: launch.py, which imports it, is imported by the first call.
Used by: op.py. Tested by: tests/kernels/test_registered.py.
Not here: argument checks and the cast under autocast (op.py), launches (launch.py).
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from disentangled.kernels.counter_rng import signed_seed
from disentangled.kernels.direct_operator import DirectOperator
from disentangled.kernels.disentangled_attention.dropout import AttentionDropout
from disentangled.kernels.disentangled_attention.log_bucket import Positions

if TYPE_CHECKING:
    from disentangled.kernels.disentangled_attention.attention_call import Problem

# An unsigned seed of 64 bits is passed as the signed number of the same bits. Probability 0 is no dropout.
_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? rel_key, Tensor? rel_query, "
    "Tensor? key_padding_mask, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? sample, Tensor? first_token, "
    "int position_buckets, int max_relative_positions, str bucket_rule, float scale, "
    "SymInt? max_seqlen_q, SymInt? max_seqlen_k, float probability, int seed, int stream, SymInt layer"
)
_NUM_DIFFERENTIABLE, _NUM_TENSORS, _NUM_ARGUMENTS = 5, 10, 20


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rel_key: Tensor | None,
    rel_query: Tensor | None,
    *,
    positions: Positions,
    scale: float,
    key_padding_mask: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dropout: AttentionDropout | None = None,
) -> Tensor:
    """Fused attention of arguments that op.py has checked; the context, contiguous, in the shape of query."""
    sample = first_token = None
    probability, seed, stream, layer = 0.0, 0, 0, 0
    if dropout is not None:
        # The kernels read both by the document's number.
        sample, first_token = (
            x.to(device=query.device, dtype=torch.int64).contiguous() for x in (dropout.sample, dropout.first_token)
        )
        probability, stream, layer = dropout.probability, int(dropout.stream), dropout.layer
        seed = signed_seed(dropout.seed)
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        is_shared = cu_seqlens_k is cu_seqlens_q
        cu_seqlens_q = cu_seqlens_q.contiguous()
        cu_seqlens_k = cu_seqlens_q if is_shared else cu_seqlens_k.contiguous()
    out, _ = direct_forward(
        query, key, value, rel_key, rel_query,
        key_padding_mask, cu_seqlens_q, cu_seqlens_k, sample, first_token,
        positions.position_buckets, positions.max_relative_positions, positions.bucket_rule, scale,
        max_seqlen_q, max_seqlen_k, probability, seed, stream, layer,
    )  # fmt: skip
    return out


def _problem(
    key_padding_mask: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    sample: Tensor | None,
    first_token: Tensor | None,
    position_buckets: int,
    max_relative_positions: int,
    bucket_rule: str,
    scale: float,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
    probability: float,
    seed: int,
    stream: int,
    layer: int,
) -> "Problem":
    from disentangled.kernels.disentangled_attention.attention_call import Problem

    dropout = None
    if sample is not None and first_token is not None:
        dropout = AttentionDropout(probability, seed % (1 << 64), stream, layer, sample, first_token)
    positions = Positions(position_buckets, max_relative_positions, bucket_rule)
    return Problem(positions, scale, key_padding_mask, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout)


# Not with torch.library.custom_op, whose first call imports torch's compiler, for seconds, and every call passes by it.
torch.library.define("disentangled::attention_forward", f"({_ARGUMENTS}) -> (Tensor, Tensor)")
torch.library.define(
    "disentangled::attention_backward", f"(Tensor grad_out, Tensor out, Tensor lse, {_ARGUMENTS}) -> Tensor[]"
)


def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, rel_key: Tensor | None, rel_query: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Context and log-sum-exp."""
    from disentangled.kernels.disentangled_attention import launch

    with torch.cuda.device_of(query):  # Triton launches on the current device
        return launch.forward(query, key, value, rel_key, rel_query, _problem(*rest))


torch.library.impl("disentangled::attention_forward", ("cpu", "cuda"))(attention_forward)


@torch.library.register_fake("disentangled::attention_forward")
def _(query: Tensor, key: Tensor, value: Tensor, rel_key: Any, rel_query: Any, *rest: Any) -> tuple[Tensor, Tensor]:
    num_queries = math.prod(query.shape[:-2])
    lse = torch.empty((query.shape[-2], num_queries), dtype=torch.float32, device=query.device)
    return torch.empty(query.shape, dtype=query.dtype, device=query.device), lse


def attention_backward(
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rel_key: Tensor | None,
    rel_query: Tensor | None,
    *rest: Any,
) -> list[Tensor]:
    """Gradients with respect to those of the five tensors that are there."""
    from disentangled.kernels.disentangled_attention import launch

    with torch.cuda.device_of(query):
        gradients = launch.backward(grad_out, query, key, value, rel_key, rel_query, out, lse, _problem(*rest))
    return [x for x in gradients if x is not None]


torch.library.impl("disentangled::attention_backward", ("cpu", "cuda"))(attention_backward)


@torch.library.register_fake("disentangled::attention_backward")
def _(grad_out: Tensor, out: Tensor, lse: Tensor, *arguments: Any) -> list[Tensor]:
    present = [x for x in arguments[:_NUM_DIFFERENTIABLE] if x is not None]
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in present]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)  # or zeros would be made for the gradient of log-sum-exp
    ctx.save_for_backward(*inputs[:_NUM_TENSORS], out, lse)
    ctx.numbers = inputs[_NUM_TENSORS:]


def _backward(ctx: Any, grad_out: Tensor, grad_lse: None) -> tuple[Tensor | None, ...]:
    *tensors, out, lse = ctx.saved_tensors
    gradients = iter(direct_backward(grad_out, out, lse, *tensors, *ctx.numbers))
    present = (None if x is None else next(gradients) for x in tensors[:_NUM_DIFFERENTIABLE])
    return *present, *[None] * (_NUM_ARGUMENTS - _NUM_DIFFERENTIABLE)


def _refuse_second_derivative(ctx: Any, *gradients: Any) -> None:
    raise RuntimeError("disentangled_attention has no second derivatives: differentiate with create_graph=False")


torch.library.register_autograd("disentangled::attention_forward", _backward, setup_context=_save_for_backward)
torch.library.register_autograd("disentangled::attention_backward", _refuse_second_derivative)
direct_forward = DirectOperator(
    torch.ops.disentangled.attention_forward.default, attention_forward, _save_for_backward, _backward
)
direct_backward = DirectOperator(torch.ops.disentangled.attention_backward.default, attention_backward)
