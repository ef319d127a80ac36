"""The public masked_lm_loss: one docstring, and the way of a call to its implementation.

Used by: model/mlm_head.py. Tested by: tests/kernels/test_masked_lm_loss.py, test_masked_lm_draws.py,
test_triton_masked_lm_loss.py.
Not here: arithmetic (reference.py, eager.py, launch.py); checks (arguments.py); the choice of implementation
(dispatch.py); the head's dense layer and LayerNorm (model/mlm_head.py).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from disentangled.kernels.autocast import cast_input
from disentangled.kernels.masked_lm_loss import reference
from disentangled.kernels.masked_lm_loss.arguments import check_draw, check_tensors
from disentangled.kernels.masked_lm_loss.dispatch import choose_implementation
from disentangled.kernels.masked_lm_loss.draw import Draw
from disentangled.kernels.masked_lm_loss.eager import EagerLoss

# M masked tokens  D hidden width  V vocabulary


class MaskedLmLoss(NamedTuple):
    """What one call gives, all on the device. A tuple, because ZeRO-3's hooks look for tensors in nothing else.

    Attributes:
        loss_sum: scalar, the sum of losses; the only part with a gradient.
        losses: [M], cross-entropy in nats; 0 where the label is negative.
        lse: [M], logsumexp of the logits.
        is_correct: [M] bool, the likeliest id (the lowest of equals) is the label.
        drawn: [M] int64, the replacement ids.
    """

    loss_sum: Tensor
    losses: Tensor
    lse: Tensor
    is_correct: Tensor
    drawn: Tensor


def masked_lm_loss(
    hidden: Tensor,
    table: Tensor,
    bias: Tensor,
    labels: Tensor,
    draw: Draw,
    *,
    implementation: str | None = None,
) -> MaskedLmLoss:
    """Masked language modelling's loss, top-1 and replacements from one set of logits that is never whole in memory.

    Formula:
        logits_mv = hidden_m . table_v + bias_v
        loss_m = logsumexp_v(logits_m) - logits_m[label_m], or 0 where label_m is negative
        drawn_m ~ softmax_v(logits_m / temperature) over the ids that are not banned; draw.py says how
    Shapes and dtypes:
        hidden        [M, D], float16, bfloat16, float32 or float64; M may be 0 and differ from call to call
        table, bias   E_G [V, D] and [V], of one floating dtype, which need not be hidden's
        labels        [M] int64 below V; negative (-100): the row has no loss and gives no gradient, but draws an id
        draw          the key of each row's random numbers, the banned ids, the temperature
        implementation
                      None chooses "triton" (fused kernels; half precision or float32, an NVIDIA GPU of compute
                      capability 8.0 or newer) where it can run, else "torch" (plain torch, runs everywhere), and says
                      so once. By name, also "reference" (all logits in memory; the truth of the tests).
    Numerics: logits, softmax and sums are float32 (float64 for float64), whatever the inputs, and so are loss_sum,
        losses and lse; gradients are rounded once, to the dtypes of what they belong to. "triton" multiplies in
        hidden's dtype and rounds gradients of logits to it. Under torch.autocast hidden is cast first and the table is
        not, so no second table is made. Probabilities of draws are good to about 1e-6 of themselves.
    Gradients: of loss_sum with respect to hidden, table and bias; deterministic, no atomics, as every sum has one place
        and a fixed order. "torch" makes them in the forward pass, so backward works once; no second derivatives.
    Memory: besides inputs, outputs and gradients at most 64 MB, and that does not grow with M or V once it is reached
        (M, V at which a row's own statistics exceed it apart: 4 V / 128 bytes a row). "torch" holds float32 gradients
        from forward on. "reference" holds several [M, V].
    Host: "triton" never makes the host wait, and compiles no kernel again for another M.
    Raises: ValueError for arguments that do not fit, RuntimeError for an implementation that cannot run here.
    Source: arXiv 2111.09543 section 3.1 and 2003.10555 section 3.1, which draw from the same softmax.
    """
    hidden = cast_input(hidden)
    check_tensors(hidden, table, bias, labels)
    check_draw(draw, hidden, table)
    implementation = choose_implementation(implementation, hidden.device, hidden.dtype)
    has_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (hidden, table, bias))
    with torch.autocast(hidden.device.type, enabled=False):
        if implementation == "reference":
            losses, lse, is_correct, drawn = reference.score(hidden, table, bias, labels, draw)
            return MaskedLmLoss(losses.sum(), losses.detach(), lse, is_correct, drawn)
        if implementation == "triton":
            from disentangled.kernels.masked_lm_loss.launch import FusedLoss  # imports Triton

            return MaskedLmLoss(*FusedLoss.apply(hidden, table, bias, labels, draw))
        return MaskedLmLoss(*EagerLoss.apply(hidden, table, bias, labels, draw, has_gradients))
