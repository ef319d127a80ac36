"""The fused dropout against plain torch, bit for bit: values, gradients, any width, any place in a batch."""

import pytest
import torch
from torch import Tensor

from disentangled.kernels.hidden_dropout import dropout

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter cuts bfloat16 off instead of rounding it
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]
KEYS = {"seed": 2**63 + 12345, "stream": 3, "layer": 7, "site": 2}


def places(num_rows: int) -> dict[str, Tensor]:
    """Samples past 32 bits, tokens in any order."""
    sample = torch.arange(num_rows, device=DEVICE) * 3 + 2**34
    return {"sample": sample, "token": torch.arange(num_rows, device=DEVICE).flip(0) + 5}


def both(x: Tensor, probability: float, **keys: object) -> list[Tensor]:
    """[output, gradient] of plain torch, then of the kernel."""
    found = []
    upstream = torch.linspace(-2, 3, x.numel(), device=DEVICE).to(x.dtype).view_as(x)
    for implementation in ("torch", "triton"):
        own = x.clone().requires_grad_()
        out = dropout(own, probability, implementation=implementation, **(KEYS | keys))  # type: ignore[arg-type]
        out.backward(upstream)
        assert own.grad is not None
        found += [out.detach(), own.grad]
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8), (5, 24), (70, 13), (3, 768), (2, 1031)], ids=str)
def test_values_and_gradients_are_those_of_plain_torch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    out, gradient, fused_out, fused_gradient = both(x, 0.3, **places(shape[0]))
    assert torch.equal(fused_out, out) and torch.equal(fused_gradient, gradient)
    assert (out == 0).sum() > 0 or shape[0] * shape[1] < 32


def test_every_key_changes_the_decisions() -> None:
    x = torch.ones(6, 64, device=DEVICE)
    first = both(x, 0.5, **places(6))[2]
    changed = places(6) | {"sample": places(6)["sample"] + 2**32}
    for keys in (
        places(6) | {"seed": 5},
        places(6) | {"stream": 4},
        places(6) | {"layer": 8},
        places(6) | {"site": 1},
        changed,
    ):
        out, _, fused, _ = both(x, 0.5, **keys)
        assert torch.equal(out, fused) and not torch.equal(fused, first)


def test_strided_and_empty_inputs() -> None:
    x = torch.randn(12, 9, device=DEVICE).t()  # [9, 12]
    out, gradient, fused_out, fused_gradient = both(x, 0.1, **places(9))
    assert torch.equal(fused_out, out) and torch.equal(fused_gradient, gradient)
    empty = dropout(x[:0], 0.1, implementation="triton", **KEYS, **places(0))
    assert empty.shape == (0, 12)
    assert dropout(x, 0.0, implementation="triton", **KEYS, **places(9)) is x


def test_operator_passes_torchs_own_checks() -> None:
    from disentangled.kernels.hidden_dropout import fused

    x = torch.randn(4, 16, device=DEVICE, requires_grad=True)
    arguments = (x, 0.2, -5, 3, 7, *places(4).values(), 2 << 24)
    torch.library.opcheck(torch.ops.disentangled.hidden_dropout, arguments)
    assert fused.TILE_VALUES % (fused.MOST_BLOCKS * 8) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probability": 1.0}, "dropout probability 1.0 is not in"),
        ({"site": 256}, "dropout site 256 is outside 0..255"),
        ({"layer": -1}, "dropout layer -1 is outside 0..255"),
        ({"implementation": "cuda"}, "implementation 'cuda' is unknown: give one of torch, triton"),
    ],
)
def test_arguments_that_cannot_be_right_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dropout(**({"x": torch.ones(2, 8), "probability": 0.1} | KEYS | places(2) | changes))  # type: ignore[arg-type]


def test_float64_is_for_plain_torch() -> None:
    x = torch.ones(2, 8, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match=r"x is torch\.float64"):
        dropout(x, 0.1, implementation="triton", **KEYS, **places(2))
    assert dropout(x, 0.1, **KEYS, **places(2)).dtype == torch.float64
