"""The public disentangled attention: one docstring, and the way of a call to its implementation.

Used by: model. Tested by: tests/kernels/test_disentangled_attention.py, test_triton_attention.py, test_op_arguments.py.
Not here: arithmetic (reference.py, eager.py, launch.py); checks (arguments.py); the choice of implementation
(dispatch.py); projections, and dropout of anything but the probabilities (model).
"""

from itertools import pairwise

import torch
from torch import Tensor

from disentangled.kernels.autocast import cast_input
from disentangled.kernels.counter_rng import drop_threshold
from disentangled.kernels.disentangled_attention import reference, registered
from disentangled.kernels.disentangled_attention.arguments import (
    check_dropout,
    check_packed,
    check_padded,
    check_scale,
    check_tensors,
    read_starts,
)
from disentangled.kernels.disentangled_attention.dispatch import choose_implementation
from disentangled.kernels.disentangled_attention.document_groups import packed_groups, padded_groups
from disentangled.kernels.disentangled_attention.dropout import AttentionDropout
from disentangled.kernels.disentangled_attention.eager import DisentangledAttention
from disentangled.kernels.disentangled_attention.log_bucket import Positions

# B batch  T query tokens  S key tokens  N heads  H head width


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
                      None chooses "triton" (fused kernels; half precision or float32, H <= 128, an NVIDIA GPU of
                      compute capability 8.0 or newer) where it can run, else "torch" (plain torch, runs everywhere),
                      and says so once: dispatch.py. By name, also "reference" (slow; the truth of the tests).
        returns       like query; zeros where a query has no live key, and at padding tokens
    Numerics: scores, softmax and sums are float32 (float64 for float64) and results are rounded once, to the inputs'
        dtype; "triton" also rounds position terms, probabilities and their gradients to it, between products. Under
        torch.autocast the tensors are cast first, as scaled_dot_product_attention casts its own. A query without a
        live key gets zeros; Hugging Face's code gives it uniform attention.
    Gradients: with respect to all five tensors; deterministic, as every sum has one place and a fixed order; zero at
        padding and for queries without a live key; no second derivatives.
    Memory: "triton" keeps the output and 4 bytes a query and head; backward has at most 256 MiB of workspace, or one
        head's. "torch" keeps the probabilities, 4 bytes a score (8 in float64), and a byte more with dropout.
    Host: "triton" never makes the host wait for a GPU and can be captured in a CUDA graph (after a first call, which
        builds tables), so on a GPU it checks of cu_seqlens and max_seqlen all but the values, which must be right.
        "torch" and "reference" read cu_seqlens on the host, which makes a GPU wait.
    Raises: ValueError for arguments that do not fit, RuntimeError for an implementation that cannot run here.
    Source: arXiv:2006.03654, section 3.1, equation 4. The paper indexes Qr by slot(j - i); its authors' code and
        Hugging Face's index it by slot(i - j), and so does this op. Logarithmic buckets are in the code only.
    """
    positions = Positions(position_buckets, max_relative_positions, bucket_rule)
    query, key, value = (cast_input(x) for x in (query, key, value))
    rel_key, rel_query = (None if x is None else cast_input(x) for x in (rel_key, rel_query))
    check_tensors(query, key, value, rel_key, rel_query, positions)
    check_scale(scale)
    if query.dim() == 4:
        check_padded(query, key, key_padding_mask, cu_seqlens_q, cu_seqlens_k)
        num_documents = query.shape[0]
    else:
        num_documents = check_packed(query, key_padding_mask, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    if dropout is not None:
        check_dropout(dropout, num_documents, query.shape[-2], key.shape[-3])
        if drop_threshold(dropout.probability) == 0:
            dropout = None

    implementation = choose_implementation(implementation, query.device, query.dtype, query.shape[-1])
    if implementation == "triton":
        if query.dim() == 3 and query.device.type == "cpu" and not torch.compiler.is_compiling():
            read_starts("q", cu_seqlens_q, query.shape[0], max_seqlen_q)
            read_starts("k", cu_seqlens_k, key.shape[0], max_seqlen_k)
        return registered.attend(
            query,
            key,
            value,
            rel_key,
            rel_query,
            positions=positions,
            scale=scale,
            key_padding_mask=key_padding_mask,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=cu_seqlens_k,
            max_seqlen_q=max_seqlen_q,
            max_seqlen_k=max_seqlen_k,
            dropout=dropout,
        )

    if query.dim() == 4:
        starts_q, starts_k = (tuple(x.shape[1] * row for row in range(x.shape[0] + 1)) for x in (query, key))
    else:
        starts_q = read_starts("q", cu_seqlens_q, query.shape[0], max_seqlen_q)
        starts_k = read_starts("k", cu_seqlens_k, key.shape[0], max_seqlen_k)
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
