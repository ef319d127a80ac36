"""The fused kernels as torch operators: torch's own checks of a registration, and one graph under torch.compile."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from disentangled.kernels.disentangled_attention import AttentionDropout, disentangled_attention, registered
from disentangled.kernels.disentangled_attention.log_bucket import Positions, _slot_table
from tests.kernels.attention_case import NAMES, AttentionCase, attention_case, cumulative_lengths

pytest.importorskip("triton")
from disentangled.kernels.disentangled_attention import distance_tables

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DROPOUT = AttentionDropout(0.25, (1 << 64) - 3, 4, 3, torch.tensor([2**33 + 7]), torch.tensor([2]))
LENGTHS = cumulative_lengths(4, 0, 3)


def case_of(num_tokens: int, **keywords: object) -> AttentionCase:
    return attention_case(num_tokens, **{"heads": 1, "batch": 1} | keywords).on(DEVICE)


def triton_call(case: AttentionCase) -> Callable[..., Tensor]:
    """The op as a function of the five tensors."""
    return lambda *tensors: disentangled_attention(*tensors, implementation="triton", **case.keywords)


CASES = {
    "padded": lambda: case_of(7, dropout=DROPOUT, key_padding_mask=torch.tensor([[True] * 5 + [False] * 2])),
    "packed": lambda: case_of(7, batch=None, cu_seqlens_q=LENGTHS, cu_seqlens_k=LENGTHS, max_seqlen_k=4),
    "c2p": lambda: case_of(5).with_tensors(rel_query=None),
}


def operator_arguments(case: AttentionCase, requires_grad: bool) -> tuple[object, ...]:
    """As registered.attend passes them."""
    keywords = case.keywords
    dropout = keywords.get("dropout")
    tensors = [None if x is None else x.clone().requires_grad_(requires_grad) for x in case.tensors]
    masks = [keywords.get(name) for name in ("key_padding_mask", "cu_seqlens_q", "cu_seqlens_k")]
    named = (None, None) if dropout is None else (dropout.sample, dropout.first_token)
    longest = (keywords.get("max_seqlen_q"), keywords.get("max_seqlen_k"))
    place = (0.0, 0, 0, 0) if dropout is None else (dropout.probability, -3, dropout.stream, dropout.layer)
    return (*tensors, *masks, *named, 8, 16, "huggingface", keywords["scale"], *longest, *place)


def one_fast(fast: str) -> list[object]:
    """The names of all cases, all but one marked slow."""
    return [name if name == fast else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


@pytest.mark.parametrize("name", one_fast("packed"))
def test_forward_passes_torchs_checks(name: str) -> None:
    opcheck(torch.ops.disentangled.attention_forward.default, operator_arguments(CASES[name](), requires_grad=True))


@pytest.mark.parametrize("name", one_fast("c2p"))
def test_backward_passes_torchs_checks(name: str) -> None:
    arguments = operator_arguments(CASES[name](), requires_grad=False)
    out, lse = torch.ops.disentangled.attention_forward(*arguments)
    arguments = (torch.ones_like(out), out, lse, *arguments)
    opcheck(torch.ops.disentangled.attention_backward.default, arguments)


@pytest.mark.parametrize("name", one_fast("packed"))
def test_one_graph_gives_what_no_graph_gives(name: str) -> None:
    torch.compiler.reset()
    case = CASES[name]()
    leaves = [None if x is None else x.clone().requires_grad_() for x in case.tensors]
    output = torch.compile(triton_call(case), fullgraph=True, backend="aot_eager")(*leaves)
    present = [x for x in leaves if x is not None]
    gradients = torch.autograd.grad(output, present, case.grad_output)
    expected = case.run("triton")
    assert torch.equal(output, expected.pop("output"))
    for (name, result), gradient in zip(expected.items(), gradients, strict=True):
        assert torch.equal(gradient, result), name


def test_one_graph_serves_other_lengths() -> None:
    """Sizes and lengths are symbols: a second length compiles nothing."""
    torch.compiler.reset()

    def call(*tensors: Tensor, starts: Tensor, scale: float, longest: int) -> Tensor:
        return disentangled_attention(
            *tensors, cu_seqlens_q=starts, cu_seqlens_k=starts, max_seqlen_q=longest, max_seqlen_k=longest,
            position_buckets=8, max_relative_positions=16, scale=scale, implementation="triton",
        )  # fmt: skip

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for lengths, stance in (((4, 5), "default"), ((3, 2, 9), "fail_on_recompile")):
        tensors = case_of(sum(lengths), batch=None).tensors
        settings = {"starts": cumulative_lengths(*lengths).to(DEVICE), "scale": 0.25, "longest": max(lengths)}
        with torch.no_grad(), torch.compiler.set_stance(stance):
            assert torch.equal(compiled(*tensors, **settings), call(*tensors, **settings))


@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_autocast_is_autocast(autocast: bool) -> None:
    torch.compiler.reset()
    case = case_of(5)
    with torch.autocast(DEVICE, torch.float16, enabled=autocast):
        output = torch.compile(triton_call(case), fullgraph=True, backend="aot_eager")(*case.tensors)
        assert output.dtype == (torch.float16 if autocast else torch.float32)
        assert torch.equal(output, triton_call(case)(*case.tensors))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_gives_what_training_gives(mode: Callable[[], object]) -> None:
    case = case_of(5)
    _slot_table.cache_clear()
    distance_tables._distance_table.cache_clear()
    with mode():
        output = triton_call(case)(*case.tensors)
    assert not output.requires_grad
    assert torch.equal(output, case.run("triton")["output"])  # and what evaluation cached serves training


def test_log_sum_exp_has_no_gradient() -> None:
    arguments = operator_arguments(CASES["c2p"](), requires_grad=True)
    out, lse = torch.ops.disentangled.attention_forward(*arguments)
    assert out.requires_grad
    assert not lse.requires_grad


def test_second_derivatives_are_refused() -> None:
    case = case_of(5)
    leaves = [x.clone().requires_grad_() for x in case.tensors]
    (gradient,) = torch.autograd.grad(
        triton_call(case)(*leaves), leaves[0], case.grad_output.clone().requires_grad_(), create_graph=True
    )
    with pytest.raises(RuntimeError, match="no second derivatives"):
        gradient.sum().backward()


@pytest.mark.parametrize("packed", [False, True])
def test_fakes_know_shapes_dtypes_and_devices(packed: bool) -> None:
    leading = (40,) if packed else (3, 40)
    with FakeTensorMode():
        query = torch.empty(*leading, 4, 24, dtype=torch.bfloat16, device=DEVICE).transpose(-1, -2)[..., :4]
        query = query.transpose(-1, -2).requires_grad_()  # [.., 4, 24], not contiguous
        key = torch.empty(*leading[:-1], 50, 4, 24, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
        table = torch.empty(4, 16, 24, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
        starts = torch.empty(6, dtype=torch.int32, device=DEVICE) if packed else None
        output = registered.attend(
            query,
            key,
            key,
            None,
            table,
            positions=Positions(8, 16),
            scale=0.1,
            cu_seqlens_q=starts,
            cu_seqlens_k=starts,
        )
        assert (output.shape, output.dtype, output.device.type) == (query.shape, torch.bfloat16, DEVICE)
        assert output.is_contiguous()
        gradients = torch.autograd.grad(output, (query, key, table), torch.empty_like(output))
        for gradient, x in zip(gradients, (query, key, table), strict=True):
            assert (gradient.shape, gradient.dtype, gradient.device) == (x.shape, x.dtype, x.device)


@pytest.mark.slow
def test_gradient_of_one_tensor_alone_is_that_of_all() -> None:
    case = case_of(5)
    expected = case.run("triton")
    for index, name in enumerate(NAMES[1:]):
        tensors = [x.clone() for x in case.tensors]
        tensors[index].requires_grad_()
        (gradient,) = torch.autograd.grad(triton_call(case)(*tensors), tensors[index], case.grad_output)
        assert torch.equal(gradient, expected[name]), name
