"""The fused residual norm: by the error rule against plain torch, every gradient, any width, any mix of dtypes."""

from typing import Any

import pytest
import torch

from disentangled.kernels.residual_norm import residual_norm
from tests.kernels.residual_norm_case import DEVICE, KEYS, NAMES, ResidualNormCase, places

pytest.importorskip("triton")

# Triton's interpreter cuts bfloat16 off instead of rounding it
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]


@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8), (5, 24), (70, 13), (9, 768), (3, 1031), (2, 4096)], ids=str)
def test_results_are_no_worse_than_plain_torch(shape: tuple[int, int], dtype: torch.dtype, probability: float) -> None:
    case = ResidualNormCase(shape, dtype, probability)
    case.check(case.run("triton"))


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_under_autocast_the_stream_keeps_its_precision_and_both_results_gradients_are_added(probability: float) -> None:
    case = ResidualNormCase((9, 100), torch.float16, probability, mixed=True)
    results = case.run("triton")
    assert results["output"].dtype == results["grad_residual"].dtype == torch.float32
    assert results["operand"].dtype == results["grad_x"].dtype == torch.float16
    assert torch.equal(results["operand"], results["output"].half())
    case.check(results)


@pytest.mark.parametrize("used", [0, 1])
@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_either_result_may_be_the_only_one_used(implementation: str, used: int) -> None:
    case = ResidualNormCase((9, 40), torch.float16, mixed=True)
    inputs = [x.requires_grad_() for x in (case.x, case.residual, case.weight, case.bias)]
    upstream = [case.upstream.float(), case.upstream_operand]
    upstream[1 - used] *= 0

    def gradients(wanted: slice) -> tuple[torch.Tensor, ...]:
        with torch.autocast(DEVICE, torch.float16):
            results = residual_norm(*inputs, 1e-7, implementation=implementation, **case.keys)
        return torch.autograd.grad(results[wanted], inputs, upstream[wanted])

    alone, beside_zeros = gradients(slice(used, used + 1)), gradients(slice(2))
    assert all(torch.equal(one, other) for one, other in zip(alone, beside_zeros, strict=True))


def test_many_rows_are_summed_by_few_programs_and_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from disentangled.kernels.residual_norm import fused

    monkeypatch.setattr(fused, "MOST_PROGRAMS", 2)
    case = ResidualNormCase((4 * 5 + 3, 600), torch.float32)  # two rows at a time
    first, second = case.run("triton"), case.run("triton")
    assert all(torch.equal(first[name], second[name]) for name in NAMES)
    case.check(first)


def test_decisions_are_those_of_the_dropout_op() -> None:
    case = ResidualNormCase((6, 64), torch.float32)
    ones = torch.ones_like(case.x)
    out, _ = residual_norm(ones, 0 * ones, ones[0], 0 * ones[0], 1e-7, implementation="triton", **case.keys)
    assert torch.equal(out > 0, case.run("torch")["grad_x"] != 0)


def test_strided_and_empty_inputs() -> None:
    case = ResidualNormCase((9, 12), torch.float16, mixed=True)
    expected = case.run("triton")
    for name in ("x", "residual", "upstream", "upstream_operand"):
        setattr(case, name, getattr(case, name).t().contiguous().t())
    assert all(torch.equal(value, expected[name]) for name, value in case.run("triton").items())
    empty = ResidualNormCase((0, 12), torch.float32).run("triton")
    assert empty["output"].shape == (0, 12) and not empty["grad_weight"].any()


def test_operator_passes_torchs_own_checks() -> None:
    from disentangled.kernels.residual_norm import fused  # noqa: F401, defines it

    case = ResidualNormCase((4, 16), torch.float32)
    tensors = [values.requires_grad_() for values in (case.x, case.residual, case.weight, case.bias)]
    for operand_dtype in (None, torch.float16):
        arguments = (*tensors, 1e-7, operand_dtype, 0.2, -5, 3, 7, *places(4).values(), 2 << 24)
        torch.library.opcheck(torch.ops.disentangled.residual_norm, arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residual": torch.ones(3, 8)}, r"residual has shape \(3, 8\), x \(2, 8\): they must be the same"),
        ({"bias": torch.ones(7)}, r"bias has shape \(7,\): it must be \[8\], the features of x"),
        ({"probability": 1.0}, "dropout probability 1.0 is not in"),
        ({"site": 256}, "dropout site 256 is outside 0..255"),
        ({"token": None}, "dropout probability 0.1 needs sample and token"),
        ({"implementation": "cuda"}, "implementation 'cuda' is unknown: give one of torch, triton"),
    ],
)
def test_arguments_that_cannot_be_right_are_refused(changes: dict[str, Any], message: str) -> None:
    ones = torch.ones(2, 8)
    arguments = {"x": ones, "residual": ones, "weight": ones[0], "bias": ones[0], "eps": 1e-7, "probability": 0.1}
    with pytest.raises(ValueError, match=message):
        residual_norm(**(arguments | KEYS | places(2) | changes))


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [((2, 8), torch.float64, r"x is torch\.float64"), ((2, 4097), torch.float32, "x has 4,097 features")],
)
def test_what_triton_cannot_take_is_for_plain_torch(shape: tuple[int, int], dtype: torch.dtype, message: str) -> None:
    case = ResidualNormCase(shape, dtype)
    with pytest.raises(ValueError, match=message):
        case.run("triton")
    assert case.run("torch")["output"].dtype == dtype


def test_it_compiles_in_one_graph() -> None:
    from disentangled.kernels.residual_norm.op import load_kernels

    load_kernels()
    case = ResidualNormCase((9, 40), torch.float16, mixed=True)
    expected = case.run("triton")
    inputs = [values.requires_grad_() for values in (case.x, case.residual, case.weight, case.bias)]

    def norm(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return residual_norm(*inputs, 1e-7, implementation="triton", **case.keys)

    with torch.autocast(DEVICE, torch.float16):
        out, operand = torch.compile(norm, fullgraph=True, backend="aot_eager")(*inputs)
    gradients = torch.autograd.grad((out, operand), inputs, (case.upstream.float(), case.upstream_operand))
    found = (out.detach(), operand.detach(), *gradients)
    assert all(torch.equal(value, expected[name]) for name, value in zip(NAMES, found, strict=True))
