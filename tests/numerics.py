"""The error rule: a result is correct when its error is at most twice that of eager code in the same dtype.

Errors are measured against the exact answer, the reference in float64. Eager code is the same reference in the dtype
under test. To twice its error comes a floor, one unit in the last place of the exact answer, because eager code is
exact by luck now and then. So no tolerance is ever typed, and none can be relaxed.

Two errors are held to the rule: the root mean square over a tensor, and the largest of any element. The largest is one
draw from a tail and not an average (over seeds it moves by half, for eager code too), so it is allowed twice as much.

Used by: the tests of every op. Not here: tests of bit-for-bit equality, which call torch.equal.
"""

import torch
from torch import Tensor


def root_mean_square(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def largest(x: Tensor) -> float:
    return float(x.double().abs().max())


def assert_no_worse_than_eager(candidate: Tensor, eager: Tensor, exact: Tensor, name: str = "result") -> None:
    """Holds `candidate` to the rule; it and `eager` have the dtype under test, and `exact` is float64."""
    assert exact.dtype == torch.float64, f"{name}: the exact answer is computed in float64"
    assert candidate.dtype == eager.dtype, f"{name}: {candidate.dtype} is compared with eager code in {eager.dtype}"
    assert candidate.shape == eager.shape == exact.shape, f"{name}: {candidate.shape}, {eager.shape}, {exact.shape}"
    if exact.numel() == 0:
        return
    assert candidate.isfinite().all(), f"{name} is not finite"
    for measure, room in ((root_mean_square, 1), (largest, 2)):
        error, eager_error = measure(candidate.double() - exact), measure(eager.double() - exact)
        floor = measure(exact) * torch.finfo(candidate.dtype).eps
        assert error <= room * (2 * eager_error + floor), (
            f"{name}: {measure.__name__} of the error is {error:.3g} in {candidate.dtype}, more than "
            f"{room} x (2 x eager's {eager_error:.3g} + floor {floor:.3g})"
        )
