"""Implementation "triton" on a GPU, in its own tiles: bfloat16, long and large inputs, graphs, no wait."""

from collections.abc import Callable, Iterator

import pytest
import torch

from disentangled.kernels.disentangled_attention import AttentionDropout, disentangled_attention
from tests.kernels.attention_case import AttentionCase, attention_case, cumulative_lengths

pytestmark = [
    pytest.mark.requires_gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
V3 = {"position_buckets": 256, "max_relative_positions": 512, "head_width": 64}


def dropout_of(num_documents: int) -> AttentionDropout:
    sample = torch.arange(num_documents) + 2**33
    return AttentionDropout(0.1, (1 << 63) + 5, 4, 7, sample, torch.zeros_like(sample))


def packed_case(lengths: tuple[int, ...], **keywords: object) -> AttentionCase:
    starts = cumulative_lengths(*lengths)
    return attention_case(
        sum(lengths), batch=None, cu_seqlens_q=starts, cu_seqlens_k=starts, max_seqlen_q=max(lengths),
        max_seqlen_k=max(lengths), **keywords,
    ).on("cuda")  # fmt: skip


def run_once(case: AttentionCase) -> None:
    """So that what is compiled and what is kept per length is there."""
    case.run("triton")
    torch.cuda.synchronize()


@pytest.fixture
def sync_debug_mode() -> Iterator[Callable[[str], None]]:
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 200, 511])
def test_every_length_is_no_worse_than_eager(num_tokens: int, dtype: torch.dtype) -> None:
    mask = torch.ones(3, num_tokens, dtype=torch.bool)
    mask[0, num_tokens // 2 + 2 :] = False
    mask[1] = False
    mask[2, num_tokens // 3] = False  # a hole
    case = attention_case(num_tokens, batch=3, dtype=dtype, head_width=64).on("cuda")
    if num_tokens > 1:  # with one key eager code is exact: test_triton_attention.py
        case.assert_no_worse_than_eager("triton")
        case.with_keywords(key_padding_mask=mask, dropout=dropout_of(3)).on("cuda").assert_no_worse_than_eager("triton")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_width", [32, 48, 64, 128])
def test_every_width_is_no_worse_than_eager(head_width: int, dtype: torch.dtype) -> None:
    case = packed_case((5, 0, 130, 64, 1, 300), dtype=dtype, head_width=head_width)
    case.assert_no_worse_than_eager("triton")
    case.with_keywords(dropout=dropout_of(6)).on("cuda").assert_no_worse_than_eager("triton")


@pytest.mark.parametrize("off", ["rel_key", "rel_query", "both"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_position_term_alone_is_no_worse_than_eager(off: str, dtype: torch.dtype) -> None:
    terms = {name: None for name in ("rel_key", "rel_query") if off in (name, "both")}
    attention_case(300, dtype=dtype, head_width=64).with_tensors(**terms).on("cuda").assert_no_worse_than_eager(
        "triton"
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_4096_tokens_are_no_worse_than_eager(dtype: torch.dtype) -> None:
    attention_case(4096, batch=1, heads=1, dtype=dtype, **V3).on("cuda").assert_no_worse_than_eager("triton")


def test_gradients_are_equal_bit_for_bit_when_repeated() -> None:
    case = packed_case((700, 33, 1500), dtype=torch.bfloat16, dropout=dropout_of(3), **V3)
    first = case.run("triton")
    for _ in range(5):
        for name, result in case.run("triton").items():
            assert torch.equal(result, first[name]), name


def test_dispatch_takes_the_kernels() -> None:
    case = attention_case(70, dtype=torch.bfloat16, head_width=64).on("cuda")
    expected = case.run("triton")
    for name, result in case.run(None).items():
        assert torch.equal(result, expected[name]), name


def test_the_host_never_waits(sync_debug_mode: Callable[[str], None]) -> None:
    padded = attention_case(
        200, dtype=torch.bfloat16, head_width=64, key_padding_mask=torch.ones(2, 200, dtype=torch.bool)
    ).with_keywords(dropout=dropout_of(2)).on("cuda")  # fmt: skip
    cases = [padded, packed_case((130, 0, 70), dtype=torch.bfloat16, head_width=64, dropout=dropout_of(3))]
    for case in cases:
        run_once(case)
    sync_debug_mode("error")
    for case in cases:
        case.run("triton")


def test_a_graph_replays_forward_and_backward_on_new_data() -> None:
    case = packed_case((130, 0, 70), dtype=torch.bfloat16, head_width=64, dropout=dropout_of(3))
    leaves = [x.clone().requires_grad_() for x in case.tensors]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as torch.cuda.graph asks for: what is captured has run before, on a side stream
        for _ in range(2):
            output = disentangled_attention(*leaves, implementation="triton", **case.keywords)
            torch.autograd.grad(output, leaves, case.grad_output)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = disentangled_attention(*leaves, implementation="triton", **case.keywords)
        gradients = torch.autograd.grad(output, leaves, case.grad_output)
    other = packed_case((130, 0, 70), dtype=torch.bfloat16, head_width=64, seed=1)
    # Other documents, too: their number and the room for them are captured, where they stand is data.
    starts = cumulative_lengths(70, 100, 30)
    with torch.no_grad():
        for leaf, new in zip(leaves, other.tensors, strict=True):
            leaf.copy_(new)
        case.keywords["cu_seqlens_q"].copy_(starts)
        if case.keywords["cu_seqlens_k"] is not case.keywords["cu_seqlens_q"]:
            case.keywords["cu_seqlens_k"].copy_(starts)
    graph.replay()
    expected = case.with_tensors(
        **dict(zip(("query", "key", "value", "rel_key", "rel_query"), other.tensors, strict=True))
    ).run("triton")
    for (name, result), replayed in zip(expected.items(), (output, *gradients), strict=True):
        assert torch.equal(replayed, result), name


def test_compiled_code_gives_what_eager_code_gives() -> None:
    torch.compiler.reset()
    case = attention_case(100, dtype=torch.bfloat16, head_width=64).on("cuda")
    leaves = [x.clone().requires_grad_() for x in case.tensors]
    output = torch.compile(lambda *x: disentangled_attention(*x, **case.keywords), fullgraph=True)(*leaves)
    gradients = torch.autograd.grad(output, leaves, case.grad_output)
    for (name, result), compiled in zip(case.run("triton").items(), (output, *gradients), strict=True):
        assert torch.equal(compiled, result), name


@pytest.mark.parametrize("device", ["cuda:1"])
def test_tensors_on_another_gpu_are_computed_there(device: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    case = attention_case(70, dtype=torch.bfloat16, head_width=64)
    expected = case.on("cuda:0").run("triton")
    for name, result in case.on(device).run("triton").items():
        assert torch.equal(result.cpu(), expected[name].cpu()), name


@pytest.mark.slow
def test_more_than_2_to_the_31_elements_are_addressed() -> None:
    """The last rows of tensors of 2^31 numbers and more get what they get alone."""
    batch, num_tokens, heads, width = 257, 1024, 128, 64
    if torch.cuda.mem_get_info()[0] < 64 << 30:
        pytest.skip("needs 64 GiB of free GPU memory")
    assert batch * num_tokens * heads * width > 2**31
    small = attention_case(num_tokens, batch=1, heads=heads, dtype=torch.bfloat16, **V3).on("cuda")
    query, key, value, rel_key, rel_query = small.tensors
    # Strides of zero would make small tensors of them.
    large = {
        name: x.expand(batch, -1, -1, -1).contiguous() for name, x in (("query", query), ("key", key), ("value", value))
    }
    case = AttentionCase(
        (*large.values(), rel_key, rel_query), small.grad_output.expand(batch, -1, -1, -1).contiguous(), small.keywords
    )
    results, expected = case.run("triton"), small.run("triton")
    for name in ("output", "grad_query", "grad_key", "grad_value"):
        assert torch.equal(results[name][-1:], expected[name]), name
        assert torch.equal(results[name][:1], expected[name]), name
