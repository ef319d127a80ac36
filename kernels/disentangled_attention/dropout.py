"""Dropout of attention probabilities: which (head, query, key) survive is a function of the sample, not of the batch.

Decisions come from counter_rng.keep_mask with c0 = head << 20 | key // 8 and c1 = the query's index in its row. The key
counts from its document's start and the query from its row's, so a document gets the same decisions padded alone,
packed with others, or moved to another rank. The stream must be one that no hidden dropout uses (Stream has two for
attention): both kinds fill c0 from zero, and in one stream they would take the same numbers.

Used by: eager.py, op.py; reference.py derives the same decisions on its own.
Tested by: tests/kernels/test_attention_dropout.py.
Not here: dropout of hidden activations (counter_rng.dropout).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from disentangled.kernels import counter_rng

# B batch  T query tokens  S key tokens  N heads
HEAD_SHIFT = 20
MAX_HEADS = 1 << (32 - HEAD_SHIFT)
MAX_KEYS = counter_rng.DECISIONS_PER_CALL << HEAD_SHIFT


@dataclass(frozen=True, eq=False)
class AttentionDropout:
    """What identifies the decisions of one attention call.

    sample       int64 [B], or [documents] for packed input: global index of the row that holds the document
    first_token  int32 or int64, same shape: where the document begins in that row (0 for padded input)
    """

    probability: float
    seed: int
    stream: int
    layer: int
    sample: Tensor
    first_token: Tensor


def attention_keep_mask(
    dropout: AttentionDropout, documents: Tensor, heads: range, num_queries: int, num_keys: int
) -> Tensor:
    """Decisions for some documents (indices into dropout.sample) and heads: bool [heads, documents, T, S]."""
    device = documents.device
    sample = dropout.sample.to(device)[documents]
    first_token = dropout.first_token.to(device)[documents]
    return counter_rng.keep_mask(
        dropout.probability,
        num_keys,
        seed=dropout.seed,
        stream=dropout.stream,
        layer=dropout.layer,
        sample=sample[:, None],
        token=first_token[:, None] + torch.arange(num_queries, device=device),
        first_block=(torch.arange(heads.start, heads.stop, device=device) << HEAD_SHIFT)[:, None, None],
    )
