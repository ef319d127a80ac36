"""The public disentangled attention: one docstring, one set of argument checks, one choice of implementation.

Used by: model. Tested by: tests/kernels/test_disentangled_attention.py, test_op_arguments.py.
Not here: arithmetic (reference.py, eager.py); projections, and dropout of anything but the probabilities (model).
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from disentangled.kernels.counter_rng import drop_threshold
from disentangled.kernels.disentangled_attention import reference
from disentangled.kernels.disentangled_attention.document_groups import packed_groups, padded_groups
from disentangled.kernels.disentangled_attention.dropout import MAX_HEADS, MAX_KEYS, AttentionDropout
from disentangled.kernels.disentangled_attention.eager import DisentangledAttention
from disentangled.kernels.disentangled_attention.log_bucket import Positions

# B batch  T query tokens  S key tokens  N heads  H head width

IMPLEMENTATIONS = ("reference", "torch", "triton")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def disentangled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rel_key: Tensor | None,
    rel_query: Tensor | None,
    *,
    position_buckets: int,
    max_relative_positions: int,
    scale: float,
    key_padding_mask: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dropout: AttentionDropout | None = None,
    bucket_rule: str = "huggingface",
    implementation: str | None = None,
) -> Tensor:
    """Attention whose scores add content-to-position (c2p) and position-to-content (p2c) terms to content-to-content.

    Formula, for query i and key j, each counted from its document's start, with k half the rows of a table:
        S_ij = scale * (q_i . k_j + q_i . Kr[slot(i - j)] + k_j . Qr[slot(i - j)])
        output_i = sum_j dropout(softmax_j(S_ij)) v_j
        slot(d) = clamp(bucket(d) + k, 0, 2k - 1)
    The distance is query minus key in both terms: slot 0 is a key far to the right, slot 2k - 1 one far to the left.
    In DeBERTa scale is 1 / sqrt(H * (1 + number of position terms)). Queries and keys may differ in number.

    Shapes and dtypes (one of float16, bfloat16, float32, float64 for all five tensors; any strides):
        query         [B, T, N, H], or packed [tokens, N, H]
        key, value    [B, S, N, H], or packed [tokens, N, H]
        rel_key       Kr [N, 2k, H], the projected relative embeddings of c2p; None: the term is off
        rel_query     Qr [N, 2k, H], those of p2c; None: the term is off
        position_buckets, max_relative_positions
                      k is position_buckets, with logarithmic buckets; where that is <= 0 there are none, and k is
                      max_relative_positions
        key_padding_mask
                      padded input only: bool [B, S], True = live. What a padded key or value holds has no effect.
        cu_seqlens_q, cu_seqlens_k
                      packed input only: int32 [documents + 1], rising from 0; document n is tokens [n] to [n + 1], and
                      tokens past the last are padding
        max_seqlen_q, max_seqlen_k
                      packed input only, optional: an upper bound of the documents' lengths
        dropout       which probabilities are dropped, as a function of sample, layer, head, query and key: dropout.py
        bucket_rule   "huggingface" or "microsoft", which differ for |i - j| >= max_relative_positions: log_bucket.py
        implementation
                      "torch" (None means it too), or "reference" (slow; the truth of the tests)
        returns       like query; zeros where a query has no live key, and at padding tokens
    Numerics: "torch" has scores, softmax and sums in float32 (float64 for float64) and rounds once, to the inputs'
        dtype. A query without a live key gets zeros; Hugging Face's code gives it uniform attention.
    Gradients: with respect to all five tensors; deterministic, as every sum has one place and a fixed order; zero at
        padding and for queries without a live key; no second derivatives.
    Memory: "torch" keeps the probabilities for backward, 4 bytes a score (8 in float64), and a byte more with dropout.
    Host: "torch" and "reference" read cu_seqlens on the host, which makes a GPU wait.
    Raises: ValueError for arguments that do not fit, RuntimeError for an implementation that cannot run here.
    Source: arXiv:2006.03654, section 3.1, equation 4. The paper indexes Qr by slot(j - i); its authors' code and
        Hugging Face's index it by slot(i - j), and so does this op. Logarithmic buckets are in the code only.
    """
    implementation = implementation or "torch"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} is unknown: give one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "triton":
        raise RuntimeError("disentangled_attention has no implementation 'triton' yet: use 'torch'")
    positions = Positions(position_buckets, max_relative_positions, bucket_rule)
    _check_tensors(query, key, value, rel_key, rel_query, positions)
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale is {scale}: give a positive number, 1 / sqrt(head width * number of terms) in DeBERTa")

    if query.dim() == 4:
        _check_padded(query, key, key_padding_mask, cu_seqlens_q, cu_seqlens_k)
        starts_q, starts_k = (tuple(x.shape[1] * row for row in range(x.shape[0] + 1)) for x in (query, key))
    else:
        if key_padding_mask is not None:
            raise ValueError("key_padding_mask belongs to padded input: packed input has cu_seqlens_k instead")
        starts_q = _read_starts("q", cu_seqlens_q, query.shape[0], max_seqlen_q)
        starts_k = _read_starts("k", cu_seqlens_k, key.shape[0], max_seqlen_k)
        if len(starts_q) != len(starts_k):
            raise ValueError(
                f"cu_seqlens_q has {len(starts_q) - 1} documents and cu_seqlens_k {len(starts_k) - 1}: they must agree"
            )
    if dropout is not None:
        _check_dropout(dropout, len(starts_q) - 1, query.shape[-2], key.shape[-3])
        if drop_threshold(dropout.probability) == 0:
            dropout = None

    q, k, v = (x.flatten(0, -3) for x in (query, key, value))
    if implementation == "reference":
        documents = [
            reference.Document(
                index, slice(*span_q), slice(*span_k), None if key_padding_mask is None else key_padding_mask[index]
            )
            for index, (span_q, span_k) in enumerate(zip(pairwise(starts_q), pairwise(starts_k), strict=True))
        ]
        output = reference.attend(q, k, v, rel_key, rel_query, documents, positions, scale, dropout)
    else:
        if query.dim() == 4:
            groups = padded_groups(query.shape[0], query.shape[1], key.shape[1], key_padding_mask, query.device)
        else:
            groups = packed_groups(starts_q, starts_k, query.device)
        output = DisentangledAttention.apply(q, k, v, rel_key, rel_query, groups, positions, scale, dropout)
    return output.view(query.shape)


def _check_tensors(
    query: Tensor, key: Tensor, value: Tensor, rel_key: Tensor | None, rel_query: Tensor | None, positions: Positions
) -> None:
    if query.dim() not in (3, 4):
        raise ValueError(f"query has {query.dim()} dimensions: give [B, T, N, H], or [tokens, N, H] with cu_seqlens")
    if query.dtype not in DTYPES:
        raise ValueError(f"query is {query.dtype}: give float16, bfloat16, float32 or float64")
    if key.shape != value.shape or key.dim() != query.dim() or key.shape[-2:] != query.shape[-2:]:
        raise ValueError(
            f"query {_shape(query)}, key {_shape(key)} and value {_shape(value)} do not fit: give key and value one "
            "shape, with the heads and head width of query"
        )
    table_shape = (query.shape[-2], 2 * positions.att_span, query.shape[-1])
    for name, x in (("key", key), ("value", value), ("rel_key", rel_key), ("rel_query", rel_query)):
        if x is None:
            continue
        if x.dtype != query.dtype or x.device != query.device:
            raise ValueError(
                f"{name} is {x.dtype} on {x.device} and query {query.dtype} on {query.device}: give one kind"
            )
        if name.startswith("rel_") and x.shape != table_shape:
            raise ValueError(
                f"{name} is {_shape(x)}: with these heads and buckets it must be [N, 2k, H] = {[*table_shape]}"
            )


def _check_padded(
    query: Tensor,
    key: Tensor,
    key_padding_mask: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
) -> None:
    if cu_seqlens_q is not None or cu_seqlens_k is not None:
        raise ValueError(f"cu_seqlens belong to packed input: query {_shape(query)} is padded, give key_padding_mask")
    if query.shape[0] != key.shape[0]:
        raise ValueError(f"query has {query.shape[0]} rows and key {key.shape[0]}: they must agree")
    if key_padding_mask is None:
        return
    if key_padding_mask.dtype != torch.bool or key_padding_mask.shape != key.shape[:2]:
        raise ValueError(
            f"key_padding_mask is {key_padding_mask.dtype} {_shape(key_padding_mask)}: "
            f"give bool [B, S] = {[*key.shape[:2]]}, True where live"
        )


def _read_starts(side: str, cu_seqlens: Tensor | None, num_tokens: int, max_seqlen: int | None) -> tuple[int, ...]:
    """cu_seqlens on the host, checked against the tokens and the longest document that the caller named."""
    if cu_seqlens is None or cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or len(cu_seqlens) == 0:
        raise ValueError(f"packed input needs cu_seqlens_{side}: give int32 [documents + 1], the first 0")
    starts = tuple(cu_seqlens.tolist())
    longest = max((stop - start for start, stop in pairwise(starts)), default=0)
    if starts[0] != 0 or starts[-1] > num_tokens or any(start > stop for start, stop in pairwise(starts)):
        raise ValueError(f"cu_seqlens_{side} must rise from 0 to at most {num_tokens}, the number of tokens")
    if max_seqlen is not None and longest > max_seqlen:
        raise ValueError(f"max_seqlen_{side} is {max_seqlen}, but a document has {longest} tokens: give at least that")
    return starts


def _check_dropout(dropout: AttentionDropout, num_documents: int, num_heads: int, num_keys: int) -> None:
    for name, x in (("sample", dropout.sample), ("first_token", dropout.first_token)):
        if x.shape != (num_documents,) or x.is_floating_point():
            raise ValueError(
                f"dropout.{name} is {x.dtype} {_shape(x)}: give integers, one for each of {num_documents} documents"
            )
    if num_heads > MAX_HEADS or num_keys > MAX_KEYS:
        raise ValueError(
            f"{num_heads} heads and {num_keys} keys: dropout's counter has room for {MAX_HEADS} and {MAX_KEYS}"
        )


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)
