"""Disentangled attention, slow and obvious: the truth that tests and benchmarks compare with.

One document at a time, one gather of slots per position term, one random word per decision of dropout, nothing fused,
gradients by autograd. All arithmetic is in the dtype of the inputs (softmax in float32 at least): in float64 it is
the exact answer, in bfloat16 it is what eager code does. Memory: several [N, T, S] tensors per document.

Used by: op.py, tests, benchmarks. Tested by: tests/kernels/test_reference.py, against transformers.
Not here: speed; argument checks (op.py).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from disentangled.kernels import counter_rng
from disentangled.kernels.disentangled_attention.dropout import HEAD_SHIFT, AttentionDropout
from disentangled.kernels.disentangled_attention.log_bucket import Positions

# B batch  T query tokens  S key tokens  N heads  H head width  R relative rows (2k)


@dataclass(frozen=True, eq=False)
class Document:
    """One document of a call: where its tokens are in the flattened [tokens, N, H] tensors, and which keys are live."""

    index: int
    query_tokens: slice
    key_tokens: slice
    live_keys: Tensor | None = None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rel_key: Tensor | None,
    rel_query: Tensor | None,
    documents: list[Document],
    positions: Positions,
    scale: float,
    dropout: AttentionDropout | None,
) -> Tensor:
    """Every document's queries attend to its keys; query [tokens, N, H]; tokens of no document get zeros."""
    # The empty sum is zero, and gives a gradient (of zero) to an input that no document uses.
    nothing = sum(x[:0].sum() for x in (query, key, value, rel_key, rel_query) if x is not None)
    output = torch.zeros_like(query) + nothing
    for document in documents:
        q, k, v = query[document.query_tokens], key[document.key_tokens], value[document.key_tokens]
        keep = None if dropout is None else keep_decisions(dropout, document.index, q.shape[1], q.shape[0], k.shape[0])
        context = attend_document(q, k, v, rel_key, rel_query, document.live_keys, positions, scale, dropout, keep)
        output[document.query_tokens] = context
    return output


def attend_document(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_key: Tensor | None,
    rel_query: Tensor | None,
    live_keys: Tensor | None,
    positions: Positions,
    scale: float,
    dropout: AttentionDropout | None,
    keep: Tensor | None,
) -> Tensor:
    """q [T, N, H], k and v [S, N, H], tables [N, R, H], live_keys bool [S], keep bool [N, T, S]; returns [T, N, H]."""
    num_queries, num_keys = q.shape[0], k.shape[0]
    if num_keys == 0 or (live_keys is not None and not live_keys.any()):
        return torch.zeros_like(q)
    if live_keys is not None:  # a padded key may hold anything
        k, v = (x.masked_fill(~live_keys[:, None, None], 0.0) for x in (k, v))
    q_scaled = q * scale  # before the products: half precision overflows otherwise
    scores = torch.einsum("tnh,snh->nts", q_scaled, k)

    distance = torch.arange(num_queries)[:, None] - torch.arange(num_keys)
    slot = positions.slots(num_queries, num_keys)[distance + num_keys - 1].to(q.device).expand(scores.shape)
    if rel_key is not None:
        scores = scores + torch.einsum("tnh,nrh->ntr", q_scaled, rel_key).gather(2, slot)
    if rel_query is not None:
        scores = scores + torch.einsum("snh,nrh->nrs", k, rel_query * scale).gather(1, slot)
    if live_keys is not None:
        scores = scores.masked_fill(~live_keys, float("-inf"))

    softmax_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    probabilities = torch.softmax(scores, dim=-1, dtype=softmax_dtype).to(q.dtype)
    if dropout is not None and keep is not None:
        probabilities = probabilities * keep * counter_rng.keep_scale(dropout.probability)
    return torch.einsum("nts,snh->tnh", probabilities, v)


def keep_decisions(dropout: AttentionDropout, document: int, num_heads: int, num_queries: int, num_keys: int) -> Tensor:
    """Decision by decision, as the contract in counter_rng.py words it: bool [N, T, S]."""
    head = torch.arange(num_heads)[:, None, None]
    query_token = int(dropout.first_token[document]) + torch.arange(num_queries)[:, None]
    key_index = torch.arange(num_keys)
    words = counter_rng.random_words(
        dropout.seed,
        dropout.stream,
        layer=dropout.layer,
        sample=int(dropout.sample[document]),
        token=query_token,
        element=head << HEAD_SHIFT | key_index // 8,
    )
    word = words.gather(-1, (key_index % 8 // 2).expand(words.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    half = torch.where(key_index % 2 == 0, word & 0xFFFF, word >> 16)
    return (half >= counter_rng.drop_threshold(dropout.probability)).to(dropout.sample.device)
