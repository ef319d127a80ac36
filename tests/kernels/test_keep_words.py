"""Dropout's decisions as words, for the backward pass: each tile that reads them gets torch's, bit for bit."""

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from disentangled.kernels.disentangled_attention.attention_call import Call, Problem
from disentangled.kernels.disentangled_attention.dropout import AttentionDropout, attention_keep_mask
from disentangled.kernels.disentangled_attention.log_bucket import Positions
from tests.kernels.attention_case import cumulative_lengths

pytest.importorskip("triton")
import triton
import triton.language as tl

from disentangled.kernels.disentangled_attention import launch
from disentangled.kernels.disentangled_attention.keep_words import document_words, load_keep

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADS, FIRST_HEAD, SOME_HEADS = 4, 2, 1


@triton.jit
def read_kernel(
    keep_ptr, document, start_q, query0, key0, num_queries, words_ptr, num_word_rows, word_width,
    BLOCK: tl.constexpr, IS_PACKED: tl.constexpr,
):  # fmt: skip
    """keep [heads, BLOCK keys, BLOCK queries] = one tile of each head, as the kernels of the backward pass read it."""
    head = tl.program_id(0)
    words_ptr = document_words(
        words_ptr + key0, document, head, start_q, num_queries, num_word_rows, word_width, IS_PACKED
    )
    keep = load_keep(words_ptr, word_width, query0, BLOCK)
    offs = tl.arange(0, BLOCK)
    tl.store(keep_ptr + head * BLOCK * BLOCK + offs[:, None] * BLOCK + offs[None, :], keep)


def call_of(lengths_q: tuple[int, ...], lengths_k: tuple[int, ...], is_packed: bool) -> Call:
    """A call with dropout whose documents have these lengths; those of padded ones are equal."""
    documents = len(lengths_q)
    query, key = (
        torch.zeros(*((sum(n),) if is_packed else (documents, n[0])), HEADS, 16, dtype=torch.float16, device=DEVICE)
        for n in (lengths_q, lengths_k)
    )
    dropout = AttentionDropout(0.3, 7, 4, 2, 2**33 + torch.arange(documents), 100 * torch.arange(documents))
    cu_q, cu_k = (cumulative_lengths(*n).to(DEVICE) if is_packed else None for n in (lengths_q, lengths_k))
    problem = Problem(Positions(8, 32), 1.0, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, dropout=dropout)
    return Call(query, key, key, None, None, problem, "key_value")


@dataclass(frozen=True)
class Drawn:
    """A call and what was drawn for it."""

    lengths_q: tuple[int, ...]
    lengths_k: tuple[int, ...]
    is_packed: bool
    call: Call
    words: dict[str, Any]


def read_tile(drawn: Drawn, document: int, start_q: int, query0: int, key0: int, block: int) -> Tensor:
    """Decisions [heads, queries, keys] of one tile of a document."""
    keep = torch.zeros(SOME_HEADS, block, block, dtype=torch.bool, device=DEVICE)
    read_kernel[(SOME_HEADS,)](
        keep, document=document, start_q=start_q, query0=query0, key0=key0, num_queries=drawn.call.num_queries,
        **drawn.words, BLOCK=block, IS_PACKED=drawn.is_packed,
    )  # fmt: skip
    return keep.transpose(1, 2).cpu()


@pytest.fixture(
    scope="module",
    params=[((40, 40), (70, 70), False), ((3,), (300,), False), ((35, 3, 0), (20, 2, 70), True)],
    ids=["padded", "wide", "packed"],
)
def drawn(request: pytest.FixtureRequest) -> Drawn:
    """Words of all kinds of documents; the interpreter takes half a second for each program that draws them."""
    call = call_of(*request.param)
    return Drawn(*request.param, call, launch.keep_words(call, *call.word_shape, FIRST_HEAD, SOME_HEADS))


@pytest.mark.parametrize("block", [16, 32, 64])
def test_every_tile_reads_what_torch_decides(drawn: Drawn, block: int) -> None:
    dropout, heads = drawn.call.problem.dropout, range(FIRST_HEAD, FIRST_HEAD + SOME_HEADS)
    assert dropout is not None
    for document, (size_q, size_k) in enumerate(zip(drawn.lengths_q, drawn.lengths_k, strict=True)):
        expected = attention_keep_mask(dropout, torch.tensor([document]), heads, size_q, size_k)[:, 0]
        start_q = sum(drawn.lengths_q[:document])
        for query0, key0 in itertools.product(range(0, size_q, block), range(0, size_k, block)):
            tile = expected[:, query0 : query0 + block, key0 : key0 + block]
            found = read_tile(drawn, document, start_q, query0, key0, block)
            assert torch.equal(found[:, : tile.shape[1], : tile.shape[2]], tile)
