"""The error rule: a result is correct when its error is at most twice that of eager code in the same dtype.

Errors are measured against the exact answer, the reference in float64. Eager code is the same reference in the dtype under
test. To twice its error comes a floor, one unit in the last place of the largest exact value, because eager code is exact
by luck now and then. So no tolerance is ever typed, and none can be relaxed.

Used by: the tests of every op. Not here: tests of bit-for-bit equality, which call torch.equal.
"""

import torch
from torch import Tensor


def rounding_floor(exact: Tensor, dtype: torch.dtype) -> float:
    """One unit in the last place of the largest magnitude in `exact`, as `dtype` holds it."""
    return float(exact.abs().max()) * torch.finfo(dtype).eps if exact.numel() else 0.0


def largest_error(result: Tensor, exact: Tensor) -> float:
    """Largest absolute difference, in float64; infinite where the result is not finite."""
    assert result.shape == exact.shape, f"shape {list(result.shape)} instead of {list(exact.shape)}"
    if result.numel() == 0:
        return 0.0
    difference = (result.detach().double() - exact.detach().double()).abs()
    return float(difference.nan_to_num(nan=torch.inf).max())


def assert_no_worse_than_eager(candidate: Tensor, eager: Tensor, exact: Tensor, name: str = "result") -> None:
    """error(candidate) <= 2 * error(eager) + rounding floor; `exact` is float64, the others one dtype."""
    assert exact.dtype == torch.float64, "the exact answer is computed in float64"
    assert candidate.dtype == eager.dtype, f"{name}: {candidate.dtype} is compared with eager code in {eager.dtype}"
    error, eager_error = largest_error(candidate, exact), largest_error(eager, exact)
    floor = rounding_floor(exact, candidate.dtype)
    assert error <= 2 * eager_error + floor, (
        f"{name}: error {error:.3g} exceeds 2 x eager's {eager_error:.3g} + floor {floor:.3g} in {candidate.dtype}"
    )
