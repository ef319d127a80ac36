"""How a flat run of tokens is cut into documents.

What: inside the model hidden states are always [T, D]. A `TokenLayout` says which tokens form a document, which are
padding, and which random numbers a token owns. It comes in two kinds:
- padded: T = B * N, row b holds one document and its padding (what fine-tuning and Hugging Face use);
- packed: documents stand one after another, cut by `cu_seqlens`; tokens past `cu_seqlens[-1]` are padding (what
  pre-training uses: documents of one row are attended apart, positions restart, each has its own [CLS]).
Used by: attention, convolution, embeddings and heads. Tested by tests/model/test_layout.py.
Not here: how batches are built (trainer/batch.py).
"""

# T flat tokens  B rows  N tokens in a row  documents = number of documents

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLayout:
    """Where each of T flat tokens stands. Made by `padded_layout` or `packed_layout`.

    Shapes:
        position: [T] int64, place in its document; 0 is [CLS]. 0 for padding of a packed run.
        document_start: [T] int64, flat index of the first token of the token's document.
        live: [T] bool, False for padding.
        sample: [T] int64, global index of the sample (row) that the token belongs to; keys random numbers.
        token: [T] int64, place in that sample; keys random numbers.
        document_sample, document_first_token: [documents] int64, the same two for each document's first token.
        cu_seqlens: [documents + 1] int32 for a packed run, None for a padded one.
        max_seqlen: the longest document (packed) or row (padded), tokens.
        rows: (B, N) of a padded run, None for a packed one.
    """

    position: Tensor
    document_start: Tensor
    live: Tensor
    sample: Tensor
    token: Tensor
    document_sample: Tensor
    document_first_token: Tensor
    max_seqlen: int
    cu_seqlens: Tensor | None = None
    rows: tuple[int, int] | None = None

    @property
    def num_tokens(self) -> int:
        """T, padding included."""
        return self.position.shape[0]

    def attention_arguments(self) -> dict[str, Any]:
        """The keywords of `disentangled_attention` that say which keys a query sees."""
        if self.rows is not None:
            return {"key_padding_mask": self.live.view(self.rows)}
        return {
            "cu_seqlens_q": self.cu_seqlens,
            "cu_seqlens_k": self.cu_seqlens,
            "max_seqlen_q": self.max_seqlen,
            "max_seqlen_k": self.max_seqlen,
        }

    def shape_heads(self, states: Tensor, num_heads: int) -> Tensor:
        """[T, N_heads * H] -> [B, N, N_heads, H] (padded) or [T, N_heads, H] (packed), as the attention op takes it."""
        leading = self.rows if self.rows is not None else (self.num_tokens,)
        return states.view(*leading, num_heads, -1)


def padded_layout(attention_mask: Tensor, sample: Tensor | None = None) -> TokenLayout:
    """Layout of B rows of one document each.

    Args:
        attention_mask: [B, N], nonzero = live.
        sample: [B] int64 global sample indices; the row numbers where None.
    """
    num_rows, num_columns = attention_mask.shape
    device = attention_mask.device
    rows = torch.arange(num_rows, device=device)
    columns = torch.arange(num_columns, device=device)
    sample = rows if sample is None else sample.to(device)
    position = columns.expand(num_rows, num_columns).reshape(-1)
    return TokenLayout(
        position=position,
        document_start=(rows * num_columns).repeat_interleave(num_columns),
        live=attention_mask.reshape(-1) != 0,
        sample=sample.repeat_interleave(num_columns),
        token=position,
        document_sample=sample,
        document_first_token=torch.zeros_like(sample),
        max_seqlen=num_columns,
        rows=(num_rows, num_columns),
    )


def packed_layout(
    cu_seqlens: Tensor, max_seqlen: int, num_tokens: int, document_sample: Tensor, document_first_token: Tensor
) -> TokenLayout:
    """Layout of documents that stand one after another in a run of `num_tokens` tokens.

    Args:
        cu_seqlens: [documents + 1] int32, where each document starts; the last entry is the number of live tokens.
        max_seqlen: length of the longest document, tokens.
        num_tokens: T; tokens past cu_seqlens[-1] are padding.
        document_sample: [documents] int64, global sample index of the row each document stands in.
        document_first_token: [documents] int64, place of the document's first token in that row.
    """
    device = cu_seqlens.device
    flat = torch.arange(num_tokens, device=device)
    live = flat < cu_seqlens[-1]
    if document_sample.shape[0] == 0:  # a micro-batch without documents: every token is padding
        return TokenLayout(
            flat * 0, flat, live, flat * 0, flat, document_sample, document_first_token, max_seqlen, cu_seqlens
        )
    document = torch.searchsorted(cu_seqlens[1:].long(), flat, right=True).clamp(max=document_sample.shape[0] - 1)
    start = torch.where(live, cu_seqlens[:-1].long()[document], flat)
    position = flat - start
    return TokenLayout(
        position=position,
        document_start=start,
        live=live,
        sample=document_sample[document],
        token=document_first_token[document] + position,
        document_sample=document_sample,
        document_first_token=document_first_token,
        max_seqlen=max_seqlen,
        cu_seqlens=cu_seqlens,
    )
