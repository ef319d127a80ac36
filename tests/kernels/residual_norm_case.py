"""Calls of the residual norm with random inputs, run by either implementation and held to the error rule.

Used by: test_residual_norm.py, tests/ptx/compiled_kernels.py.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from disentangled.kernels.residual_norm import residual_norm
from tests.numerics import assert_no_worse_than_eager

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KEYS = {"seed": 2**63 + 12345, "stream": 3, "layer": 7, "site": 2}
NAMES = ("output", "operand", "grad_x", "grad_residual", "grad_weight", "grad_bias")
Answers = dict[str, Tensor]


def places(num_rows: int) -> dict[str, Tensor]:
    """Samples past 32 bits, tokens in any order."""
    sample = torch.arange(num_rows, device=DEVICE) * 3 + 2**34
    return {"sample": sample, "token": torch.arange(num_rows, device=DEVICE).flip(0) + 5}


class ResidualNormCase:
    """Inputs of one call, and its results in any dtype by either implementation.

    Args:
        mixed: as under autocast in `dtype`: x is of that, residual and weights are float32.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        probability: float = 0.3,
        mixed: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        draw = [torch.randn(shape, generator=generator).to(DEVICE) for _ in range(4)]
        wide = torch.float32 if mixed else dtype
        self.autocast = dtype if mixed else None
        scale, shift = (torch.randn(shape[-1:], generator=generator).to(DEVICE) for _ in range(2))
        self.x, self.upstream, self.upstream_operand = draw[0].to(dtype), draw[1].to(dtype), draw[3].to(dtype)
        self.residual = (2 * draw[2] + 0.5).to(wide)
        self.weight, self.bias = (1 + scale / 5).to(wide), shift.to(wide)
        self.keys: dict[str, Any] = {"probability": probability, **KEYS, **places(shape[0])} if probability else {}

    def run(self, implementation: str, dtype: torch.dtype | None = None) -> Answers:
        """Results and gradients; dtype: of all inputs, else each has its own."""
        inputs = [
            values.to(dtype or values.dtype).requires_grad_()
            for values in (self.x, self.residual, self.weight, self.bias)
        ]
        with torch.autocast(DEVICE, self.autocast) if self.autocast else nullcontext():
            out, operand = residual_norm(*inputs, 1e-7, implementation=implementation, **self.keys)
        assert (operand is out) == (out.dtype in (self.x.dtype, torch.float64))
        results, upstream = [out], [self.upstream.to(out.dtype)]
        if operand is not out:
            results, upstream = [out, operand], [*upstream, self.upstream_operand]
        elif self.autocast:  # in float64 the one result stands for both
            upstream = [upstream[0] + self.upstream_operand.double()]
        gradients = torch.autograd.grad(results, inputs, upstream)
        assert all(g.dtype == i.dtype and g.shape == i.shape for g, i in zip(gradients, inputs, strict=True))
        return dict(zip(NAMES, (out.detach(), operand.detach(), *gradients), strict=True))

    def check(self, results: Answers) -> None:
        """Results keep the error rule."""
        eager, exact = self.run("torch"), self.run("torch", torch.float64)
        for name in NAMES:
            assert results[name].dtype == eager[name].dtype
            assert_no_worse_than_eager(results[name], eager[name], exact[name], name)
