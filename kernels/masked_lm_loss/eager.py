"""Implementation "torch": rows in chunks, with the gradients made while a chunk's logits are there.

A chunk's logits are computed once, read for the draw, turned into probabilities in place and then into the gradient of
the loss; two products make the gradient of the hidden rows and add to the table's. That is three products, as in eager
code, where a backward pass that recomputes has four. It needs a loss whose upstream gradient is one number, which only
scales what is there already: so the sum of the losses has gradients, and a single row's loss has none.

All arithmetic is float32 (float64 for float64). A table in another dtype is widened TABLE_BLOCK ids at a time.
Memory: CHUNK_BYTES of logits, the gradients themselves (float32 until backward scales them: in half precision that is
4 bytes for each number of the table more than they take at last), and small change.
Used by: op.py. Tested by: tests/kernels/test_masked_lm_loss.py.
"""

# M masked tokens  D hidden width  V vocabulary  R rows of a chunk

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from disentangled.kernels.masked_lm_loss.draw import SAMPLE_BLOCK, Draw, choose, scores_of

CHUNK_BYTES = 40 << 20
# Widened at a time: 12 MiB at width 768.
TABLE_BLOCK = 4096
# Ids whose element-wise work is done while they are in a core's caches: 1 MiB at 64 rows.
COLUMNS_AT_ONCE = 32 * SAMPLE_BLOCK


@dataclass(frozen=True, eq=False)
class Scores:
    """Of each row: loss, logsumexp, is the likeliest id the label, and the drawn id; each [M]."""

    losses: Tensor
    lse: Tensor
    is_correct: Tensor
    drawn: Tensor


class Gradients:
    """Sums for the gradients of hidden, table and bias at an upstream gradient of 1, in the arithmetic's dtype.

    Zeros where there are no rows; else the first chunk of rows writes them.
    """

    def __init__(self, hidden: Tensor, table: Tensor, dtype: torch.dtype) -> None:
        make = torch.empty if hidden.shape[0] else torch.zeros
        self.hidden = make(hidden.shape, dtype=dtype, device=hidden.device)
        self.table = make(table.shape, dtype=dtype, device=table.device)
        self.bias = make(table.shape[0], dtype=dtype, device=table.device)


class EagerLoss(torch.autograd.Function):
    """The sum of the losses, differentiable once, and the parts of Scores, which have no gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, table: Tensor, bias: Tensor, labels: Tensor, draw: Draw, has_gradients: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """has_gradients: whether backward will follow."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        gradients = Gradients(hidden, table, dtype) if has_gradients else None
        scores = score(hidden, table, bias, labels, draw, gradients)
        ctx.gradients = gradients
        ctx.dtypes = hidden.dtype, table.dtype, bias.dtype
        ctx.mark_non_differentiable(scores.losses, scores.lse, scores.is_correct, scores.drawn)
        ctx.set_materialize_grads(False)
        return scores.losses.sum(), scores.losses, scores.lse, scores.is_correct, scores.drawn

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Scales what forward has summed, in place, and gives it away."""
        if upstream is None:
            return (None,) * 6
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "masked_lm_loss has given its gradients away: call backward once, without retain_graph=True"
            )
        sums = gradients.hidden, gradients.table, gradients.bias
        return *(x.mul_(upstream).to(dtype) for x, dtype in zip(sums, ctx.dtypes, strict=True)), None, None, None


def score(
    hidden: Tensor, table: Tensor, bias: Tensor, labels: Tensor, draw: Draw, gradients: Gradients | None
) -> Scores:
    """Scores of hidden [M, D]; adds to gradients where there are any."""
    num_rows, num_ids = hidden.shape[0], table.shape[0]
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    hidden, bias = hidden.to(dtype), bias.to(dtype)
    scores = Scores(
        losses=torch.empty(num_rows, dtype=dtype, device=hidden.device),
        lse=torch.empty(num_rows, dtype=dtype, device=hidden.device),
        is_correct=torch.empty(num_rows, dtype=torch.bool, device=hidden.device),
        drawn=torch.empty(num_rows, dtype=torch.int64, device=hidden.device),
    )
    # Whole blocks of ids: those past the last are banned, and have no weight in the softmax.
    width = _whole_blocks(num_ids)
    ban = torch.full((width,), -torch.inf, dtype=dtype, device=hidden.device)
    ban[:num_ids] = torch.where(draw.banned, -torch.inf, 0.0)
    uniforms = draw.uniforms()
    chunk_rows = min(num_rows, rows_at_once(num_ids, dtype))
    buffer = torch.empty((chunk_rows, width), dtype=dtype, device=hidden.device)
    for start in range(0, num_rows, max(1, chunk_rows)):
        rows = slice(start, min(start + chunk_rows, num_rows))
        logits = buffer[: rows.stop - rows.start]
        logits[:, num_ids:] = -torch.inf
        for ids, block in _blocks(table, dtype):
            torch.addmm(bias[ids], hidden[rows], block.T, out=logits[:, ids])
        scores.drawn[rows] = _draw(logits, uniforms[rows], ban, draw.temperature)
        label = labels[rows]
        counts = label >= 0
        largest, best = logits.max(dim=-1)
        scores.is_correct[rows] = counts & (best == label)
        label_logits = logits.gather(1, label.clamp(min=0).unsqueeze(1)).squeeze(1)
        total = _exponentiate(logits, largest)
        scores.lse[rows] = largest + total.log()
        # In this order: the two large numbers cancel before anything is rounded to their last place.
        scores.losses[rows] = torch.where(counts, (largest - label_logits) + total.log(), 0.0)
        if gradients is None:
            continue
        for columns in _columns(width):  # a row that does not count is zero also where its logits are NaN
            logits[:, columns].mul_((1.0 / total).unsqueeze(1)).masked_fill_(~counts.unsqueeze(1), 0.0)
        logits.scatter_add_(1, label.clamp(min=0).unsqueeze(1), -counts.to(dtype).unsqueeze(1))
        _add_gradients(gradients, rows, logits, hidden[rows], table)
    return scores


def rows_at_once(num_ids: int, dtype: torch.dtype) -> int:
    """Rows of a chunk, where there are as many."""
    return max(1, CHUNK_BYTES // (_whole_blocks(num_ids) * dtype.itemsize))


def _add_gradients(gradients: Gradients, rows: slice, grad_logits: Tensor, hidden: Tensor, table: Tensor) -> None:
    """Adds a chunk's; grad_logits [R, V and more], hidden [R, D]."""
    for ids, block in _blocks(table, hidden.dtype):
        part = grad_logits[:, ids]
        gradients.hidden[rows].addmm_(part, block, beta=float(ids.start > 0))
        gradients.table[ids].addmm_(part.T, hidden, beta=float(rows.start > 0))  # times 0: not read
        if rows.start > 0:
            gradients.bias[ids] += part.sum(0)
        else:
            torch.sum(part, 0, out=gradients.bias[ids])


def _draw(logits: Tensor, uniforms: Tensor, ban: Tensor, temperature: float) -> Tensor:
    """An id for each row of logits [R, whole blocks]; ban as draw.scores_of wants it."""
    block_lse = torch.cat(
        [
            scores_of(logits[:, columns], temperature, ban[columns]).unflatten(-1, (-1, SAMPLE_BLOCK)).logsumexp(dim=-1)
            for columns in _columns(logits.shape[1])
        ],
        dim=-1,
    )
    block = choose(block_lse, uniforms[:, 0])
    ids = block.unsqueeze(1) * SAMPLE_BLOCK + torch.arange(SAMPLE_BLOCK, device=logits.device)
    scores = scores_of(logits.gather(1, ids), temperature, ban[ids])
    return ids[:, 0] + choose(scores, uniforms[:, 1])


def _exponentiate(logits: Tensor, largest: Tensor) -> Tensor:
    """exp(logits - largest) in place; returns the sum of each row."""
    total = torch.zeros_like(largest)
    for columns in _columns(logits.shape[1]):
        total += logits[:, columns].sub_(largest.unsqueeze(1)).exp_().sum(-1)
    return total


def _whole_blocks(num_ids: int) -> int:
    return -(-num_ids // SAMPLE_BLOCK) * SAMPLE_BLOCK


def _columns(width: int) -> Iterator[slice]:
    for start in range(0, width, COLUMNS_AT_ONCE):
        yield slice(start, min(start + COLUMNS_AT_ONCE, width))


def _blocks(table: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The table in the arithmetic's dtype: as it is, or a block after the other widened."""
    step = table.shape[0] if table.dtype == dtype else TABLE_BLOCK
    for start in range(0, table.shape[0], step):
        ids = slice(start, min(start + step, table.shape[0]))
        yield ids, table[ids].to(dtype)
