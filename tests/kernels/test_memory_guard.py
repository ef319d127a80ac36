"""The guard lets every honest access pass and names a read or a write that misses its tensors."""

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter alone is guarded")


@triton.jit
def copy_kernel(source_ptr, target_ptr, shift, size, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(source_ptr + shift + offs, mask=offs < size, other=0.0)
    tl.store(target_ptr + offs, x, mask=offs < size)


def test_access_within_tensors_passes() -> None:
    # Neighbours in one storage are tensors of their own, as parts of a workspace are.
    source, target = torch.arange(8.0).split([5, 3])
    copy_kernel[(1,)](source, target, 2, 3, BLOCK=8)
    assert target.tolist() == [2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("shift", "size", "message"),
    [
        (-1, 3, "loads 4 bytes before and 0 bytes after"),
        (3, 3, "loads 0 bytes before and 4 bytes after"),
        (0, 4, "stores 0 bytes before and 4 bytes after"),
    ],
)
def test_access_outside_is_named(shift: int, size: int, message: str) -> None:
    storage = torch.zeros(20)
    with pytest.raises(InterpreterError, match=message):
        copy_kernel[(1,)](storage[4:9], storage[12:15], shift, size, BLOCK=8)
