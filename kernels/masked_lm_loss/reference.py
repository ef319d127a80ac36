"""Masked language modelling, slow and obvious: the truth that tests and benchmarks compare with.

All logits at once, gradients by autograd; arithmetic in the dtype of the inputs, softmax in float32 at least: in
float64 it is the exact answer, in bfloat16 it is what eager code does. The draw is in float64.
Used by: op.py, tests, benchmarks. Tested by: tests/kernels/test_masked_lm_loss.py, against torch's cross_entropy.
"""

# M masked tokens  D hidden width  V vocabulary

import torch
import torch.nn.functional as F
from torch import Tensor

from disentangled.kernels.masked_lm_loss.draw import LARGEST_SCORE, SAMPLE_BLOCK, Draw


def score(
    hidden: Tensor, table: Tensor, bias: Tensor, labels: Tensor, draw: Draw
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses [M], logsumexp [M], is_correct [M] and drawn ids [M] of hidden [M, D], table [V, D], bias [V]."""
    logits = F.linear(hidden, table.to(hidden.dtype), bias.to(hidden.dtype))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    lse = torch.logsumexp(logits, dim=-1)
    counts = labels >= 0
    label_logits = logits.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
    losses = torch.where(counts, lse - label_logits, 0.0)
    is_correct = counts & (logits.argmax(-1) == labels)
    return losses, lse.detach(), is_correct, draw_ids(logits.detach(), draw)


def draw_ids(logits: Tensor, draw: Draw) -> Tensor:
    """One id per row of logits [M, V]: a block of ids by the first uniform number, an id of it by the second."""
    finite = logits.nan_to_num(0.0, LARGEST_SCORE, -LARGEST_SCORE).double() / draw.temperature
    probabilities = finite.masked_fill(draw.banned, -torch.inf).softmax(-1)
    drawn = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    for row, (first, second) in enumerate(draw.uniforms().tolist()):
        blocks = probabilities[row].split(SAMPLE_BLOCK)
        block = first_past(torch.stack([x.sum() for x in blocks]), first)
        drawn[row] = block * SAMPLE_BLOCK + first_past(blocks[block], second)
    return drawn


def first_past(weights: Tensor, share: float) -> int:
    """The first place where the cumulative weight [C] passes this share of all of it."""
    cumulative = weights.cumsum(0)
    return int((cumulative > share * cumulative[-1]).nonzero()[0])
