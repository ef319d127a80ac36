"""What disentangled_attention refuses: checks whose ValueError names the argument, its value, the rule and the remedy.

`check_*` look at shapes, dtypes, devices and plain numbers only, so they never wait for a GPU; `read_starts` brings
cu_seqlens to the host and checks its values.
Used by: op.py. Tested by: tests/kernels/test_op_arguments.py.
Not here: what an implementation cannot run (dispatch.py).
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from disentangled.kernels.disentangled_attention.dropout import MAX_HEADS, MAX_KEYS, AttentionDropout
from disentangled.kernels.disentangled_attention.log_bucket import Positions

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensors(
    query: Tensor, key: Tensor, value: Tensor, rel_key: Tensor | None, rel_query: Tensor | None, positions: Positions
) -> None:
    """The five tensors fit each other, and the tables fit the positions."""
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


def check_scale(scale: float) -> None:
    """Positive and finite."""
    if not 0 < scale < math.inf:  # nan is neither
        raise ValueError(f"scale is {scale}: give a positive number, 1 / sqrt(head width * number of terms) in DeBERTa")


def check_padded(
    query: Tensor,
    key: Tensor,
    key_padding_mask: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
) -> None:
    """Padded input has as many rows of keys as of queries, perhaps a mask, and no cu_seqlens."""
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
    _check_device("key_padding_mask", key_padding_mask, query)


def check_packed(
    query: Tensor,
    key_padding_mask: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
) -> int:
    """Packed input has cu_seqlens for both sides, of as many documents, and no mask; returns how many."""
    if key_padding_mask is not None:
        raise ValueError("key_padding_mask belongs to padded input: packed input has cu_seqlens_k instead")
    for side, cu_seqlens, max_seqlen in (("q", cu_seqlens_q, max_seqlen_q), ("k", cu_seqlens_k, max_seqlen_k)):
        name = f"cu_seqlens_{side}"
        if cu_seqlens is None:
            raise ValueError(f"packed input needs {name}: give int32 [documents + 1], the first 0")
        if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
            raise ValueError(
                f"{name} is {cu_seqlens.dtype} {_shape(cu_seqlens)}: packed input needs int32 [documents + 1], "
                "the first 0"
            )
        _check_device(name, cu_seqlens, query)
        if max_seqlen is not None and max_seqlen < 0:
            raise ValueError(f"max_seqlen_{side} is {max_seqlen}: give the length of the longest document, or nothing")
    assert cu_seqlens_q is not None and cu_seqlens_k is not None
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"cu_seqlens_q has {cu_seqlens_q.shape[0] - 1} documents and cu_seqlens_k {cu_seqlens_k.shape[0] - 1}: "
            "they must agree"
        )
    return cu_seqlens_q.shape[0] - 1


def read_starts(side: str, cu_seqlens: Tensor | None, num_tokens: int, max_seqlen: int | None) -> tuple[int, ...]:
    """cu_seqlens on the host, checked against the tokens and the longest document that the caller named."""
    assert cu_seqlens is not None, "check_packed has refused this"
    starts = tuple(cu_seqlens.tolist())
    longest = max((stop - start for start, stop in pairwise(starts)), default=0)
    if starts[0] != 0 or starts[-1] > num_tokens or any(start > stop for start, stop in pairwise(starts)):
        raise ValueError(
            f"cu_seqlens_{side} must rise from 0 to at most {num_tokens}, the number of tokens: it goes from "
            f"{starts[0]} to {starts[-1]}, and its smallest step is "
            f"{min((stop - start for start, stop in pairwise(starts)), default=0)}"
        )
    if max_seqlen is not None and longest > max_seqlen:
        raise ValueError(f"max_seqlen_{side} is {max_seqlen}, but a document has {longest} tokens: give at least that")
    return starts


def check_dropout(dropout: AttentionDropout, num_documents: int, num_heads: int, num_keys: int) -> None:
    """What names the decisions has the documents' number and fits the counter of the random numbers."""
    for name, x in (("sample", dropout.sample), ("first_token", dropout.first_token)):
        if x.shape != (num_documents,) or x.is_floating_point():
            raise ValueError(
                f"dropout.{name} is {x.dtype} {_shape(x)}: give integers, one for each of {num_documents} documents"
            )
    if not 0 <= dropout.seed < 1 << 64:
        raise ValueError(f"dropout.seed is {dropout.seed}: give a number of 64 bits, 0..2^64-1")
    for name, number in (("stream", dropout.stream), ("layer", dropout.layer)):
        if not 0 <= int(number) < 1 << 8:  # torch 2.11 compiles no comparison of an enum
            raise ValueError(
                f"dropout.{name} is {int(number)}: give one of 0..255, dropout's counter has 8 bits for it"
            )
    if num_heads > MAX_HEADS or num_keys > MAX_KEYS:
        raise ValueError(
            f"{num_heads} heads and {num_keys} keys: dropout's counter has room for {MAX_HEADS} and {MAX_KEYS}"
        )


def _check_device(name: str, x: Tensor, query: Tensor) -> None:
    if x.device != query.device:
        raise ValueError(f"{name} is on {x.device} and query on {query.device}: give both on one device")


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)
