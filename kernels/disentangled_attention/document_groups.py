"""How documents lie in padded batches: packed rows are cut into groups of documents of similar length.

A padded batch [B, T] is one group. A packed one [tokens] with cu_seqlens becomes a few groups, each padded to its
longest document, so that a batched matrix product sees dense blocks and little padding: a group takes the next
shorter document until its padding exceeds MAX_PADDING of its work, and small documents share a group because a
group's own cost is that of SMALL_GROUP_SCORES scores.

Padding is read as zeros and never written back; no value of a padded place can reach a live one.
Used by: eager.py. Tested by: tests/kernels/test_document_groups.py.
Not here: which documents share a row (the trainer packs them).
"""

import functools
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# G documents of a group  T query tokens  S key tokens  N heads  H head width
MAX_PADDING = 0.25  # padded scores over live ones
# A group costs some 100 calls of torch, forward and backward: about this many scores. 32^2 to 128^2 are within 10 %.
SMALL_GROUP_SCORES = 64 * 64


@dataclass(frozen=True, eq=False)
class PaddedTokens:
    """Tokens of G documents, padded to a common length.

    tokens      the row of x [tokens, N, H] at each place: int64 [G * length], or a slice where these are neighbours
    live        bool [G, length]; None: every place is live
    num_written the rows of x that unpad_into writes
    written, places
                where `tokens` is a tensor: those rows, ascending (a slice, where they are neighbours), and the place
                of each
    dead_places int64, where `live` is not; None where it is all over, or where only the device knows
    """

    num_documents: int
    length: int
    tokens: Tensor | slice
    live: Tensor | None
    num_written: int
    written: Tensor | slice | None = None
    places: Tensor | None = None
    dead_places: Tensor | None = None

    def pad(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x [tokens, N, H] to a new [N, G, length, H] in dtype, zero where padded."""
        num_heads, width = x.shape[1:]
        shape = (num_heads, self.num_documents, self.length, width)
        if isinstance(self.tokens, slice):
            padded = torch.empty(shape, dtype=dtype, device=x.device)
            padded.copy_(x[self.tokens].reshape(*shape[1:3], num_heads, width).permute(2, 0, 1, 3))
        else:
            padded = x.reshape(-1, width).index_select(0, _head_rows(self, num_heads)[0]).view(shape).to(dtype)
        if self.dead_places is not None:
            padded.flatten(1, 2).index_fill_(1, self.dead_places, 0.0)
        elif self.live is not None:
            padded.masked_fill_(~self.live[:, :, None], 0.0)
        return padded

    def unpad_into(self, x: Tensor, padded: Tensor) -> None:
        """Writes the live places of padded [N, G, length, H] to their rows of x [tokens, N, H]."""
        if isinstance(self.tokens, slice):
            rows = padded.permute(1, 2, 0, 3)
            x[self.tokens].view(rows.shape).copy_(rows)
            return
        num_heads, width = x.shape[1:]
        rows = padded.reshape(-1, width).index_select(0, _head_rows(self, num_heads)[1]).view(-1, num_heads, width)
        if isinstance(self.written, Tensor):
            x.index_copy_(0, self.written, rows.to(x.dtype))
        else:
            x[self.written] = rows


@functools.lru_cache(maxsize=32)
def _head_rows(tokens: PaddedTokens, num_heads: int) -> tuple[Tensor, Tensor]:
    """Rows of x [tokens * N, H] for padded [N, G, length], and rows of padded [N * G * length, H] for written [W, N].

    So a row of a head moves once, from where it is to where it belongs: a third of the time of three steps.
    """
    assert isinstance(tokens.tokens, Tensor) and tokens.places is not None, "neighbours are read in place"
    head = torch.arange(num_heads, device=tokens.tokens.device)
    rows = tokens.tokens * num_heads + head[:, None]
    places = tokens.places[:, None] + head * len(tokens.tokens)
    return rows.flatten(), places.flatten()


@dataclass(frozen=True, eq=False)
class DocumentGroup:
    """Documents attended in one batch; `documents` int64 [G] says which they are among those of the call."""

    documents: Tensor
    queries: PaddedTokens
    keys: PaddedTokens

    def dead_key_bias(self, dtype: torch.dtype) -> Tensor | None:
        """0 for live keys and -inf for padded ones, [G, 1, S]; None when all are live.

        A document without a live key keeps its (zeroed) keys, so that its softmax is finite; its queries are not live.
        """
        live = self.keys.live
        if live is None:
            return None
        dead = ~live & live.any(dim=1, keepdim=True)
        return torch.zeros(live.shape, dtype=dtype, device=live.device).masked_fill_(dead, float("-inf")).unsqueeze(1)


def padded_groups(
    num_documents: int, num_queries: int, num_keys: int, key_padding_mask: Tensor | None, device: torch.device
) -> tuple[DocumentGroup, ...]:
    """The one group of a padded batch; key_padding_mask bool [B, S], True = live. An empty batch has no group."""
    if 0 in (num_documents, num_queries, num_keys):
        return ()
    queries_live = None
    if key_padding_mask is not None:
        queries_live = key_padding_mask.any(dim=1, keepdim=True).expand(num_documents, num_queries)
    return (
        DocumentGroup(
            documents=torch.arange(num_documents, device=device),
            queries=_all_tokens(num_documents, num_queries, queries_live),
            keys=_all_tokens(num_documents, num_keys, key_padding_mask),
        ),
    )


@functools.lru_cache(maxsize=8)  # the layers of a model ask for the same batch, in forward and again in backward
def packed_groups(
    starts_q: tuple[int, ...], starts_k: tuple[int, ...], device: torch.device
) -> tuple[DocumentGroup, ...]:
    """Groups of a packed batch from its cumulative lengths; documents without queries or without keys are in none."""
    lengths_q, lengths_k = ([stop - start for start, stop in pairwise(starts)] for starts in (starts_q, starts_k))
    order = [document for document in range(len(lengths_q)) if lengths_q[document] and lengths_k[document]]
    order.sort(key=lambda document: (lengths_q[document], lengths_k[document]), reverse=True)

    groups: list[list[int]] = []
    live_scores = padding_scores = longest_scores = 0
    for document in order:
        scores = lengths_q[document] * lengths_k[document]
        # Keys may be longer than those of the group's first document: then they start a group.
        fits = bool(groups) and lengths_k[document] <= lengths_k[groups[-1][0]]
        padding_scores += longest_scores - scores
        if not fits or padding_scores > max(MAX_PADDING * live_scores, SMALL_GROUP_SCORES):
            groups.append([])
            live_scores, padding_scores, longest_scores = 0, 0, scores
        groups[-1].append(document)
        live_scores += scores
    return tuple(
        DocumentGroup(
            documents=torch.tensor(group, device=device),
            queries=_packed_tokens([(starts_q[document], lengths_q[document]) for document in group], device),
            keys=_packed_tokens([(starts_k[document], lengths_k[document]) for document in group], device),
        )
        for group in groups
    )


def _all_tokens(num_documents: int, length: int, live: Tensor | None) -> PaddedTokens:
    """Documents that lie padded already; padded places are written, too."""
    num_tokens = num_documents * length
    return PaddedTokens(num_documents, length, slice(0, num_tokens), live, num_tokens)


def _packed_tokens(spans: list[tuple[int, int]], device: torch.device) -> PaddedTokens:
    """Places of documents given as (first token, length)."""
    num_live, (first, length) = sum(length for _, length in spans), spans[0]
    if all(span == (first + number * length, length) for number, span in enumerate(spans)):
        return PaddedTokens(len(spans), length, slice(first, first + num_live), None, num_live)
    starts, lengths = torch.tensor(spans, device="cpu").unsqueeze(-1).unbind(1)
    place = torch.arange(int(lengths.max()), device="cpu")
    live = place < lengths
    tokens = torch.where(live, starts + place, starts).flatten()
    live_places = live.flatten().nonzero().squeeze(1)
    written, order = tokens[live_places].sort()
    is_run = int(written[-1] - written[0]) + 1 == num_live
    return PaddedTokens(
        len(spans), len(place), tokens.to(device), None if bool(live.all()) else live.to(device), num_live,
        slice(int(written[0]), int(written[-1]) + 1) if is_run else written.to(device),
        live_places[order].to(device),
        None if bool(live.all()) else (~live).flatten().nonzero().squeeze(1).to(device),
    )  # fmt: skip
