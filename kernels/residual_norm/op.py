"""The op `residual_norm`, and which implementation a call gets: "triton" on GPUs that can, else "torch", said once.

Both make the same decisions of dropout (counter_rng.py has the rule); what they add and normalize is rounded
differently.
Used by: model/layer.py. Tested by: tests/kernels/test_residual_norm.py.
Not here: the kernels (fused.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from disentangled.kernels.autocast import product_dtype
from disentangled.kernels.counter_rng import drop_threshold, signed_seed
from disentangled.kernels.direct_operator import DirectOperator
from disentangled.kernels.hidden_dropout import dropout
from disentangled.kernels.hidden_dropout.op import check_keys, choose_implementation

MAX_FEATURES = 4096  # a program has whole rows


def residual_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    probability: float = 0.0,
    *,
    seed: int = 0,
    stream: int = 0,
    layer: int = 0,
    site: int = 0,
    sample: Tensor | None = None,
    token: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """What ends each half of a post-norm layer: LayerNorm over features of a residual and a dropped-out branch.

    Formula: out = LayerNorm(residual + x * keep / P(keep)) * weight + bias, keep as in kernels/hidden_dropout.

    Args:
        x: [..., F], the branch.
        residual: [..., F], of any floating dtype.
        weight, bias: [F], of any floating dtype.
        eps: added to the variance.
        probability, seed, stream, layer, site, sample, token: dropout's; sample and token int64 [...].
        implementation: "torch" or "triton"; None chooses.

    Returns:
        The result [..., F] twice: in the wider dtype of x and residual, so that the residual stream keeps its
        precision under autocast, and as products take it there, in autocast's dtype. Without autocast both are one
        tensor.

    Gradients: to x, residual, weight and bias, each in its own dtype, from either result or both; deterministic.
    Numerics: sums in float32, rounded once (triton); float32 of a sum in the wider dtype of x and residual (torch).
    Memory: triton keeps its inputs and 8 bytes a row.

    Raises:
        ValueError: shapes that do not fit, and what kernels/hidden_dropout refuses; more than 4,096 features for
            triton.
        RuntimeError: "triton" was asked for where it cannot run.
    """
    if residual.shape != x.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}, x {tuple(x.shape)}: they must be the same")
    for name, values in (("weight", weight), ("bias", bias)):
        if values.shape != x.shape[-1:]:
            raise ValueError(f"{name} has shape {tuple(values.shape)}: it must be [{x.shape[-1]}], the features of x")
    has_dropout = drop_threshold(probability) > 0
    if has_dropout:
        check_keys(stream, layer, site)
        if sample is None or token is None:
            raise ValueError(f"dropout probability {probability} needs sample and token: give both, or 0")
    else:
        sample = token = None
    wide = None if x.shape[-1] <= MAX_FEATURES else f"x has {x.shape[-1]:,} features, and it takes {MAX_FEATURES:,}"
    if choose_implementation(implementation, x.device, x.dtype, "residual_norm", wide) == "torch":
        if sample is not None and token is not None:
            x = dropout(
                x, probability, seed=seed, stream=stream, layer=layer, site=site, sample=sample, token=token,
                implementation=implementation,
            )  # fmt: skip
        total = x + residual
        out = F.layer_norm(total, weight.shape, weight, bias, eps).to(total.dtype)
        return out, out.to(product_dtype(out.dtype, out.device))
    operator = torch.ops.disentangled.residual_norm if torch.compiler.is_compiling() else load_kernels()
    wider = torch.promote_types(x.dtype, residual.dtype)
    operand_dtype = product_dtype(wider, x.device)
    out, operand, *_ = operator(
        x, residual, weight, bias, eps, None if operand_dtype == wider else operand_dtype,
        probability if has_dropout else 0.0, signed_seed(seed), int(stream), layer, sample, token, site << 24,
    )  # fmt: skip
    return out, out if operand_dtype == wider else operand


def load_kernels() -> DirectOperator:
    """Define the operators disentangled::residual_norm; what torch.compile traces cannot import them itself."""
    from disentangled.kernels.residual_norm import fused

    return fused.residual_norm
