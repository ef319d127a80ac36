"""Disentangled attention in plain torch: implementation "torch", the one that runs everywhere.

The relative tables are expanded per distance, so that the logarithmic bucket leaves the arithmetic and a position
term is matrix products and skewed reads (position_terms.py). No index tensor of the scores' size exists, forward or
backward. c2p is added to the scores, p2c to transposed scores, which one copy turns.

Forward saves queries, keys and values as it laid them out, the probabilities, and the decisions of dropout at a byte
each; everything else of the scores' size is scratch for a few heads that the next ones reuse. Backward sums each
gradient in one place and in a fixed order: deterministic. Scores, softmax and sums are float32, or float64 for float64
inputs.

Used by: op.py. Tested by: tests/kernels/test_disentangled_attention.py and its neighbours. Measured in: README.md.
Not here: argument checks (op.py); a position term's arithmetic (position_terms.py); which tokens share a batch
(document_groups.py); second derivatives.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from disentangled.kernels.counter_rng import keep_scale
from disentangled.kernels.disentangled_attention.document_groups import DocumentGroup, PaddedTokens
from disentangled.kernels.disentangled_attention.dropout import AttentionDropout, attention_keep_mask
from disentangled.kernels.disentangled_attention.log_bucket import Positions
from disentangled.kernels.disentangled_attention.position_terms import Bands, add_position_gradients, position_terms

# G documents of a group  T query tokens  S key tokens  N heads  n heads of a chunk  H head width
# R rows and C columns of a matrix

LARGE_MATRIX = 1 << 16  # numbers from which torch's fast transposed copy, of one matrix a call, is worth the calls
# Scores worked on at a time, if one head has not more already. CPU: 1 MiB in float32, for a core's caches. GPU: many
# heads, to fill it.
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
        ctx.num_queries, ctx.num_keys = len(query), len(key)
        save = any(ctx.needs_input_grad)
        output = _new_rows(len(query), query, query.dtype, [group.queries for group in groups])
        saved: list[Tensor | None] = []
        for group in groups:
            operands = _load(inputs, group, positions, scale, dropout)
            context, for_backward = _forward(operands, group, dropout, save)
            group.queries.unpad_into(output, context)
            if save:
                saved += operands.q, operands.k, operands.v, *for_backward
        ctx.save_for_backward(rel_key, rel_query, *saved)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        rel_key, rel_query, *tensors = ctx.saved_tensors  # read once: activation checkpointing allows no second time
        saved = iter(tensors)
        # In the dtype of the sums: those of the tables run over the groups.
        dtype = _compute_dtype(grad_output.dtype)
        queries, keys = [group.queries for group in ctx.groups], [group.keys for group in ctx.groups]
        grad_inputs = _Inputs(
            _new_rows(ctx.num_queries, grad_output, dtype, queries),
            _new_rows(ctx.num_keys, grad_output, dtype, keys),
            _new_rows(ctx.num_keys, grad_output, dtype, keys),
            None if rel_key is None else torch.zeros_like(rel_key, dtype=dtype),
            None if rel_query is None else torch.zeros_like(rel_query, dtype=dtype),
        )
        with torch.autocast(grad_output.device.type, enabled=False):
            for group in ctx.groups:
                tables = _load_tables(rel_key, rel_query, group, ctx.positions, ctx.scale, dtype)
                operands = _Operands(next(saved), next(saved), next(saved), *tables)
                grad_context = group.queries.pad(grad_output, dtype)
                gradients = _backward(operands, grad_context, saved)
                _store(gradients, grad_inputs, group, ctx.positions, ctx.scale, ctx.dropout)
        return *(None if x is None else x.to(grad_output.dtype) for x in grad_inputs), None, None, None, None


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _new_rows(num_tokens: int, like: Tensor, dtype: torch.dtype, tokens: list[PaddedTokens]) -> Tensor:
    """[num_tokens, N, H], to be written by `tokens`: zeros unless these write every row."""
    make = torch.empty if sum(x.num_written for x in tokens) == num_tokens else torch.zeros
    return make((num_tokens, *like.shape[1:]), dtype=dtype, device=like.device)


def _load(
    inputs: _Inputs, group: DocumentGroup, positions: Positions, scale: float, dropout: AttentionDropout | None
) -> _Operands:
    dtype = _compute_dtype(inputs.query.dtype)
    q, k = group.queries.pad(inputs.query, dtype).mul_(scale), group.keys.pad(inputs.key, dtype)
    v = group.keys.pad(inputs.value, dtype)
    if dropout is not None:
        v.mul_(keep_scale(dropout.probability))
    return _Operands(q, k, v, *_load_tables(inputs.rel_key, inputs.rel_query, group, positions, scale, dtype))


def _load_tables(
    rel_key: Tensor | None,
    rel_query: Tensor | None,
    group: DocumentGroup,
    positions: Positions,
    scale: float,
    dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    """c2p and p2c of _Operands, which backward makes again: all groups' together are larger than the tables."""
    table = rel_key if rel_key is not None else rel_query
    if table is None:
        return None, None
    slots = positions.slots(group.queries.length, group.keys.length, table.device)
    return (
        None if rel_key is None else rel_key.index_select(1, slots.flip(0)).to(dtype),
        None if rel_query is None else rel_query.index_select(1, slots).to(dtype).mul_(scale),
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
) -> tuple[Tensor, list[Tensor | None]]:
    """The context [N, G, T, H], then what backward needs: each chunk's probabilities and decisions, [n, G, T, S]."""
    q, k, v, c2p, p2c = operands
    context = torch.empty_like(q)
    saved: list[Tensor | None] = []
    dead_key_bias = group.dead_key_bias(q.dtype)
    scratch = _Scratch(q, k, zero_bands=False)
    for heads in scratch.head_chunks:
        # By the chunk: malloc keeps blocks of a few MiB for the next call, and asks the system for larger ones.
        scores = torch.empty_like(scratch.scores(heads)) if save else scratch.scores(heads)
        if p2c is None:
            _multiply(q[heads], k[heads].mT, out=scores)
        else:
            transposed = scratch.transposed(heads)
            for rows, term in position_terms(k[heads], p2c[heads], scores.shape[2], scratch.bands):
                transposed[:, :, rows] = term
            _copy_transposed(transposed, out=scores)
            scores.flatten(0, 1).baddbmm_(q[heads].flatten(0, 1), k[heads].flatten(0, 1).mT)
        if c2p is not None:
            for rows, term in position_terms(q[heads], c2p[heads], scores.shape[3], scratch.bands):
                scores[:, :, rows] += term
        if dead_key_bias is not None:
            scores += dead_key_bias
        kept, keep = torch.softmax(scores, dim=-1, out=scores), None
        if dropout is not None:
            keep = attention_keep_mask(dropout, group.documents, range(q.shape[0])[heads], *scores.shape[2:])
            kept = torch.mul(kept, keep, out=scratch.scores(heads))
        _multiply(kept, v[heads], out=context[heads])
        if save:
            saved += scores, keep
    return context, saved


def _backward(operands: _Operands, grad_context: Tensor, saved: Iterator[Tensor | None]) -> _Operands:
    """Gradients with respect to the operands, given that with respect to the context; takes what _forward saved."""
    q, k, v, c2p, p2c = operands
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    grad_c2p, grad_p2c = (None if table is None else torch.zeros_like(table) for table in (c2p, p2c))
    scratch = _Scratch(q, k, zero_bands=True)
    for heads in scratch.head_chunks:
        scores, transposed = scratch.scores(heads), scratch.transposed(heads)
        probabilities, keep = next(saved), next(saved)
        assert probabilities is not None
        kept = probabilities if keep is None else torch.mul(probabilities, keep, out=scores)
        _multiply(kept.mT, grad_context[heads], out=grad_v[heads])
        _multiply(grad_context[heads], v[heads].mT, out=scores)
        if keep is not None:
            scores *= keep
        torch.ops.aten._softmax_backward_data.out(scores, probabilities, -1, scores.dtype, grad_input=scores)
        _multiply(scores, k[heads], out=grad_q[heads])
        _copy_transposed(scores, out=transposed)
        _multiply(transposed, q[heads], out=grad_k[heads])
        if c2p is not None and grad_c2p is not None:
            add_position_gradients(scores, q[heads], c2p[heads], grad_q[heads], grad_c2p[heads], scratch.bands)
        if p2c is not None and grad_p2c is not None:
            add_position_gradients(transposed, k[heads], p2c[heads], grad_k[heads], grad_p2c[heads], scratch.bands)
    return _Operands(grad_q, grad_k, grad_v, grad_c2p, grad_p2c)


class _Scratch:
    """Memory for a few heads' scores, also transposed, and for bands of position terms; and which heads go together."""

    def __init__(self, q: Tensor, k: Tensor, *, zero_bands: bool) -> None:
        num_heads, num_documents, num_queries, _ = q.shape
        shape = (num_documents, num_queries, k.shape[2])
        chunk_scores = CHUNK_SCORES_CPU if q.device.type == "cpu" else CHUNK_SCORES_GPU
        num_chunks = max(1, round(num_heads * math.prod(shape) / chunk_scores))  # a document more is no chunk more
        step = math.ceil(num_heads / num_chunks)  # alike: two and two of four heads, not three and one
        self.head_chunks = [slice(head, min(head + step, num_heads)) for head in range(0, num_heads, step)]
        self.bands = Bands(step, q, zero=zero_bands)
        self._scores = q.new_empty((step, *shape))
        self._transposed = q.new_empty((step, shape[0], shape[2], shape[1]))

    def scores(self, heads: slice) -> Tensor:
        """[n, G, T, S]."""
        return self._scores[: heads.stop - heads.start]

    def transposed(self, heads: slice) -> Tensor:
        """[n, G, S, T]."""
        return self._transposed[: heads.stop - heads.start]


def _multiply(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    """out = a b, for [n, G, rows, inner] and [n, G, inner, columns]."""
    torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out=out.flatten(0, 1))


def _copy_transposed(x: Tensor, *, out: Tensor) -> None:
    """out [n, G, C, R] = x [n, G, R, C], transposed."""
    if x.device.type == "cpu" and x.shape[2] * x.shape[3] >= LARGE_MATRIX:
        for matrix, transposed in zip(x.flatten(0, 1), out.flatten(0, 1), strict=True):
            transposed.copy_(matrix.mT)
    else:
        out.copy_(x.mT)
