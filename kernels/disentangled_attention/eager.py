"""Disentangled attention in plain torch: implementation "torch", the one that runs everywhere.

The relative tables are expanded per distance, so that the logarithmic bucket leaves the arithmetic and a position
term is one matrix product and a skewed read. With rows r and columns c (queries and keys for c2p, keys and queries
for p2c) the term at (r, c) is x_r . E[c - r + R - 1] for R rows; the product of x and E, in rows of width W, holds it
at r * (W - 1) + c + R - 1, which is a strided view. No index tensor of the scores' size exists, forward or backward.
Rows are taken in blocks, because a block of r rows meets only r + C - 1 of the R + C - 1 distances.

Forward saves the probabilities, and the decisions of dropout at a byte each; everything else of the scores' size is
scratch for a few heads that the next ones reuse. Backward sums each gradient in one place and in a fixed order:
deterministic. Scores, softmax and sums are float32, or float64 for float64 inputs.

Used by: op.py. Tested by: tests/kernels/test_disentangled_attention.py and its neighbours. Measured in: README.md.
Not here: argument checks (op.py); which tokens share a batch (document_groups.py); second derivatives.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from disentangled.kernels.counter_rng import keep_scale
from disentangled.kernels.disentangled_attention.document_groups import DocumentGroup
from disentangled.kernels.disentangled_attention.dropout import AttentionDropout, attention_keep_mask
from disentangled.kernels.disentangled_attention.log_bucket import Positions

# G documents of a group  T query tokens  S key tokens  N heads  n heads of a chunk  H head width
# R rows and C columns of a position term  W = rows of a block + C - 1, the distances that the block meets

BLOCK_ROWS = 32  # at T = S = 128 a window is 1.25 S wide instead of 2 S; 16 to 64 are within 7 % (README.md)
# Scores worked on at a time. CPU: 1 MiB in float32, which stays in a core's cache. GPU: many heads, to fill it.
CHUNK_SCORES_CPU, CHUNK_SCORES_GPU = 1 << 18, 1 << 26


class _Inputs(NamedTuple):
    """The op's tensors, or the gradients with respect to them: [tokens, N, H], and the tables [N, 2k, H]."""

    query: Tensor
    key: Tensor
    value: Tensor
    rel_key: Tensor | None
    rel_query: Tensor | None


class _Operands(NamedTuple):
    """One group's tensors, or the gradients with respect to them, as the matrix products want them.

    q [N, G, T, H] is scaled; k [N, G, S, H]; v [N, G, S, H] is scaled by what dropout scales survivors with.
    c2p and p2c are the tables per distance, [N, T + S - 1, H]: c2p from the largest distance down, p2c scaled and from
    the smallest up, so that both are indexed by column - row.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    c2p: Tensor | None
    p2c: Tensor | None


class DisentangledAttention(torch.autograd.Function):
    """Every group's queries attend to its keys; arguments as in _Inputs, then what is not differentiated."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rel_key: Tensor | None,
        rel_query: Tensor | None,
        groups: tuple[DocumentGroup, ...],
        positions: Positions,
        scale: float,
        dropout: AttentionDropout | None,
    ) -> Tensor:
        ctx.groups, ctx.positions, ctx.scale, ctx.dropout = groups, positions, scale, dropout
        inputs = _Inputs(query, key, value, rel_key, rel_query)
        output = _new_rows(query, query.dtype, groups)
        saved: list[Tensor | None] = []
        for group in groups:
            operands = _load(inputs, group, positions, scale, dropout)
            context, *for_backward = _forward(operands, group, dropout, save=any(ctx.needs_input_grad))
            group.queries.unpad_into(output, context)
            saved += for_backward
        ctx.save_for_backward(*inputs, *saved)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        inputs, saved = _Inputs(*ctx.saved_tensors[:5]), ctx.saved_tensors[5:]
        dtype = _compute_dtype(grad_output.dtype)
        # In the dtype of the sums: those of the tables run over the groups.
        grad_inputs = _Inputs(
            _new_rows(inputs.query, dtype, ctx.groups),
            _new_rows(inputs.key, dtype, ctx.groups),
            _new_rows(inputs.value, dtype, ctx.groups),
            None if inputs.rel_key is None else torch.zeros_like(inputs.rel_key, dtype=dtype),
            None if inputs.rel_query is None else torch.zeros_like(inputs.rel_query, dtype=dtype),
        )
        with torch.autocast(grad_output.device.type, enabled=False):
            for group, probabilities, keep in zip(ctx.groups, saved[::2], saved[1::2], strict=True):
                operands = _load(inputs, group, ctx.positions, ctx.scale, ctx.dropout)
                grad_context = group.queries.pad(grad_output, dtype)
                gradients = _backward(operands, grad_context, probabilities, keep)
                _store(gradients, grad_inputs, group, ctx.positions, ctx.scale, ctx.dropout)
        return *(None if x is None else x.to(grad_output.dtype) for x in grad_inputs), None, None, None, None


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _new_rows(like: Tensor, dtype: torch.dtype, groups: tuple[DocumentGroup, ...]) -> Tensor:
    """A tensor of that shape, for the groups to write: of zeros unless they write every row."""
    make = torch.empty if any(group.queries.tokens is None for group in groups) else torch.zeros
    return make(like.shape, dtype=dtype, device=like.device)


def _load(
    inputs: _Inputs, group: DocumentGroup, positions: Positions, scale: float, dropout: AttentionDropout | None
) -> _Operands:
    dtype = _compute_dtype(inputs.query.dtype)
    slots = positions.slots(group.queries.length, group.keys.length, inputs.query.device)
    v = group.keys.pad(inputs.value, dtype)
    return _Operands(
        q=group.queries.pad(inputs.query, dtype).mul_(scale),
        k=group.keys.pad(inputs.key, dtype),
        v=v if dropout is None else v.mul_(keep_scale(dropout.probability)),
        c2p=None if inputs.rel_key is None else inputs.rel_key.index_select(1, slots.flip(0)).to(dtype),
        p2c=None if inputs.rel_query is None else inputs.rel_query.index_select(1, slots).to(dtype).mul_(scale),
    )


def _store(
    gradients: _Operands,
    grad_inputs: _Inputs,
    group: DocumentGroup,
    positions: Positions,
    scale: float,
    dropout: AttentionDropout | None,
) -> None:
    """The adjoint of _load: writes the rows of the group's tokens and adds to the tables."""
    slots = positions.slots(group.queries.length, group.keys.length, gradients.q.device)
    v = gradients.v if dropout is None else gradients.v.mul_(keep_scale(dropout.probability))
    group.queries.unpad_into(grad_inputs.query, gradients.q.mul_(scale))
    group.keys.unpad_into(grad_inputs.key, gradients.k)
    group.keys.unpad_into(grad_inputs.value, v)
    if gradients.c2p is not None and grad_inputs.rel_key is not None:
        _add_per_slot(grad_inputs.rel_key, gradients.c2p.flip(1), slots)
    if gradients.p2c is not None and grad_inputs.rel_query is not None:
        _add_per_slot(grad_inputs.rel_query, gradients.p2c.mul_(scale), slots)


def _add_per_slot(table: Tensor, per_distance: Tensor, slots: Tensor) -> None:
    """table [N, 2k, H] += the sum over each slot's distances; they are neighbours, because slots ascend."""
    num_distances = torch.bincount(slots, minlength=table.shape[1])
    per_distance = per_distance.transpose(0, 1).contiguous()
    table += torch.segment_reduce(per_distance, "sum", lengths=num_distances, axis=0).transpose(0, 1)


def _forward(
    operands: _Operands, group: DocumentGroup, dropout: AttentionDropout | None, save: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The context [N, G, T, H], then what backward needs: probabilities and decisions, both [N, G, T, S]."""
    q, k, v, c2p, p2c = operands
    shape = (*q.shape[:3], k.shape[2])
    context = torch.empty_like(q)
    probabilities = q.new_empty(shape) if save else None
    keep = torch.empty(shape, dtype=torch.bool, device=q.device) if save and dropout is not None else None
    dead_key_bias = group.dead_key_bias(q.dtype)
    scratch = _Scratch(shape, q, zero_bands=False)
    for heads in scratch.head_chunks:
        scores = scratch.scores(heads)
        _multiply(q[heads], k[heads].mT, out=scores)
        if c2p is not None:
            _add_position_term(scores, q[heads], c2p[heads], scratch)
        if p2c is not None:
            _add_position_term(scores.mT, k[heads], p2c[heads], scratch)
        if dead_key_bias is not None:
            scores += dead_key_bias
        kept = torch.softmax(scores, dim=-1, out=scores if probabilities is None else probabilities[heads])
        if dropout is not None:
            chunk_keep = attention_keep_mask(dropout, group.documents, range(shape[0])[heads], *shape[2:])
            kept = torch.mul(kept, chunk_keep, out=scores)
            if keep is not None:
                keep[heads] = chunk_keep
        _multiply(kept, v[heads], out=context[heads])
    return context, probabilities, keep


def _backward(operands: _Operands, grad_context: Tensor, probabilities: Tensor, keep: Tensor | None) -> _Operands:
    """Gradients with respect to the operands, given that with respect to the context [N, G, T, H]."""
    q, k, v, c2p, p2c = operands
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    grad_c2p, grad_p2c = (None if table is None else torch.zeros_like(table) for table in (c2p, p2c))
    scratch = _Scratch(probabilities.shape, q, zero_bands=True)
    for heads in scratch.head_chunks:
        scores, chunk = scratch.scores(heads), probabilities[heads]
        kept = chunk if keep is None else torch.mul(chunk, keep[heads], out=scores)
        _multiply(kept.mT, grad_context[heads], out=grad_v[heads])
        _multiply(grad_context[heads], v[heads].mT, out=scores)
        if keep is not None:
            scores *= keep[heads]
        torch.ops.aten._softmax_backward_data.out(scores, chunk, -1, scores.dtype, grad_input=scores)
        _multiply(scores, k[heads], out=grad_q[heads])
        _multiply(scores.mT, q[heads], out=grad_k[heads])
        if c2p is not None and grad_c2p is not None:
            _add_position_gradients(scores, q[heads], c2p[heads], grad_q[heads], grad_c2p[heads], scratch)
        if p2c is not None and grad_p2c is not None:
            _add_position_gradients(scores.mT, k[heads], p2c[heads], grad_k[heads], grad_p2c[heads], scratch)
    return _Operands(grad_q, grad_k, grad_v, grad_c2p, grad_p2c)


class _Scratch:
    """Memory for the scores of a few heads and for a block of a position term, and the heads that fit at a time.

    There is one band for each size of block (a term's last may be smaller). Backward asks for bands of zeros and only
    ever writes the part that the skewed view covers, so the rest stays zero from block to block.
    """

    def __init__(self, shape: tuple[int, ...], like: Tensor, *, zero_bands: bool) -> None:
        num_heads, *rest = shape  # [N, G, T, S]
        chunk_scores = CHUNK_SCORES_CPU if like.device.type == "cpu" else CHUNK_SCORES_GPU
        step = min(num_heads, max(1, chunk_scores // math.prod(rest)))
        self.head_chunks = [slice(head, min(head + step, num_heads)) for head in range(0, num_heads, step)]
        self._scores = like.new_empty((step, *rest))
        self._new_band = like.new_zeros if zero_bands else like.new_empty
        self._bands: dict[tuple[int, int], Tensor] = {}

    def scores(self, heads: slice) -> Tensor:
        """[n, G, T, S]."""
        return self._scores[: heads.stop - heads.start]

    def band(self, num_heads: int, num_rows: int, width: int) -> Tensor:
        """[n, rows, W]."""
        if (num_rows, width) not in self._bands:
            self._bands[num_rows, width] = self._new_band((self._scores.shape[0], num_rows, width))
        return self._bands[num_rows, width][:num_heads]


def _add_position_term(scores: Tensor, x: Tensor, table: Tensor, scratch: _Scratch) -> None:
    """scores[r, c] += x_r . table[c - r + R - 1]; scores [n, G, R, C], x [n, G, R, H], table [n, R + C - 1, H]."""
    num_heads, num_documents, _, num_columns = scores.shape
    for rows, window in _blocks(scores):
        band = scratch.band(num_heads, num_documents * (rows.stop - rows.start), window.stop - window.start)
        torch.bmm(x[:, :, rows].flatten(1, 2), table[:, window].mT, out=band)
        scores[:, :, rows] += _skew(band, num_documents, num_columns)


def _add_position_gradients(
    grad_scores: Tensor, x: Tensor, table: Tensor, grad_x: Tensor, grad_table: Tensor, scratch: _Scratch
) -> None:
    """The adjoint of _add_position_term, added to grad_x and grad_table."""
    num_heads, num_documents, _, num_columns = grad_scores.shape
    for rows, window in _blocks(grad_scores):
        band = scratch.band(num_heads, num_documents * (rows.stop - rows.start), window.stop - window.start)
        _skew(band, num_documents, num_columns).copy_(grad_scores[:, :, rows])
        grad_table[:, window].baddbmm_(band.mT, x[:, :, rows].flatten(1, 2))
        grad_x[:, :, rows] += torch.bmm(band, table[:, window]).view_as(grad_x[:, :, rows])


def _blocks(scores: Tensor) -> Iterator[tuple[slice, slice]]:
    """Blocks of the R rows of [n, G, R, C], each with the rows of the table that it meets."""
    num_rows, num_columns = scores.shape[2:]
    for start in range(0, num_rows, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, num_rows)
        yield slice(start, stop), slice(num_rows - stop, num_rows - start + num_columns - 1)


def _skew(band: Tensor, num_documents: int, num_columns: int) -> Tensor:
    """The view [n, G, rows, C] of band [n, G * rows, W] whose (r, c) is the band's (r, c - r + rows - 1)."""
    num_heads, all_rows, width = band.shape
    num_rows = all_rows // num_documents
    return band.as_strided(
        (num_heads, num_documents, num_rows, num_columns),
        (all_rows * width, num_rows * width, width - 1, 1),
        band.storage_offset() + num_rows - 1,
    )


def _multiply(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    """out = a b, for [n, G, rows, inner] and [n, G, inner, columns]."""
    torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out=out.flatten(0, 1))
