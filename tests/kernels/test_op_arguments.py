"""What disentangled_attention refuses: one line that names the argument, the rule and the remedy."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from disentangled.kernels.disentangled_attention import AttentionDropout, dispatch
from tests.kernels.attention_case import AttentionCase, attention_case, cumulative_lengths

TRITON = ("triton",) if dispatch.IS_INTERPRETED else ()  # it has CPU tensors refused at once otherwise

PADDED = attention_case(6, dropout=AttentionDropout(0.1, 1, 4, 0, torch.arange(2), torch.zeros(2, dtype=torch.int32)))
PACKED = attention_case(
    6, batch=None, cu_seqlens_q=cumulative_lengths(2, 3), cu_seqlens_k=cumulative_lengths(2, 3), max_seqlen_q=3
)


def tensors(case: AttentionCase, **changes: Callable[[torch.Tensor], torch.Tensor]) -> AttentionCase:
    named = dict(zip(("query", "key", "value", "rel_key", "rel_query"), case.tensors, strict=True))
    return case.with_tensors(**{name: change(named[name]) for name, change in changes.items()})


def dropout(**changes: object) -> AttentionCase:
    return PADDED.with_keywords(dropout=replace(PADDED.keywords["dropout"], **changes))


def starts(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


REFUSED = {
    "query has 2 dimensions": tensors(PADDED, query=lambda x: x[0, 0]),
    "query is torch.complex64": tensors(PADDED, query=lambda x: x.to(torch.complex64)),
    r"key \[2, 6, 2, 16\] and value \[2, 5, 2, 16\] do not fit": tensors(PADDED, value=lambda x: x[:, 1:]),
    r"query \[2, 6, 1, 16\], key": tensors(PADDED, query=lambda x: x[:, :, 1:]),
    r"query \[2, 6, 2, 8\], key": tensors(PADDED, query=lambda x: x[..., 8:]),
    "query has 1 rows and key 2": tensors(PADDED, query=lambda x: x[1:]),
    "value is torch.float64 on cpu and query torch.float32": tensors(PADDED, value=lambda x: x.double()),
    "rel_query is torch.bfloat16": tensors(PADDED, rel_query=lambda x: x.bfloat16()),
    r"rel_key is \[2, 15, 16\]: .* must be \[N, 2k, H\] = \[2, 16, 16\]": tensors(PADDED, rel_key=lambda x: x[:, 1:]),
    "scale is 0.0: give a positive number": PADDED.with_keywords(scale=0.0),
    "scale is nan": PADDED.with_keywords(scale=float("nan")),
    "bucket_rule 'mine' is unknown": PADDED.with_keywords(bucket_rule="mine"),
    "cu_seqlens belong to packed input": PADDED.with_keywords(cu_seqlens_k=starts(0, 6)),
    r"key_padding_mask is torch.int64 \[2, 6\]: give bool": PADDED.with_keywords(
        key_padding_mask=torch.ones(2, 6, dtype=torch.int64)
    ),
    r"give bool \[B, S\] = \[2, 6\]": PADDED.with_keywords(key_padding_mask=torch.ones(2, 5, dtype=torch.bool)),
    "key_padding_mask belongs to padded input": PACKED.with_keywords(
        key_padding_mask=torch.ones(1, 6, dtype=torch.bool)
    ),
    "key_padding_mask is on meta and query on cpu": PADDED.with_keywords(
        key_padding_mask=torch.ones(2, 6, dtype=torch.bool, device="meta")
    ),
    "packed input needs cu_seqlens_q": PACKED.with_keywords(cu_seqlens_q=None),
    r"cu_seqlens_k is torch.int64 \[2\]: packed input needs int32": PACKED.with_keywords(
        cu_seqlens_k=torch.tensor([0, 6])
    ),
    r"cu_seqlens_q is torch.int32 \[0\]": PACKED.with_keywords(cu_seqlens_q=starts()),
    "cu_seqlens_k is on meta and query on cpu": PACKED.with_keywords(cu_seqlens_k=starts(0, 2, 6).to("meta")),
    "max_seqlen_k is -1: give the length of the longest": PACKED.with_keywords(max_seqlen_k=-1),
    "key is torch.float32 on meta and query torch.float32 on cpu": tensors(PADDED, key=lambda x: x.to("meta")),
    "cu_seqlens_q has 2 documents and cu_seqlens_k 1": PACKED.with_keywords(cu_seqlens_k=starts(0, 6)),
    "cu_seqlens_k must rise from 0 to at most 6": PACKED.with_keywords(cu_seqlens_k=starts(0, 3, 7)),
    "cu_seqlens_q must rise": PACKED.with_keywords(cu_seqlens_q=starts(0, 5, 3)),
    "cu_seqlens_q must rise from 0": PACKED.with_keywords(cu_seqlens_q=starts(1, 3, 6)),
    "max_seqlen_q is 2, but a document has 3 tokens": PACKED.with_keywords(max_seqlen_q=2),
    "dropout probability 1.0": dropout(probability=1.0),
    r"dropout.sample is torch.int64 \[3\]: .* each of 2 documents": dropout(sample=torch.arange(3)),
    "dropout.first_token is torch.float32": dropout(first_token=torch.zeros(2)),
    "dropout.seed is -1: give a number of 64 bits": dropout(seed=-1),
    "dropout.seed is 18446744073709551616": dropout(seed=1 << 64),
    "dropout.stream is 256: give one of 0..255": dropout(stream=256),
    "dropout.layer is -1: give one of 0..255": dropout(layer=-1),
    "4097 heads and 1 keys: dropout's counter has room for 4096": attention_case(
        1, heads=4097, head_width=1, dropout=PADDED.keywords["dropout"]
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_arguments_are_named_in_one_line(message: str) -> None:
    for implementation in ("reference", "torch", *TRITON):
        with pytest.raises(ValueError, match=message) as error:
            REFUSED[message].run(implementation)
        assert "\n" not in str(error.value)


def test_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="implementation 'cuda' is unknown: give one of reference, torch, triton"):
        PADDED.run("cuda")


@pytest.mark.skipif(not TRITON, reason="runs in Triton's interpreter")
def test_triton_asked_for_is_told_what_it_cannot_take() -> None:  # what the machine lacks: test_dispatch.py
    double = {name: lambda x: x.double() for name in ("query", "key", "value", "rel_key", "rel_query")}
    with pytest.raises(ValueError, match="implementation 'triton' cannot take this: the tensors are"):
        tensors(PADDED, **double).run("triton")


def test_packed_and_padded_cases_here_are_sound() -> None:
    PADDED.run("torch")
    PACKED.run("torch")
